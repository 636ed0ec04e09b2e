"""The table of docs/formats.md: what an SAE is once it was written in a format and read again.

`python -m tests.formats.table` prints it; the tests compute it and compare it with the page.
"""

from __future__ import annotations

import tempfile

import monosem
from monosem.formats import format_names
from monosem.types import UserError
from tests.formats.making import HYPER, NORMALISERS, activations, distance, random_sae

LIMIT = 1e-6
FORMATS = ["saelens", *(name for name in format_names() if name != "saelens")]
UNITS = {"none": "none or scalar", "mean_norm": "none or scalar"}


def comes_back_as(variant: str, centred: bool, normaliser: str, form: str) -> str:
    """Return the variant that comes back from `form`, or "–" when it refuses; fails when it is another function."""
    hyper = {"subtract_b_dec": centred}
    sae = random_sae(variant, hyper, normaliser)
    with tempfile.TemporaryDirectory() as folder:
        try:
            monosem.save_sae(sae, folder, form)
        except UserError:
            if form == "saelens":
                raise
            return "–"
        back = monosem.load_sae(folder)
    x = activations()
    assert distance(back(x), sae(x)) < LIMIT, (variant, centred, normaliser, form)
    assert distance(back.encode(x), sae.encode(x)) < LIMIT, (variant, centred, normaliser, form)
    assert bool((sae.encode(x) > 0).any(1).all()), "a test of nothing"
    if form == "saelens":
        assert (back.variant, back.normaliser) == (sae.variant, sae.normaliser)
        return "itself"
    return f"`{back.variant_name}`"


def rows() -> list[tuple[str, str, list[str]]]:
    """Return variants, normalisers and what comes back from each format; equal rows of a variant are one."""
    found: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for variant in HYPER:
        for normaliser in NORMALISERS:
            cells = [comes_back_as(variant, False, normaliser, form) for form in FORMATS]
            assert cells == [comes_back_as(variant, True, normaliser, form) for form in FORMATS], "centring matters"
            units = UNITS.get(normaliser, f"`{normaliser}`")
            listed = found.setdefault((variant, tuple(cells)), [])
            if units not in listed:
                listed.append(units)
    grouped: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (variant, cells), units in found.items():
        grouped.setdefault((", ".join(units), cells), []).append(f"`{variant}`")
    return [(", ".join(variants), units, list(cells)) for (units, cells), variants in grouped.items()]


def table() -> str:
    """Return the table in Markdown."""
    names = [f"`{form}`" for form in FORMATS]
    lines = [["variant", "normaliser", *names], *([variants, units, *cells] for variants, units, cells in rows())]
    head, *body = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([head, "|---" * (2 + len(names)) + "|", *body])


if __name__ == "__main__":
    print(table())
