"""The measure stage: sums over held-out tokens and codes for every SAE that has none yet, written with their headers.

One pass over the stored activations makes both.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from monosem.activations import Activations, load_tokens, open_activations
from monosem.config import Study
from monosem.evals import RunInfo
from monosem.firings import CODES_VERSION, GROUP_ROWS, FiringsWriter, all_or_none, codes_header
from monosem.formats.saelens import load_sae
from monosem.heldout import Sink, Splice, accumulate, document_groups, downstream, scored_positions
from monosem.model import resolve_device
from monosem.passages import PASSAGES_VERSION, passages_header, token_texts, write_passages
from monosem.store import value_hash
from monosem.sums import heldout_path, read_header, sums_path, write_heldout, write_sums
from monosem.work import Work

MEASURE_VERSION = 1
CENTER_ROWS = 4096  # tokens whose mean the sums are shifted by; fixed, so that runs measured later fit
CODE_ROWS = 2**24  # firings held in memory before they are sorted onto disk, over all runs (16 bytes each)
CE_POSITIONS = 512  # positions whose logits are held at once, to bound memory


def measure_inputs(study: Study, meta: dict[str, Any]) -> dict[str, Any]:
    """Return what measurements depend on besides the SAEs; meta: content of activations/meta.json."""
    return {
        "version": MEASURE_VERSION,
        "activations": meta["hash"],
        "tokens": value_hash([entry["sha256"] for entry in meta["splits"]["eval"]["shards"].values()]),
        "ce_tokens": study.file.measure.ce_tokens,
        **({"reference": True} if study.file.compute.reference else {}),
    }


def measure_runs(work: Work, infos: list[RunInfo], shared: dict[str, Any]) -> int:
    """Measure the runs whose sums or codes are missing or out of date, all on the same tokens, and write the held-out
    text if need be; return how many runs there were. Codes that are missing alone don't cost another splice.
    """
    no_sums, no_codes = unmeasured(work, infos, shared)
    passages = {**codes_inputs(shared), "version": PASSAGES_VERSION}
    if work.study.file.measure.codes and passages_header(work.folder) != passages:
        _write_passages(work, passages)
    todo = [info for info in infos if info.name in no_sums | no_codes]
    if todo:
        _measure(work, todo, no_sums, no_codes, shared)
    return len(todo)


def unmeasured(work: Work, infos: list[RunInfo], shared: dict[str, Any]) -> tuple[set[str], set[str]]:
    """Return the names of the runs that lack sums, and of those that lack codes."""
    folder, codes = work.folder, codes_inputs(shared)
    whole = read_header(heldout_path(folder)) == shared  # the sums of the SAEs belong to these
    no_sums = {i.name for i in infos if not whole or read_header(sums_path(folder, i.name)) != {**shared, "sae": i.sae}}
    if not work.study.file.measure.codes:
        return no_sums, set()
    return no_sums, {i.name for i in infos if codes_header(folder, i.name) != {**codes, "sae": i.sae}}


def codes_inputs(shared: dict[str, Any]) -> dict[str, Any]:
    """Return what codes depend on besides the SAE; shared: as `measure_inputs` returns it."""
    kept = {key: shared[key] for key in ("activations", "tokens", "reference") if key in shared}
    return {"version": CODES_VERSION, **kept}


def _measure(
    work: Work,
    todo: list[RunInfo],
    no_sums: set[str],
    no_codes: set[str],
    shared: dict[str, Any],
) -> None:
    store = open_activations(work.activations, "eval")
    file = work.study.file
    device = resolve_device(file.model.device)
    saes = [load_sae(info.folder).to(device) for info in todo]
    group, groups = document_groups(store.columns["doc"])
    size = file.measure.batch_size
    writers = {i.name: _writer(work, i, shared, len(no_codes)) for i in todo if i.name in no_codes}
    sinks = [_sink(store, writers[i.name]) if i.name in writers else None for i in todo]
    with all_or_none(writers.values()):
        with work.ticker.bar("measure", store.n, "tokens") as bar:
            batches = ((x, group[here]) for x, here in store.batches(size))
            center = store.rows(np.arange(min(store.n, CENTER_ROWS))).double().mean(dim=0)
            data, sums = accumulate(saes, batches, groups, device, bar.add, center, sinks)
        with work.ticker.bar("codes", sum(writer.rows for writer in writers.values()), "firings") as bar:
            for writer in writers.values():
                writer.finish(store.n, bar.add)
    measured = [number for number, info in enumerate(todo) if info.name in no_sums]
    if not measured:
        return
    splice = _splice(work, store, group)
    mean = torch.from_numpy(data.center + data.x.sum(0) / data.n.sum()).float()
    rows = max(1, CE_POSITIONS // file.model.context)
    model = work.get_model()
    with work.ticker.bar("splice", int(splice.scored.sum()) * (len(measured) + 3), "tokens") as bar:
        site = model.site(file.model.site)
        ce = downstream(model, site, [saes[i] for i in measured], splice, mean, groups, rows, bar.add)
    write_heldout(work.folder, data, shared)
    for number, ce_of_run in zip(measured, ce, strict=True):
        info = todo[number]
        write_sums(work.folder, info.name, sums[number], ce_of_run, {**shared, "sae": info.sae})


def _writer(work: Work, info: RunInfo, shared: dict[str, Any], writers: int) -> FiringsWriter:
    header = {**codes_inputs(shared), "sae": info.sae}
    rows = max(GROUP_ROWS, CODE_ROWS // writers)
    return FiringsWriter(work.folder, info.name, info.d_sae, header, memory_rows=rows)


def _sink(store: Activations, writer: FiringsWriter) -> Sink:
    """Return what hands firings of the store's tokens, numbered in stored order, to a writer."""
    doc, pos = store.columns["doc"].numpy(), store.columns["pos"].numpy()
    return lambda token, feature, value: writer.add(feature, doc[token], pos[token], value)


def _write_passages(work: Work, header: dict[str, Any]) -> None:
    rows = {name: tensor.numpy() for name, tensor in load_tokens(work.activations, "eval").items()}
    measured = np.zeros(rows["tokens"].size, dtype=bool)
    measured[open_activations(work.activations, "eval").columns["place"].numpy()] = True
    vocabulary = token_texts(work.get_model().tokenizer)
    shape = rows["tokens"].shape
    write_passages(work.folder, rows["tokens"], rows["doc"], rows["pos"], measured.reshape(shape), vocabulary, header)


def _splice(work: Work, store: Activations, group: torch.Tensor) -> Splice:
    """Return the held-out rows for the cross-entropy: spread evenly over the split until `ce_tokens` are scored."""
    rows = load_tokens(work.activations, "eval")
    tokens, doc = rows["tokens"], rows["doc"]
    keep = torch.zeros(tokens.numel(), dtype=torch.bool)
    keep[store.columns["place"]] = True
    keep = keep.view(tokens.shape)
    group_at = torch.zeros(tokens.numel(), dtype=torch.int64)
    group_at[store.columns["place"]] = group
    scored = scored_positions(keep, doc)
    wanted = work.study.file.measure.ce_tokens or int(scored.sum())
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(tokens)))
    enough = int((scored[order].sum(1).cumsum(0) < wanted).sum()) + 1
    chosen = order[:enough].sort().values
    return Splice(tokens[chosen], keep[chosen], scored[chosen], group_at.view(tokens.shape)[chosen])
