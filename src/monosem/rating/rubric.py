"""The two scales of the rating, with their anchors word for word from the source (section J.1)."""

from __future__ import annotations

from typing import NamedTuple


class Scale(NamedTuple):
    """A five-level scale: the field it is stored in, its name, and its anchors from 5 to 1."""

    field: str
    name: str
    anchors: tuple[tuple[int, str], ...]


SCALES = (
    Scale(
        "consistency",
        "Activation Consistency",
        (
            (5, "Clear pattern with no deviating examples"),
            (4, "Clear pattern with one or two deviating examples"),
            (3, "Clear overall pattern but quite a few examples not fitting that pattern"),
            (2, "Broad consistent theme but lacking structure"),
            (1, "No discernible pattern"),
        ),
    ),
    Scale(
        "complexity",
        "Complexity",
        (
            (
                5,
                "Rich feature firing on diverse contexts with an interesting unifying theme, "
                "e.g. “feelings of togetherness”",
            ),
            (4, "Feature relating to high-level semantic structure, e.g. “return statements in code”"),
            (
                3,
                "Moderate complexity, such as a phrase, category, or tracking sentence structure e.g. “website URLs”",
            ),
            (
                2,
                "Single word or token feature but including multiple languages or spelling e.g. “mentions of dog”",
            ),
            (1, "Single token feature e.g. “ the token ‘(‘”"),
        ),
    ),
)
