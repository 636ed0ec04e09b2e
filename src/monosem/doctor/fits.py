"""What can be found from data about an SAE whose file is misread: a scale, a k, a threshold, norms, an order."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from monosem.equivalents import Plain, sae_of
from monosem.normaliser import fold
from monosem.variants import Codes

ROWS = 768  # tokens behind a fit
WELL_MATCHED = 0.15  # cosine by which decoder rows elsewhere must be more like the encoder than their own
Make = Callable[[float], Plain]


def rebuilt(p: Plain, x: Tensor) -> tuple[Codes, Tensor]:
    """Return the codes and reconstructions of raw activations [n, d_in]."""
    return sae_of(p, {}).reconstruct(x)


def nmse(p: Plain, x: Tensor) -> float:
    """Return the squared error over the variance of `x`; infinite where the reconstruction isn't finite."""
    error = float((rebuilt(p, x)[1] - x).double().square().sum())
    return error / float((x - x.mean(0)).double().square().sum()) if math.isfinite(error) else math.inf


def size(p: Plain, x: Tensor) -> float:
    """Return E|xhat|^2 / E<x, xhat>, both around their means: 1 where no rescaling of xhat lowers the error.

    An SAE that was trained on the squared error alone has 1 on its own data when it is read as it was trained, whatever
    its sparsity: more features than it was trained with make its reconstruction too large.
    """
    xhat = rebuilt(p, x)[1]
    a, b = (x - x.mean(0)).double(), (xhat - xhat.mean(0)).double()
    return float(b.square().sum() / (a * b).sum())


def output_gain(p: Plain, x: Tensor) -> float:
    """Return the factor for xhat that has the least squared error, around means."""
    found = size(p, x[:ROWS])
    return 1 / found if math.isfinite(found) and found > 0 else 1.0


def best_factor(p: Plain, x: Tensor) -> float:
    """Return the input scale (folded into the weights) with the least error, to about 10 %, within 1e-3 and 1e3."""
    x = x[: ROWS // 3]

    def error(log: float) -> float:
        return nmse(replace(p, weights=fold(p.weights, math.exp(log))), x)

    step = math.log(1e3) / 5
    best = min((i * step for i in range(-5, 6)), key=error)
    while step > 0.2:
        step /= 2
        best = min((best - step, best, best + step), key=error)
    return math.exp(best)


def crossing(make: Make, x: Tensor, low: float, high: float, rising: bool) -> float | None:
    """Return the value between `low` and `high` at which `size` passes 1, by bisection of its logarithm, or None.

    rising: whether larger values make reconstructions larger.
    """
    x = x[:ROWS]
    ends = size(make(low), x), size(make(high), x)
    if not (ends[0] < 1 < ends[1] if rising else ends[1] < 1 < ends[0]):
        return None
    while high / low > 1.05:
        middle = math.sqrt(low * high)
        if (size(make(middle), x) < 1) == rising:
            low = middle
        else:
            high = middle
    return math.sqrt(low * high)


def feature_gains(p: Plain, x: Tensor, steps: int = 20) -> Tensor:
    """Return a factor for each feature's activation [d_sae] that lowers the squared error, by conjugate gradients.

    A small ridge towards the common factor holds those that seldom fire.
    """
    w = p.weights["W_dec"]
    gains = torch.full((len(w),), output_gain(p, x))
    codes, _ = rebuilt(p, x)
    f = codes.dense()
    target = (x if not p.per_token else sae_of(p, {}).normaliser.apply(x)[0]) - p.weights["b_dec"]
    ridge = 0.01 * float((f.square().sum(0) * w.square().sum(1)).mean())

    def product(v: Tensor) -> Tensor:
        return (f * (((f * v) @ w) @ w.t())).sum(0) + ridge * v

    residual = (f * ((target - (f * gains) @ w) @ w.t())).sum(0)
    direction, square = residual.clone(), residual @ residual
    for _ in range(steps):
        if square <= 0:
            break
        image = product(direction)
        step = square / (direction @ image)
        gains = gains + step * direction
        residual = residual - step * image
        new = residual @ residual
        direction, square = residual + new / square * direction, new
    return gains


def matched_rows(W_enc: Tensor, W_dec: Tensor) -> Tensor | None:
    """Return for each encoder column [d_in, d_sae] the decoder row [d_sae, d_in] most like it, by cosine.

    None where most columns are most like their own row, or like none.
    """
    columns, rows = normalize(W_enc.t(), dim=1), normalize(W_dec, dim=1)
    some = torch.linspace(0, len(rows) - 1, min(len(rows), 512)).long()
    products = columns[some] @ rows.t()
    own = products.gather(1, some[:, None])[:, 0]
    if products.amax(1).median() < own.median() + WELL_MATCHED:
        return None
    return torch.cat([(part @ rows.t()).argmax(1) for part in columns.split(1024)])


def agreement(W_enc: Tensor, W_dec: Tensor) -> float:
    """Return the median cosine between encoder columns and their decoder rows: 0 by chance, 0.3 to 0.8 if trained."""
    return float((normalize(W_enc.t(), dim=1) * normalize(W_dec, dim=1)).sum(1).median())
