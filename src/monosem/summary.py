"""summary.json: the headline table for machines and the verdict in words, from the results on disk."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monosem.evals import Inputs, Judged, RunInfo
from monosem.evals.frontier import compare_variants, comparisons
from monosem.evaluate import load_results
from monosem.schema import SCHEMA_VERSION, SUMMARY_ESTIMATES
from monosem.store import file_hash, read_json, value_hash

if TYPE_CHECKING:
    from monosem.config import Study

BASELINE = "standard"
EXTRA = ("l1", "explained_variance_centered", "fvu_zero", "ce_recovered_mean", "kl", "activation_spread")


def build_summary(study: Study, folder: Path, infos: list[RunInfo], stages: dict[str, Any]) -> dict[str, Any]:
    """Return the content of summary.json. `inputs` is a hash of all it was made from."""
    inputs = Inputs(folder, infos)
    frontier, density = load_results(inputs, "frontier"), load_results(inputs, "density")
    meta = read_json(folder / "activations" / "meta.json")
    tokens_hash = value_hash([entry["sha256"] for entry in meta["splits"]["eval"]["shards"].values()])
    runs = [_run(f, d, meta, tokens_hash) for f, d in zip(frontier, density, strict=True)]
    source = [
        (f.info.name, f.info.sae, f.result.scalars, d.result.scalars) for f, d in zip(frontier, density, strict=True)
    ]
    charts = [file_hash(path) for path in sorted((folder / "results").glob("*.charts.json"))]
    ce = frontier[0].result.scalars.get("ce_sae")
    file = study.file
    return {
        "schema": SCHEMA_VERSION,
        "inputs": value_hash([str(source), study.toml(), meta["hash"], charts]),
        "study": file.name,
        "description": file.description,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": file.model.name or "SmolLM2-135M-Instruct (embedded)",
        "site": file.model.site,
        "d_in": meta["d_in"],
        "dtype": meta["header"]["model"]["dtype"],
        "tokens": {
            "train": meta["splits"]["train"]["tokens"],
            "eval": meta["splits"]["eval"]["tokens"],
            "eval_documents": meta["splits"]["eval"]["documents"],
            "ce": ce.n if ce else 0,
            "hash": tokens_hash,
        },
        "runs": runs,
        "headline": headline(frontier),
        "training": _training(study, infos, meta),
        "stages": stages,
        "sources": _sources(file.text.source),
        "caveats": _caveats(study, frontier),
    }


def _run(frontier: Judged, density: Judged, meta: dict[str, Any], tokens_hash: str) -> dict[str, Any]:
    info = frontier.info
    ours = read_json(info.folder / "cfg.json")["monosem"]
    scalars = {**density.result.scalars, **frontier.result.scalars}
    reasons = {**density.result.reasons, **frontier.result.reasons}
    dead = density.result.scalars["dead"]
    facts = {
        "name": info.name,
        "variant": info.variant,
        "hyper": {**info.hyper, **{k: v for k, v in ours.get("recipe", {}).items() if k == "lr"}},
        "seed": info.seed,
        "site": meta["site"],
        "d_in": meta["d_in"],
        "d_sae": info.d_sae,
        "tokens": ours.get("tokens"),
        "train_tokens_per_second": ours.get("train_tokens_per_second"),
        "dead": int(dead.value) if dead else None,
        "tokens_hash": tokens_hash,
    }
    estimates = {
        name: None if (e := scalars.get(name)) is None else e.as_dict() for name in (*SUMMARY_ESTIMATES, *EXTRA)
    }
    missing = {name: reasons.get(name, "not measured") for name, value in estimates.items() if value is None}
    if "loaded" in ours:
        facts["loaded"] = ours["loaded"]
        missing |= dict.fromkeys(("tokens", "train_tokens_per_second"), "it was not trained here")
    return {**facts, **estimates, "reasons": missing}


def headline(frontier: list[Judged]) -> dict[str, Any]:
    """Return which variant reconstructs best at matched L0, in data and in words.

    Every variant is compared with the baseline, and the best of them with the second best.
    """
    variants = list(dict.fromkeys(j.info.variant for j in frontier))
    baseline = BASELINE if BASELINE in variants else variants[0]
    found = comparisons(frontier, baseline)
    told = [c for c in found if "ratio" in c]
    order = sorted([*((c["ratio"]["value"], c["variant"]) for c in told), (1.0, baseline)])
    final = compare_variants(frontier, order[0][1], order[1][1]) if told else None
    return {
        "baseline": baseline,
        "comparisons": found,
        "best": final,
        "sentence": _sentence(found, baseline, final),
    }


def _sentence(found: list[dict[str, Any]], baseline: str, final: dict[str, Any] | None) -> str:
    if not found:
        return f"Only {baseline} was trained: there is nothing to compare it with."
    if final is None:
        return f"No variant can be compared with {baseline} at equal L0: {found[0].get('reason', '')}."
    best, second = final["variant"], final["baseline"]
    against = _against(final) if "ratio" in final else f"; not comparable with {second}: {final['reason']}"
    if final["verdict"] == "lower":
        start = f"{best} reconstructs best: at equal L0 its error (NMSE) is {against}"
    elif final["verdict"] == "not comparable":
        start = f"{best} has the lowest error (NMSE) at equal L0 against {baseline}{against}"
    else:
        start = f"{best} and {second} can't be told apart: at equal L0 the error (NMSE) of {best} is {against}"
    others = [_against(c, c["variant"]) for c in found if "ratio" in c and {c["variant"], baseline} != {best, second}]
    return start + (f". Against {baseline}: " + ", ".join(others) if others else "") + "."


def _against(c: dict[str, Any], variant: str = "") -> str:
    r = c["ratio"]
    size = f"{r['value']:.3g} times"
    interval = f"[{r['low']:.3g}, {r['high']:.3g}]" + (
        f" at L0 {c['l0_low']:.3g}" if c["l0_low"] == c["l0_high"] else ""
    )
    return f"{variant} {size} {interval}" if variant else f"{size} {c['baseline']}'s {interval}"


def _training(study: Study, infos: list[RunInfo], meta: dict[str, Any]) -> dict[str, Any]:
    t = study.file.train
    stored = meta["splits"]["train"]["tokens"]
    if not study.runs:
        return {}
    tokens = read_json(infos[0].folder / "cfg.json")["monosem"]["tokens"]
    recipe = {key: value for key in ("lr", "lr_warmup", "lr_decay", "clip") if (value := getattr(t, key)) is not None}
    return {
        "steps": tokens // t.batch_size,
        "batch_size": t.batch_size,
        "tokens": tokens,
        "passes": round(tokens / stored, 3),
        "normalise": t.normalise,
        "dead_after": t.dead_after,
        **recipe,
        "note": "equal for all runs; settings not listed follow each variant's published recipe",
    }


def _sources(source: str) -> list[dict[str, Any]]:
    if source:
        return [{"name": source, "package": "", "licence": "as its owner states", "documents": None}]
    from monosem.embedded import corpus_sources

    return corpus_sources()


def _loaded_caveat(judged: Judged) -> str:
    """Return what a reader has to know of a run that was loaded, "" for others."""
    loaded = read_json(judged.info.folder / "cfg.json")["monosem"].get("loaded")
    if not loaded:
        return ""
    told = f"{judged.info.name} was trained elsewhere ({loaded['source']}), how and on which tokens isn't known here"
    if loaded["unsaid"]:
        told += f"; its files don't say for which {' and '.join(loaded['unsaid'])}"
    explained = judged.result.scalars.get("explained_variance")
    if explained and explained.high < 0:
        told += (
            f"; it reconstructs worse than the mean does (explained variance {explained.value:.2f}): "
            f"`monosem doctor {loaded['source']}` looks for the mistake"
        )
    return told + "."


def _caveats(study: Study, frontier: list[Judged]) -> list[str]:
    caveats = [caveat for judged in frontier if (caveat := _loaded_caveat(judged))]
    seeds = {run.seed for run in study.runs}
    if len(seeds) < 3 and study.runs:
        caveats.append(
            f"{len(seeds)} training seed{'s' if len(seeds) > 1 else ''}: the intervals cover which documents were held "
            "out, not how another seed would come out; a claim between variants needs three seeds at least."
        )
    ce = frontier[0].result.scalars.get("ce_sae")
    held_out = frontier[0].result.scalars.get("nmse")
    if ce and held_out and ce.n < held_out.n / 2:
        caveats.append(f"Cross-entropies are read on {ce.n:,} of the held-out tokens, so their intervals are wider.")
    tokens = frontier[0].result.scalars["l0"]
    if tokens and tokens.n < 10_000_000:
        caveats.append(
            f"Dead means silent on {tokens.n:,} held-out tokens; on more tokens some of these features would fire."
        )
    return caveats
