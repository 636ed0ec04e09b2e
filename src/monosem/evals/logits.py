"""Which output tokens each feature argues for and against: its decoder direction through the unembedding.

One row a feature: the ten tokens whose logits the direction raises most, and the ten it lowers most.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from monosem.evals import Evaluation, Inputs, Judged, Result, RunInfo
from monosem.formats.saelens import load_sae
from monosem.schema import Chart
from monosem.spread import loaded

SHOWN = 10
CHUNK_VALUES = 2**24  # logits held at once: 64 MiB in float32
RESIDUAL = ("hook_resid_pre", "hook_resid_post", "hook_mlp_out", "hook_attn_out")


@dataclass(frozen=True)
class Logits(Evaluation):
    """Direct effect on the logits: (w_i / |w_i|) W_U, with the final norm's scale folded in (section I).

    Per unit of the activation f_i |w_i| that is shown everywhere, and before the final norm's division by the length
    of the residual stream, which depends on the token. What later blocks make of the feature is not in it.
    """

    needs = ("model",)

    def prepare(self, inputs: Inputs) -> Any:
        if inputs.model is None:
            return None, "no language model was given"
        if inputs.site.startswith("blocks.") and not inputs.site.endswith(RESIDUAL):
            return None, f"the site {inputs.site} does not write to the residual stream"
        unembedding = unembed(inputs.model().lm)
        return unembedding, "" if unembedding is not None else "this model has no final norm before its unembedding"

    def run(self, info: RunInfo, prepared: Any) -> Result:
        unembedding, reason = prepared
        directions = load_sae(info.folder).weights["W_dec"]
        if unembedding is not None and unembedding.shape[1] != directions.shape[1]:
            reason = f"the site's width {directions.shape[1]} is not the model's, {unembedding.shape[1]}"
        if reason or unembedding is None:
            none = [[]] * len(directions)
            return Result({"top_logit": None}, _rows(none, none, none, none), {"top_logit": reason})
        top, bottom = extremes(directions, unembedding)
        return Result({}, _rows(*(side.tolist() for side in (*top, *bottom))))

    def figure(self, judged: list[Judged]) -> list[Chart]:
        return []


def _rows(*columns: Any) -> pl.DataFrame:
    """Return the table. columns: top tokens, top logits, bottom tokens, bottom logits, each n lists."""
    names = ("top_tokens", "top_logits", "bottom_tokens", "bottom_logits")
    kinds = (pl.List(pl.Int32), pl.List(pl.Float32)) * 2
    lists = {n: pl.Series(c, dtype=kind) for n, c, kind in zip(names, columns, kinds, strict=True)}
    return pl.DataFrame({"feature": np.arange(len(columns[0]), dtype=np.int32), **lists})


@torch.no_grad()
def unembed(lm: Any) -> Tensor | None:
    """Return the unembedding [vocabulary, d_model] with the final norm's scale (and centring) folded in, float32.

    None where there is no norm between the last block and the unembedding, or their widths differ. What the norm does
    is asked of it, not looked up by its class: a vector of mean 0 and mean square 1 comes back as its scale.
    """
    unembedding = lm.get_output_embeddings()
    with loaded(unembedding):
        weight = unembedding.weight.float()
    d = weight.shape[1]
    norm = _final_norm(lm, d)
    if norm is None:
        return None
    kind = next(norm.parameters())
    probe = torch.tensor([1.0, -1.0], device=weight.device).repeat(d // 2 + 1)[:d]
    probe = (probe - probe.mean()).to(kind.dtype)[None]
    scale = ((norm(probe) - norm(-probe)) / (2 * probe)).to(weight)
    centres = torch.allclose(norm(probe + 1), norm(probe), atol=1e-2)
    folded = weight * scale
    return (folded - folded.mean(dim=1, keepdim=True) if centres else folded).contiguous()


def _final_norm(lm: nn.Module, d: int) -> nn.Module | None:
    """Return the last module outside the blocks that scales d values: the norm before the unembedding."""
    inside = {m for blocks in lm.modules() if isinstance(blocks, nn.ModuleList) for m in blocks.modules()}
    scales = [m for m in lm.modules() if m not in inside and getattr(m, "weight", torch.empty(0)).shape == (d,)]
    return scales[-1] if scales else None


@torch.no_grad()
def extremes(directions: Tensor, unembedding: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return (tokens int32, logits float32), each [n, 10], of the highest and of the lowest logits.

    directions [n, d] are brought to length 1; unembedding [vocabulary, d].
    """
    shown = min(SHOWN, len(unembedding))
    unit = nn.functional.normalize(directions.to(unembedding.device, torch.float32), dim=1)
    sides: tuple[list[Any], list[Any]] = ([], [])
    for part in unit.split(max(1, CHUNK_VALUES // len(unembedding))):
        logits = part @ unembedding.T
        for largest, found in zip((True, False), sides, strict=True):
            found.append(logits.topk(shown, largest=largest))
    top, bottom = (
        (torch.cat([p.indices for p in s]).int().cpu(), torch.cat([p.values for p in s]).cpu()) for s in sides
    )
    return top, bottom
