"""The measure stage: sums over held-out tokens for every SAE that has none yet, written with their headers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from monosem.activations import Activations, load_tokens, open_activations
from monosem.config import Study
from monosem.evals import RunInfo
from monosem.formats.saelens import load_sae
from monosem.heldout import Splice, accumulate, document_groups, downstream, scored_positions
from monosem.model import resolve_device
from monosem.store import value_hash
from monosem.sums import heldout_path, read_header, sums_path, write_heldout, write_sums
from monosem.work import Work

MEASURE_VERSION = 1
CENTER_ROWS = 4096  # tokens whose mean the sums are shifted by; fixed, so that runs measured later fit
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
    """Measure the runs whose sums are missing or out of date, all on the same tokens; return how many there were."""
    headers = {info.name: {**shared, "sae": info.sae} for info in infos}
    whole = read_header(heldout_path(work.folder)) == shared  # the sums of the SAEs belong to these
    todo = [i for i in infos if not whole or read_header(sums_path(work.folder, i.name)) != headers[i.name]]
    if todo:
        _measure(work, todo, headers, shared)
    return len(todo)


def _measure(work: Work, todo: list[RunInfo], headers: dict[str, Any], shared: dict[str, Any]) -> None:
    store = open_activations(work.activations, "eval")
    file = work.study.file
    device = resolve_device(file.model.device)
    saes = [load_sae(info.folder).to(device) for info in todo]
    group, groups = document_groups(store.columns["doc"])
    size = file.measure.batch_size
    with work.ticker.bar("measure", store.n, "tokens") as bar:
        batches = ((x, group[here]) for x, here in store.batches(size))
        center = store.rows(np.arange(min(store.n, CENTER_ROWS))).double().mean(dim=0)
        data, sums = accumulate(saes, batches, groups, device, bar.add, center)
    splice = _splice(work, store, group)
    mean = torch.from_numpy(data.center + data.x.sum(0) / data.n.sum()).float()
    rows = max(1, CE_POSITIONS // file.model.context)
    model = work.get_model()
    with work.ticker.bar("splice", int(splice.scored.sum()) * (len(saes) + 3), "tokens") as bar:
        site = model.site(file.model.site)
        ce = downstream(model, site, saes, splice, mean, groups, rows, bar.add)
    write_heldout(work.folder, data, shared)
    for info, sums_of_run, ce_of_run in zip(todo, sums, ce, strict=True):
        write_sums(work.folder, info.name, sums_of_run, ce_of_run, headers[info.name])


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
