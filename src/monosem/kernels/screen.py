"""A cheap look at all products x . w_i, good enough to say which few have to be computed exactly.

Rows are rounded to 8 bits: x_j / s_j = u (q_j + r_j), w_ij s_j = v_i (p_ij + t_ij) with integers q and p up to 127, and
s_j > 0 for each input dimension, which evens out the outlier dimensions of residual streams. The integer product
u v_i sum_j q_j p_ij then differs from x . w_i by at most
    |x/s - uq| |w_i s|  +  |uq| |w_i s - v_i p_i|,
by the inequality of Cauchy and Schwarz: a certificate, not an estimate. Whatever the rounding, the features that are
chosen with it, and their values, are those of the float32 product.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from monosem.kernels import memory, search
from monosem.kernels.loops import ROUNDING
from monosem.kernels.threads import spread
from monosem.types import UserError

Precision = Literal["int8", "float32"]


@dataclass
class Screen:
    """What is kept of W [d_in, d_sae], feature-major, to screen products with it.

    rows: its columns as rows, float32 [d_sae, d_in], memory shared where W is stored that way; scale: s_j,
    [d_in]; quantised: int8 [d_sae, d_in], or None where float32 products are as fast; unit, norm, error: float32
    [d_sae], v_i, |w_i s| and |w_i s - v_i p_i|; narrow: whether the last batch had few enough candidates.
    """

    rows: Tensor
    scale: Tensor
    quantised: Tensor | None
    unit: Tensor
    norm: Tensor
    error: Tensor
    narrow: bool = True

    def refresh(self) -> None:
        """Take over the values that `rows` has now."""
        if self.quantised is not None:
            self.unit, self.norm, self.error = quantise(self.rows, self.scale, self.quantised)

    def exact(self) -> Screen:
        """Return the screen that computes all products in float32."""
        ones = torch.ones_like(self.unit)
        norm = self.rows.norm(dim=1)
        return Screen(self.rows, torch.ones_like(self.scale), None, ones, norm, float(ROUNDING) * norm)


def int8_product(x: Tensor, rows: Tensor, out: Tensor) -> None:
    """Write x rows^T, of int8 [n, d] and [d_sae, d], to int32 `out [n, d_sae]`."""
    torch._int_mm(x, rows.t(), out=out)  # pyright: ignore[reportPrivateImportUsage]


def quantise(rows: Tensor, scale: Tensor, out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Round rows [n, d] times scale [d] to int8 `out [n, d]`; return unit, norm and error of each row, [n].

    The error allows for float32 arithmetic, too.
    """
    unit, norm, error = (torch.empty(len(rows)) for _ in range(3))
    arrays = [t.numpy() for t in (rows, scale, out, unit, norm, error)]
    spread(lambda first, last: search.quantise_rows(*arrays, first, last), len(rows))
    return unit, norm, error


def require_finite(norm: Tensor) -> None:
    """Raise UserError if a row of a batch has NaN or infinite values; norm: the length of each row, [n]."""
    if not norm.isfinite().all():
        bad = int((~norm.isfinite()).nonzero()[0])
        raise UserError(f"activations: NaN or infinite values in row {bad} of the batch; filter or mend them first")


_screens = WeakIdKeyDictionary()


def screen_of(W: Tensor, x: Tensor) -> Screen:
    """Return the screen of W [d_in, d_sae], made anew when W was written to by torch.

    x [n, d_in]: a batch, whose outlier dimensions the screen is fitted to. Who changes W in a way that torch doesn't
    count calls `Screen.refresh`, or `torch.autograd.graph.increment_version`, as after torch's fused optimisers.
    """
    screen = known_screen(W)
    if screen is None:
        screen = _make_screen(W.data, x)  # .data: a view of W would keep W alive for ever
        _screens[W] = (W._version, screen)
    return screen


def known_screen(W: Tensor) -> Screen | None:
    """Return the screen of W if it has one that is not outdated."""
    found = _screens.get(W)
    return found[1] if found and found[0] == W._version else None


def fitted_scale(rows: Tensor, x: Tensor) -> Tensor:
    """Return s_j for each dimension [d]: x_j / s_j and w_ij s_j are then of like size. rows: [d_sae, d]; x: [n, d]."""
    spread_x, spread_w = (torch.linalg.vector_norm(m, dim=0).square() / max(1, len(m)) for m in (x, rows))
    usable = (spread_x > 0) & (spread_w > 0) & spread_x.isfinite() & spread_w.isfinite()
    return torch.where(usable, (spread_x / spread_w).pow(0.25), 1.0).clamp(2.0**-40, 2.0**40)


def _make_screen(W: Tensor, x: Tensor) -> Screen:
    if W.device.type == "cuda":
        from monosem.kernels import gpu

        return gpu.make_screen(W, x)
    rows = W.t().contiguous()
    empty = rows.new_empty(len(rows))
    screen = Screen(rows, rows.new_ones(rows.shape[1]), None, empty, empty, empty)
    if screen_precision() == "float32" or len(W) == 1:  # torch 2.13's 8-bit product is wrong for a single column
        return screen.exact()
    screen.scale = fitted_scale(rows, x)
    screen.quantised = memory.zeros(rows.shape, torch.int8)
    screen.refresh()
    return screen


_chosen: Precision | None = None


def choose_screen(precision: Precision | Literal["auto"]) -> None:
    """Set the precision of the first look; "auto" measures which is faster."""
    global _chosen
    _chosen = None if precision == "auto" else precision


def screen_precision() -> Precision:
    """Return the precision of the first look on this machine."""
    return _chosen or _faster()


@cache
def _faster() -> Precision:
    """Time an 8-bit and a float32 product of 256 x 512 x 4,096; a screened selection has to do more, so 8 bits must
    take at most half as long."""
    x, w = torch.randn(256, 512), torch.randn(4096, 512)
    x8, w8 = x.to(torch.int8), w.to(torch.int8)
    out, out8 = torch.empty(256, 4096), torch.empty(256, 4096, dtype=torch.int32)

    def seconds(run: Callable[[], object]) -> float:
        began = time.perf_counter()
        run()
        return time.perf_counter() - began

    try:
        eight = min(seconds(lambda: int8_product(x8, w8, out8)) for _ in range(4))
    except RuntimeError:  # not implemented for this processor
        return "float32"
    full = min(seconds(lambda: torch.mm(x, w.t(), out=out)) for _ in range(4))
    return "int8" if eight < 0.5 * full else "float32"
