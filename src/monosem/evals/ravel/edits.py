"""Interventions on activations: how a method puts the source's value of an attribute into the base's activation.

Every edit is a function of activations `base, source [n, d_in]` at the last token of the entity. Source: Huang et al.
2024 (RAVEL, arXiv 2402.17700), section 4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from monosem.kernels import DenseCodes
from monosem.sae import Sae
from monosem.types import UserError

ROWS = 1024  # activations whose dense codes are held at once


class Edit(Protocol):
    """An interchange intervention. size: directions, dimensions or features that are swapped."""

    @property
    def size(self) -> int: ...

    def __call__(self, base: Tensor, source: Tensor) -> Tensor:
        """Return the edited activations of the base, [n, d_in]; base, source: [n, d_in]."""
        ...


@dataclass(frozen=True)
class Full:
    """The whole activation: x' = x_s. size: d_in."""

    size: int

    def __call__(self, base: Tensor, source: Tensor) -> Tensor:
        return source.clone()


@dataclass(frozen=True, eq=False)
class Subspace:
    """A linear subspace: x' = x + scale * (((x_s - x) / scale) R^T R).

    R: orthonormal rows, [r, d_in]; scale: [d_in], above 0, the standard deviations of standardised principal
    components; None: 1. DAS and MDAS (Geiger et al. 2023, arXiv 2303.02536), R-LACE, PCA and random directions differ
    in R only. The code published with RAVEL adds the standardised difference to the unstandardised base, so that its
    PCA edit changes the base even where source and base are the same; this is the edit that the paper describes.
    """

    R: Tensor
    scale: Tensor | None = None

    @property
    def size(self) -> int:
        """Directions that are swapped."""
        return len(self.R)

    def __call__(self, base: Tensor, source: Tensor) -> Tensor:
        difference = source - base
        if self.scale is None:
            return base + (difference @ self.R.T) @ self.R
        return base + ((difference / self.scale) @ self.R.T) @ self.R * self.scale


@dataclass(frozen=True, eq=False)
class Mask:
    """Single dimensions of the activation: x' = x_s where chosen, else x. chosen: bool [d_in] (DBM)."""

    chosen: Tensor

    @property
    def size(self) -> int:
        """Dimensions that are swapped."""
        return int(self.chosen.sum())

    def __call__(self, base: Tensor, source: Tensor) -> Tensor:
        return torch.where(self.chosen, source, base)


@dataclass(frozen=True, eq=False)
class Features:
    """Features of an SAE: z' = z_b with the chosen ones of z_s; x' = decode(z'), in the base's own normalisation.

    chosen: int64 [k], k may be 0 (reconstruction only). error: adds x_b - reconstruct(x_b), what the SAE leaves out of
    the base; as published there is none. Source: RAVEL, section 4 ("SAE"); the error term: Marks et al. 2024
    (arXiv 2403.19647), section 2.
    """

    sae: Sae
    chosen: Tensor
    error: bool = False

    @property
    def size(self) -> int:
        """Features that are swapped."""
        return len(self.chosen)

    def __call__(self, base: Tensor, source: Tensor) -> Tensor:
        parts = [self._part(*pair) for pair in zip(base.split(ROWS), source.split(ROWS), strict=True)]
        return torch.cat(parts).to(base.dtype) if parts else base.clone()

    def _part(self, base: Tensor, source: Tensor) -> Tensor:
        x = base.to(self.sae.weights["W_dec"].dtype)
        codes, decoded = interchanged(self.sae, base, source)
        mixed = codes[0].clone()
        mixed[:, self.chosen] = codes[1][:, self.chosen]
        return decoded(mixed) + x - decoded(codes[0]) if self.error else decoded(mixed)


@dataclass(frozen=True, eq=False)
class PrincipalComponents:
    """Standardised principal components. mean, std: [d_in]; components: orthonormal rows by variance, [m, d_in]."""

    mean: Tensor
    std: Tensor
    components: Tensor

    def coordinates(self, x: Tensor) -> Tensor:
        """Return the coordinates [n, m] of activations x [n, d_in]: what a classifier chooses components by."""
        return ((x - self.mean) / self.std) @ self.components.T

    def edit(self, chosen: Tensor) -> Subspace:
        """Return the edit that swaps the chosen components, int64 [k]."""
        return Subspace(self.components[chosen], self.std)


def interchanged(sae: Sae, base: Tensor, source: Tensor) -> tuple[tuple[Tensor, Tensor], Callable[[Tensor], Tensor]]:
    """Return ((codes of base, codes of source), dense [n, d_sae] each; the function from codes to raw [n, d_in]).

    What is decoded goes back to raw units by the base's normalisation, also where that depends on the token.
    """
    dtype = sae.weights["W_dec"].dtype
    normalised, undo = sae.normaliser.apply(base.to(dtype))
    own = sae.variant.encode(sae.weights, normalised).dense()

    def decoded(codes: Tensor) -> Tensor:
        return undo(sae.variant.decode(sae.weights, DenseCodes(codes)))

    return (own, sae.encode(source)), decoded


def random_subspace(d_in: int, size: int, seed: int) -> Subspace:
    """Return the edit that swaps a random subspace of `size` dimensions, the control of every trained one.

    Raises UserError when size isn't between 1 and d_in.
    """
    check_size(size, d_in)
    drawn = torch.randn(d_in, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Subspace(torch.linalg.qr(drawn).Q.T.float().contiguous())


def principal_components(x: Tensor) -> PrincipalComponents:
    """Return the principal components of activations x [n, d_in], each dimension standardised first (RAVEL, section 4).

    Computed in float64. Dimensions that are constant keep their scale; components without variance are left out.
    Raises UserError when there are fewer than 2 rows.
    """
    if len(x) < 2:
        raise UserError(f"{len(x)} activations: principal components need at least 2")
    mean, std = x.double().mean(0), x.double().std(0)
    std = torch.where(std > 0, std, torch.ones_like(std))
    z = (x.double() - mean) / std
    variances, vectors = torch.linalg.eigh(z.T @ z)
    kept = variances.flip(0) > 1e-9 * variances[-1]
    components = vectors.T.flip(0)[kept]
    return PrincipalComponents(mean.to(x.dtype), std.to(x.dtype), components.to(x.dtype).contiguous())


def identity_error(edit: Edit, x: Tensor) -> float:
    """Return how far the edit moves activations x [n, d_in] that are swapped for themselves, relative to |x|.

    0 but for rounding for every correct edit. Features without the error term are compared with the reconstruction.
    """
    wanted = edit.sae(x) if isinstance(edit, Features) and not edit.error else x
    return float((edit(x, x) - wanted).norm() / wanted.norm())


def check_size(size: int, d_in: int) -> None:
    """Raise UserError when a subspace of `size` dimensions doesn't fit into d_in."""
    if not 1 <= size <= d_in:
        raise UserError(f"a subspace of {size} dimensions: must be between 1 and the width of the activations, {d_in}")
