"""The verdict: one card a variant, with its error ratio against the baseline at equal sparsity."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from monosem.report.inputs import finite
from monosem.report.numbers import short
from monosem.report.tables import Cell, Column, Table

VERDICTS = {
    "lower": ("lower error", "▼"),
    "higher": ("higher error", "▲"),
    "undecided": ("undecided", "◆"),
    "not comparable": ("not comparable", "–"),
}


@dataclass(frozen=True)
class Card:
    """A variant's verdict; positions are percentages of the bar, on one logarithmic scale for all cards."""

    variant: str
    verdict: str
    words: str
    icon: str
    ratio: str = "–"
    interval: str = ""
    span: str = ""
    reason: str = ""
    value: float | None = None
    left: float | None = None
    width: float | None = None
    one: float | None = None


def verdict_cards(headline: dict[str, Any]) -> list[Card]:
    """Return the cards in the order of the comparisons."""
    comparisons = [item for item in headline.get("comparisons") or [] if isinstance(item, dict)]
    numbers = [number for item in comparisons for number in _ratio(item) if number is not None and number > 0]
    low, high = math.log(min([*numbers, 0.95])), math.log(max([*numbers, 1.05]))
    pad = 0.08 * (high - low)
    low, high = low - pad, high + pad

    def place(number: float) -> float:
        return round(100 * (math.log(number) - low) / (high - low), 2)

    return [_card(item, place) for item in comparisons]


def _ratio(comparison: dict[str, Any]) -> tuple[float | None, float | None, float | None]:
    ratio = comparison.get("ratio")
    if not isinstance(ratio, dict):
        return None, None, None
    return finite(ratio.get("value")), finite(ratio.get("low")), finite(ratio.get("high"))


def _ratio_digits(*numbers: float | None) -> int:
    """Return two decimals, or three where two would write a bound as exactly 1."""
    return 3 if any(n is not None and n != 1 and round(n, 2) == 1 for n in numbers) else 2


def _card(comparison: dict[str, Any], place: Callable[[float], float]) -> Card:
    verdict = str(comparison.get("verdict") or "not comparable")
    words, icon = VERDICTS.get(verdict, (verdict, "–"))
    value, low, high = _ratio(comparison)
    card = Card(
        variant=str(comparison.get("variant", "")),
        verdict=verdict if verdict in VERDICTS else "not comparable",
        words=words,
        icon=icon,
        reason=str(comparison.get("reason") or ""),
    )
    first, last = finite(comparison.get("l0_low")), finite(comparison.get("l0_high"))
    if first is not None and last is not None:
        card = replace(card, span=f"L0 {first:.0f}" + (f" to {last:.0f}" if first != last else ""))
    if value is None or value <= 0:
        return card
    digits = _ratio_digits(value, low, high)
    card = replace(card, ratio=f"{value:.{digits}f}×", value=place(value), one=place(1.0))
    if low is None or high is None or low <= 0:
        return card
    width = round(max(place(high) - place(low), 0.6), 2)
    return replace(card, interval=f"[{low:.{digits}f}, {high:.{digits}f}]", left=place(low), width=width)


def equal_l0_table(headline: dict[str, Any], labels: dict[str, str]) -> Table | None:
    """Return errors and ratios at each compared L0, or None when there are none."""
    rows = []
    for comparison in headline.get("comparisons") or []:
        for item in comparison.get("at") or []:
            variant = str(comparison.get("variant", ""))
            ratio = item.get("ratio") if isinstance(item.get("ratio"), dict) else {"value": item.get("ratio")}
            value, low, high = _ratio({"ratio": ratio})
            digits = _ratio_digits(value, low, high)
            interval = f"[{low:.{digits}f}, {high:.{digits}f}]" if low is not None and high is not None else ""
            missing = "Outside the L0 range that both variants cover."
            rows.append(
                [
                    Cell(labels.get(variant, variant), sort=variant, variant=variant),
                    _number(item.get("l0"), missing),
                    _number(item.get("nmse"), missing),
                    _number(item.get("baseline_nmse"), missing),
                    Cell("–", reason=missing) if value is None else Cell(f"{value:.{digits}f}", interval, value),
                ]
            )
    if not rows:
        return None
    baseline = labels.get(str(headline.get("baseline")), str(headline.get("baseline")))
    columns = [
        Column("Variant", number=False),
        Column("L0", "features a token", "The sparsity at which both are read off their curves."),
        Column("NMSE", "fraction", "The variant's error at this L0, interpolated between its runs."),
        Column(f"NMSE, {baseline}", "fraction", "The baseline's error at the same L0."),
        Column("Ratio", "", "NMSE divided by the baseline's at the same L0: below 1 is better."),
    ]
    return Table("equal-l0-table", "Error at equal sparsity", columns, rows)


def _number(value: Any, missing: str) -> Cell:
    number = finite(value)
    return Cell("–", reason=missing) if number is None else Cell(short(number), sort=number)
