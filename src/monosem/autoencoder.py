"""The pieces from which several variants are made: pure functions on weights and codes.

Shapes and names are those of `monosem.variants`: W_enc [d_in, d_sae], W_dec [d_sae, d_in], b_enc [d_sae], b_dec [d_in].
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from monosem.dead import ghost_loss
from monosem.kernels import (
    Codes,
    DenseCodes,
    Layout,
    RaggedCodes,
    active_products,
    decode,
    row_norms,
    squared_distances,
    take_columns,
    take_rows,
    top_products,
)
from monosem.mesh import here, token_mean
from monosem.types import UserError

Weights = dict[str, Tensor]

SAMPLE = 8
"""One in so many rows of a batch tells roughly which activations are among the largest of the batch."""


def tied_weights(d_in: int, d_sae: int, norm: float, generator: torch.Generator) -> Weights:
    """Return W_dec with rows of random direction and length `norm`, W_enc = W_dec^T, and zero b_enc and b_dec.

    float32, on the generator's device. The tie holds at the start only: the two matrices do not share memory.
    Source: Anthropic, Circuits Updates April 2024, "Training Sparse Autoencoders" (norm 0.05 to 1).
    """
    W_dec = torch.randn((d_sae, d_in), generator=generator, device=generator.device)
    W_dec = norm * unit_rows(W_dec)
    zeros = torch.zeros(d_sae + d_in, device=generator.device)
    return {
        "W_enc": W_dec.t().clone(memory_format=torch.contiguous_format),
        "b_enc": zeros[:d_sae].clone(),
        "W_dec": W_dec,
        "b_dec": zeros[d_sae:].clone(),
    }


def unit_rows(W_dec: Tensor) -> Tensor:
    """Return `W_dec [d_sae, d_in]` with every row scaled to length 1; rows of length 0 stay 0."""
    return W_dec / W_dec.norm(dim=1, keepdim=True).clamp_min(torch.finfo(W_dec.dtype).tiny)


def tangential(W_dec: Tensor, gradient: Tensor) -> Tensor:
    """Return `gradient [d_sae, d_in]` without its component along each (unit) row of `W_dec [d_sae, d_in]`.

    Source: Bricken et al. 2023; Gao et al. 2024 (arXiv 2406.04093), section 2.1.
    """
    return gradient - (gradient * W_dec).sum(1, keepdim=True) * W_dec


def row_errors(x: Tensor, xhat: Tensor) -> Tensor:
    """Return the squared reconstruction error of each row, [n] (sum over d_in)."""
    return squared_distances(x, xhat)


def squared_error(x: Tensor, xhat: Tensor) -> Tensor:
    """Return the squared reconstruction error, a scalar (sum over d_in, mean over tokens)."""
    return token_mean(row_errors(x, xhat))


def total_variance(x: Tensor) -> Tensor:
    """Return the variance of `x [n, d_in]` around its mean, a scalar (sum over d_in, mean over tokens)."""
    return squared_error(x, token_mean(x))


def relu_codes(w: Weights, x: Tensor, centred: bool) -> Codes:
    """Return f = ReLU(c W_enc + b_enc), where c = x - b_dec if `centred`, else x; x: [n, d_in]."""
    products = active_products(x, w["W_enc"], w["b_enc"], w["b_dec"] if centred else None)
    return products.like(torch.relu(products.values + products.at(w["b_enc"])))


def jump_codes(w: Weights, x: Tensor, centred: bool) -> Codes:
    """Return f = ReLU(h) 1[h > theta], h = c W_enc + b_enc, theta = threshold [d_sae], c as in `relu_codes`."""
    highest = w["b_enc"] - w["threshold"].clamp_min(0)
    products = active_products(x, w["W_enc"], highest, w["b_dec"] if centred else None)
    h = products.values + products.at(w["b_enc"])
    return products.like((h > products.at(w["threshold"])) * torch.relu(h))


def batch_top_codes(w: Weights, x: Tensor, k: int, centred: bool, hint: float = 0.0) -> Codes:
    """Return ReLU(c W_enc + b_enc) of a batch, [n, d_sae], with all but its n k largest entries set to 0; c as above.

    Of equal entries the first ones are kept, row by row. Only entries above a guess of the smallest one kept are looked
    at; where too few are, the guess is lowered, so that the choice is exact. hint: such a guess, 0 for none.
    """
    mesh, centre = here(), w["b_dec"] if centred else None
    wanted = len(x) * mesh.data.size * k
    highest = mesh.features.reduced(w["b_enc"].abs().max(), dist.ReduceOp.MAX)
    floors = _floors(w, x, k, centre, hint)
    while True:
        floor = next(floors)
        products = active_products(x, w["W_enc"], w["b_enc"] - floor, centre)
        h = products.values + products.at(w["b_enc"])
        if floor == 0 or (mesh.both.size == 1 and isinstance(products, DenseCodes)):
            break
        rounding = 2e-6 * (floor + float(highest))  # of b_enc - floor, and of sums with it
        if int(mesh.both.reduced((h > floor + rounding).sum())) >= wanted:
            break
    codes = products.like(torch.relu(h))
    return codes.like(_largest(codes, wanted) * codes.values)


def _floors(w: Weights, x: Tensor, k: int, centre: Tensor | None, hint: float) -> Iterator[float]:
    """Yield falling guesses of the smallest of the n k largest activations: the hint, from some rows, and 0."""
    if hint > 0:
        yield hint
    with torch.no_grad():
        rows, d_sae = x[::SAMPLE].contiguous(), len(w["b_enc"])
        products = top_products(rows, w["W_enc"], w["b_enc"], min(4 * k, d_sae), centre)
        h = here().features.joined((products.values + products.at(w["b_enc"])).flatten())
        bar = h.kthvalue(max(1, h.numel() - round(1.25 * k * len(rows)))).values
        bar = max(0.0, float(here().data.reduced(bar, dist.ReduceOp.MIN)))
    yield from (floor for floor in (bar, bar / 2, 0.0) if hint <= 0 or floor < hint)


@torch.no_grad()
def _largest(codes: DenseCodes | RaggedCodes, wanted: int) -> Tensor:
    """Return which values are above 0 and among the `wanted` largest of all processes: bool, shaped as `codes.values`.

    Of equal values the first ones are, by row and feature.
    """
    both, values = here().both, codes.values.flatten()
    all_values = both.joined(values)
    if wanted > len(all_values):
        return codes.values > 0
    bar = all_values.kthvalue(len(all_values) - wanted + 1).values
    kept = values > bar
    if bar > 0:
        equal = (values == bar).nonzero().squeeze(1)
        places = _places(codes, equal)
        missing = wanted - int(both.reduced(kept.sum()))
        last = both.joined(places).sort().values[missing - 1]
        kept[equal[places <= last]] = True
    return kept.view(codes.values.shape)


def _places(codes: DenseCodes | RaggedCodes, entries: Tensor) -> Tensor:
    """Return where entries of the flattened values lie in the matrix [n, d_sae] of all processes, counted by rows."""
    mesh = here()
    if isinstance(codes, RaggedCodes):
        rows, features, d_sae = codes.layout.rows[entries], codes.indices[entries], codes.d_sae
    else:
        d_sae = codes.values.shape[1]
        rows, features = entries // d_sae, entries % d_sae
    total = count_features(d_sae)
    return (rows + mesh.data.rank * codes.n_tokens) * total + features + mesh.features.span(total).start


def count_features(mine: int) -> int:
    """Return how many features all processes have together; mine: those of this one."""
    return int(here().features.reduced(torch.tensor(mine)))


def reconstruct(codes: Codes, W_dec: Tensor, b_dec: Tensor | None = None) -> Tensor:
    """Return `f W_dec + b_dec`, [n, d_in], as `monosem.kernels.decode` does, over the features of all processes."""
    return here().features.total(decode(codes, W_dec, None if b_dec is None else _own_share(b_dec)))


def _own_share(b_dec: Tensor) -> Tensor:
    """Return what this process adds of b_dec: the total is b_dec, and so is the total of the gradients."""
    size = here().features.size
    return b_dec if size == 1 else b_dec / size


def top_entries(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, centre: Tensor | None = None) -> Codes:
    """Return what `top_products` does, with the k features of a row chosen among those of all processes.

    Only values are exchanged: each process gives its k largest, and keeps those not below the k-th of all. Of equal
    ones at the edge the first features are kept. Source: the code released with Gao et al. 2024 (arXiv 2406.04093),
    without its limit on the number of values, which makes it approximate for many processes.
    """
    axis = here().features
    if axis.size == 1:
        return top_products(x, W_enc, b_enc, k, centre)
    mine = top_products(x, W_enc, b_enc, min(k, W_enc.shape[1]), centre)
    with torch.no_grad():
        h = mine.values + mine.at(b_enc)
        padded = h.new_full((len(x), k), -torch.inf)
        padded[:, : h.shape[1]] = h
        every = torch.stack(axis.gathered(padded))  # [processes, n, k]
        bar = every.transpose(0, 1).reshape(len(x), -1).topk(k, dim=1).values[:, -1:]
        equal = (every == bar).sum(2)
        room = k - (every > bar).sum(2).sum(0) - equal[: axis.rank].sum(0)  # for equal ones of this process
        by_feature = mine.indices.argsort(1)
        level = (h == bar).gather(1, by_feature)
        first = level & (level.cumsum(1) <= room[:, None])
        kept = (h > bar) | torch.zeros_like(first).scatter(1, by_feature, first)
        offsets = torch.cat([kept.new_zeros(1, dtype=torch.int64), kept.sum(1).cumsum(0)])
        layout = Layout(offsets, mine.indices[kept], mine.d_sae)
    return RaggedCodes(layout, mine.values[kept])


def nested_reconstructions(w: Weights, codes: Codes, widths: list[int]) -> list[Tensor]:
    """Return f[:, :m] W_dec[:m] + b_dec, [n, d_in], for each m of `widths` (ascending), each made from the one before.

    codes: f [n, d_sae]. With several processes, widths are those of all features.
    """
    span = here().features.span(widths[-1])
    made, first = [], 0
    for width in (min(max(width, span.start), span.stop) - span.start for width in widths):
        if isinstance(codes, DenseCodes):
            part = decode(DenseCodes(codes.values[:, first:width]), w["W_dec"][first:width])
        else:
            part = decode(_between(codes.layout, codes.values.flatten(), first, width), w["W_dec"])
        made.append(part + (made[-1] if made else _own_share(w["b_dec"])))
        first = width
    return [here().features.total(part) for part in made]


def _between(layout: Layout, values: Tensor, first: int, last: int) -> RaggedCodes:
    """Return the entries above 0 of the features `first` to `last` - 1."""
    inside = (layout.indices >= first) & (layout.indices < last) & (values > 0)
    counts = torch.cat([inside.new_zeros(1, dtype=torch.int64), inside.cumsum(0)])
    entries = inside.nonzero().squeeze(1)
    part = Layout(counts[layout.offsets], layout.indices[entries], layout.d_sae)
    return RaggedCodes(part, values.index_select(0, entries))


def effective(w: Weights, codes: Codes) -> Tensor:
    """Return the effective activations f_i |w_i|, in the shape of `codes.values`; w_i is row i of W_dec."""
    return codes.values * codes.at(row_norms(w["W_dec"]))


def ghost_term(w: Weights, x: Tensor, xhat: Tensor, dead: Tensor, centred: bool) -> Tensor:
    """Return the ghost-gradient loss (`monosem.dead.ghost_loss`) of the features marked in `dead`, bool [d_sae]."""
    c = x - w["b_dec"].detach() if centred else x
    features = dead.nonzero().squeeze(1)
    h = c @ take_columns(w["W_enc"], features) + w["b_enc"][features]
    return ghost_loss(x, xhat, h, take_rows(w["W_dec"], features))


def dead_estimate(w: Weights, x: Tensor, dead: Tensor, k: int, *, relu: bool, centred: bool) -> Tensor:
    """Return ehat [n, d_in], the residual as the features `dead`, bool [d_sae], reconstruct it, for `auxk_loss`.

    ehat = ReLU(TopK_k(h of dead features)) W_dec, without b_dec; at most as many features as are dead; without the ReLU
    if not `relu`. Source: Gao et al. 2024 (arXiv 2406.04093), section 2.4 and appendix A.2.
    """
    features, wanted = dead.nonzero().squeeze(1), min(k, int(here().features.reduced(dead.sum())))
    b_enc, centre = w["b_enc"][features], w["b_dec"] if centred else None
    products = top_entries(x, take_columns(w["W_enc"], features), b_enc, wanted, centre)
    h = products.values + products.at(b_enc)
    return reconstruct(products.like(torch.relu(h) if relu else h), take_rows(w["W_dec"], features))


def require_at_least_zero(**values: float) -> None:
    """Raise UserError if a value is negative or not a number."""
    for name, value in values.items():
        if not value >= 0:
            raise UserError(f"{name} = {value}: must be a number of at least 0")


def require_above_zero(**values: float) -> None:
    """Raise UserError if a value is not a number above 0."""
    for name, value in values.items():
        if not value > 0:
            raise UserError(f"{name} = {value}: must be a number above 0")


def require_fractions(**values: tuple[float, ...]) -> None:
    """Raise UserError if a value is not a sequence of numbers between 0 and 1."""
    for name, fractions in values.items():
        if not all(0 < fraction < 1 for fraction in fractions):
            raise UserError(f"{name} = {list(fractions)}: must be fractions of training, each between 0 and 1")
