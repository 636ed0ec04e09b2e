"""The Matryoshka sparse autoencoder: dictionaries inside one another, each of which has to reconstruct on its own."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from monosem.autoencoder import count_features, nested_reconstructions
from monosem.types import UserError
from monosem.variants import BatchSparse, Codes, Weights


@dataclass(frozen=True, kw_only=True)
class Matryoshka(BatchSparse):
    """Matryoshka BatchTopK autoencoder, Bussmann et al. 2025 (arXiv 2503.17547), section 3.

    Codes f [n, d_sae] are those of BatchTopK: the n k largest of a training batch, a 1[a > theta] everywhere else.
    Loss, with widths m_1 < ... < m_L = d_sae, which are the `fractions` of d_sae (rounded), and V as in TopK:
        xhat_l = f[:, :m_l] W_dec[:m_l] + b_dec                    [n, d_in]
        sum_l mean |x - xhat_l|^2 / V   +   auxk_alpha mean |e - ehat|^2 / mean |e - mean e|^2,    e = sg(x - xhat_L)
    unweighted, as in SAELens. Features of the inner dictionaries can't leave general concepts to the outer ones, which
    keeps them from being absorbed into special cases; so the error of all features is larger than BatchTopK's.
    The rest is as in BatchTopK.
    """

    fractions: tuple[float, ...] = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)

    def widths(self, d_sae: int) -> list[int]:
        """Return m_1 to m_L."""
        return [round(fraction * d_sae) for fraction in self.fractions]

    def check(self, d_in: int, d_sae: int) -> None:
        super().check(d_in, d_sae)
        widths = [0, *self.widths(d_sae)]
        if widths[-1] != d_sae or any(outer <= inner for inner, outer in pairwise(widths)):
            raise UserError(
                f"fractions = {list(self.fractions)}: must rise to 1 and give different widths of d_sae = {d_sae}; "
                f"they give {widths[1:]}"
            )

    def reconstructions(self, w: Weights, codes: Codes) -> list[Tensor]:
        return nested_reconstructions(w, codes, self.widths(count_features(len(w["W_dec"]))))
