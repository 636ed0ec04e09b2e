"""Features in the layout of Neuronpedia's bulk import: `<model>/<layer>-<study>__<run>/`, made from the batches.

Metadata as JSON lines; features, activations and explanations as gzipped JSON lines, a file a batch.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monosem.app.explanations import Explanation, explanations_of
from monosem.app.study import Run, Study
from monosem.exports.facts import Facts
from monosem.exports.saedashboard import batches, remove_others, rounded
from monosem.store import write_bytes

CREATOR = "clkht01d40000jv08hvalcvly"  # the account that Neuronpedia's own converter falls back on
CREATOR_NAME = "monosem"
SHARED = (  # keys of SAEDashboard's features that Neuronpedia's have under the same name
    "neuron_alignment_indices", "neuron_alignment_values", "neuron_alignment_l1", "correlated_neurons_indices",
    "correlated_neurons_pearson", "correlated_neurons_l1", "correlated_features_indices",
    "correlated_features_pearson", "correlated_features_l1", "neg_str", "neg_values", "pos_str", "pos_values",
    "frac_nonzero", "freq_hist_data_bar_heights", "freq_hist_data_bar_values", "logits_hist_data_bar_heights",
    "logits_hist_data_bar_values", "decoder_weights_dist",
)  # fmt: skip
Row = dict[str, Any]


def write_neuronpedia(study: Study, run: Run, facts: Facts, features: Sequence[int], out: Path) -> Path:
    """Write the features below `out` and return the folder of the run; batches of an earlier export are removed.

    Raises UserError when codes, text or weights are missing, damaged or of other weights.
    """
    source = f"{facts.layer}-{facts.set_name}__{facts.run}"
    where = out / facts.model_id / source
    number, prompts = 0, None
    for number, batch in enumerate(batches(study, run, facts, features), 1):
        tables: dict[str, list[Row]] = {"features": [], "activations": [], "explanations": []}
        for one in batch["features"]:
            prompts = one["n_prompts_total"]
            tables["features"].append(_feature(one, source, facts))
            tables["activations"] += _activations(one, source, facts)
            said = explanations_of(study, run.name, one["feature_index"])
            tables["explanations"] += _explanations(one["feature_index"], said, source, facts)
        for name, rows in tables.items():
            path = where / name / f"batch-{number - 1}.jsonl.gz"
            if rows:
                write_bytes(path, gzip.compress(_lines(rows), compresslevel=5, mtime=0))
            else:  # their import reads the columns from the first line, so it can't be empty
                path.unlink(missing_ok=True)
    for name in ("features", "activations", "explanations"):
        remove_others(where / name, "batch-*.jsonl.gz", number)
    for name, row in _metadata(source, prompts, facts).items():
        write_bytes(where / f"{name}.jsonl", _lines([row]))
    return where


def _lines(rows: list[Row]) -> bytes:
    return b"".join(json.dumps(row, allow_nan=False).encode() + b"\n" for row in rows)


def _metadata(source: str, prompts: int | None, facts: Facts) -> dict[str, Row]:
    """Return the rows of model, release, source set and source, each with every column that it has there."""
    model, name, created = facts.model_id, facts.set_name, facts.created.isoformat(timespec="seconds")
    about = facts.description or f"monosem study {facts.study}"
    shared = {"creatorId": CREATOR, "createdAt": created, "visibility": "PUBLIC"}
    creator = {"creatorName": CREATOR_NAME, "creatorEmail": None, "urls": []}
    defaults = {"defaultSourceSetName": None, "defaultSourceId": None}
    release = {"name": name, "description": about, "descriptionShort": about, "creatorNameShort": CREATOR_NAME}
    release |= {"isNewUi": False, "featured": False, "defaultUmapSourceIds": []}
    instruct = model.endswith(("-it", "-instruct", "-chat"))
    of_model = {"id": model, "instruct": instruct, "displayNameShort": model, "displayName": facts.model or model}
    of_model |= {"tlensId": None, "dimension": None, "inferenceEnabled": False, "layers": 0, "neuronsPerLayer": 0}
    of_model |= {"owner": "", "updatedAt": created, "website": None}
    of_set = {"modelId": model, "name": name, "hasDashboards": True, "description": about, "type": "", **creator}
    of_set |= {"releaseName": name, "defaultOfModelId": None, "defaultRange": 1, "defaultShowBreaks": True}
    of_set |= dict.fromkeys(("showDfa", "showCorrelated", "showHeadAttribution", "showUmap"), False)
    of_source = {"id": source, "modelId": model, "setName": name, "hasDashboards": True, "inferenceEnabled": False}
    of_source |= dict.fromkeys(("saelensConfig", "saelensRelease", "saelensSaeId", "hfRepoId", "hfFolderId"))
    of_source |= {"inferenceHosts": [], "defaultOfModelId": None, "notes": None}
    of_source |= dict.fromkeys(("hasUmap", "hasUmapLogSparsity", "hasUmapClusters"), False)
    of_source |= {"num_prompts": prompts, "num_tokens_in_prompt": facts.context}
    of_source |= {"dataset": facts.dataset}
    return {
        "release": release | creator | defaults | shared,
        "model": of_model | defaults | shared,
        "sourceset": of_set | shared,
        "source": of_source | shared,
    }


def _place(feature: int, source: str, facts: Facts) -> Row:
    return {"modelId": facts.model_id, "layer": source, "index": str(feature)}


def _feature(one: Row, source: str, facts: Facts) -> Row:
    return {
        **_place(one["feature_index"], source, facts),
        "creatorId": CREATOR,
        "createdAt": facts.created.isoformat(timespec="seconds"),
        "maxActApprox": max((max(text["values"]) for text in one["activations"]), default=0.0),
        "hasVector": False,
        "vector": [],
        "vectorLabel": None,
        "vectorDefaultSteerStrength": 10,
        "hookName": facts.site,
        "topkCosSimIndices": [],
        "topkCosSimValues": [],
        **{key: one[key] for key in SHARED},
        "sourceSetName": facts.set_name,
    }


def _activations(one: Row, source: str, facts: Facts) -> list[Row]:
    rows = []
    for number, text in enumerate(one["activations"]):
        values, feature = text["values"], one["feature_index"]
        rows.append(
            {
                "id": _id("activation", source, feature, number, facts),
                "tokens": text["tokens"],
                **_place(feature, source, facts),
                "maxValue": max(values),
                "maxValueTokenIndex": values.index(max(values)),
                "minValue": min(values),
                "values": values,
                "creatorId": CREATOR,
                "dataSource": None,
                "dataIndex": None,
                "dfaValues": [],
                "dfaTargetIndex": None,
                "dfaMaxValue": None,
                "createdAt": facts.created.isoformat(timespec="seconds"),
                "lossValues": [],
                "logitContributions": None,
                "binMin": text["bin_min"],
                "binMax": text["bin_max"],
                "binContains": text["bin_contains"],
                "qualifyingTokenIndex": text["qualifying_token_index"],
            }
        )
    return rows


def _explanations(feature: int, explained: list[Explanation], source: str, facts: Facts) -> list[Row]:
    """Return a feature's explanations.

    Method, author and scores stand in `notes`: the columns for them refer to tables that Neuronpedia fills itself, and
    a name that is not in them would stop the import.
    """
    created = facts.created.isoformat(timespec="seconds")
    return [
        {
            "id": _id("explanation", source, feature, number, facts),
            **_place(feature, source, facts),
            "description": said.text,
            "authorId": CREATOR,
            "notes": "; ".join(
                [f"monosem {said.evaluation}", *([f"by {said.author}"] if said.author else [])]
                + [f"{name} {rounded(value)}" for name, value in said.scores.items()]
            ),
            "typeName": None,
            "explanationModelName": None,
            "createdAt": created,
            "updatedAt": created,
        }
        for number, said in enumerate(explained)
    ]


def _id(kind: str, source: str, feature: int, number: int, facts: Facts) -> str:
    """Return an id of 25 characters, the same whenever the same thing is exported."""
    text = json.dumps([kind, facts.model_id, source, facts.weights, feature, number])
    return "c" + hashlib.sha256(text.encode()).hexdigest()[:24]
