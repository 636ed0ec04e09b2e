"""Numbers as text: as many digits as the interval deserves, the same in a whole column."""

from __future__ import annotations

import math
from typing import Any

from monosem.report.inputs import finite

THIN_SPACE = "\u2009"
MINUS = "\u2212"


def decimals_for(estimates: list[dict[str, Any]]) -> int:
    """Return how many decimals a column needs so that the median interval's half-width shows two digits."""
    widths, values = [], []
    for estimate in estimates:
        value, low, high = (finite(estimate.get(key)) for key in ("value", "low", "high"))
        if value is None:
            continue
        values.append(value)
        if low is not None and high is not None and high > low:
            widths.append((high - low) / 2)
    width = sorted(widths)[len(widths) // 2] if widths else 1.0
    if values and width >= 1 and all(float(value).is_integer() for value in values):
        return 0
    if widths:
        return min(6, max(0, 1 - math.floor(math.log10(width))))
    largest = max((abs(value) for value in values), default=0)
    return 3 if largest == 0 else min(6, max(0, 3 - math.floor(math.log10(largest))))


def fixed(value: float, decimals: int) -> str:
    """Return the number with thin spaces between thousands; scientific where fixed decimals would show nothing."""
    if value != 0 and abs(value) < 0.5 * 10**-decimals and decimals >= 6:
        return f"{value:.2g}".replace("-", MINUS)
    text = f"{value:,.{decimals}f}".replace(",", THIN_SPACE)
    return text.replace("-", MINUS) if float(f"{value:.{decimals}f}") != 0 else text.lstrip("-")


def short(value: Any) -> str:
    """Return a number for reading, with four significant digits; other values as they are."""
    number = finite(value)
    if number is None:
        return "–" if value is None or isinstance(value, float) else str(value)
    if isinstance(number, int) or (float(number).is_integer() and abs(number) < 1e15):
        return fixed(number, 0)
    size = math.floor(math.log10(abs(number)))
    if size < -4 or size > 8:
        return f"{number:.3g}"
    text = fixed(number, max(0, 3 - size))
    return text.rstrip("0").rstrip(".") if "." in text else text


def tokens(value: Any) -> str:
    """Return a token count as 20 M, 1.05 M or 200 k."""
    number = finite(value)
    if number is None:
        return "–"
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= limit:
            return f"{number / limit:.3g} {suffix}"
    return f"{number:g}"


def plain(value: Any) -> str:
    """Return a hyperparameter's value as it would be typed."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(plain(item) for item in value)
    return str(value)
