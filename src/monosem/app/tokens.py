"""Tokens of the held-out text as HTML: coloured by activation, with the value to hover over. Text is escaped here."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup, escape

from monosem.examples import shade
from monosem.firings import Fires
from monosem.passages import Passages, Window
from monosem.report.numbers import short

STRETCHES = 4096  # whose largest activations are sorted, instead of a million activations
LEVELS = 20  # shades of the highlighting: classes a1 to a20 of app.css
SPECIAL = {"\n": "↵", "\t": "⇥", "\r": "␍", "\u00a0": "⍽"}


def visible(text: str) -> str:
    """Return a token's text with line breaks and control characters as signs, and no direction of its own."""
    return "".join(SPECIAL.get(c) or (c if _printable(c) else "·") for c in text)


def _printable(character: str) -> bool:
    if character.isascii():
        return " " <= character < "\x7f"
    return unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp")


def level(value: float, peak: float) -> int:
    """Return the shade 0 to 20 of an activation: a twentieth of the peak each, rounded up."""
    return min(LEVELS, math.ceil(LEVELS * value / peak - 1e-9)) if value > 0 and peak > 0 else 0


def token_html(text: str, value: float, peak: float, here: bool = False) -> Markup:
    """Return one token as a span. here: the token that the example is about."""
    shown = escape(visible(text))
    classes = [f"a{level(value, peak)}"] * (value > 0) + ["here"] * here
    if not classes:
        return Markup("<span>{}</span>").format(shown)
    value_text = f' data-tip="{short(float(f"{value:.3g}"))}"' if value > 0 else ""
    return Markup(f'<span class="{" ".join(classes)}"{value_text}>') + shown + Markup("</span>")


def window_html(window: Window, fires: Fires, peak: float, at: int | None = None) -> Markup:
    """Return a window as HTML. peak: M, the activation of the darkest shade; at: another token than the middle one."""
    return tokens_html(window.text, shade(window, fires).tolist(), peak, window.at if at is None else at)


def tokens_html(texts: Sequence[str], values: Sequence[float], peak: float, at: int = -1) -> Markup:
    """Return tokens with their activations as HTML; at: index of the one that it is about."""
    pairs = enumerate(zip(texts, values, strict=True))
    return Markup("").join(token_html(text, value, peak, i == at) for i, (text, value) in pairs)


def strongest_tokens(fires: Fires, passages: Passages, number: int = 4) -> list[str]:
    """Return the texts of the tokens on which a feature is strongest, each once, at most `number`."""
    value, looked_at = fires.value, min(len(fires.value), 5 * number)
    if not looked_at:
        return []
    stretches = np.arange(0, len(value), max(1, len(value) // STRETCHES))
    least = np.sort(np.maximum.reduceat(value, stretches))[-looked_at]  # so many are at least this, and hardly any more
    strongest = np.flatnonzero(value >= least)
    texts: dict[str, None] = {}
    for i in strongest[np.argsort(-value[strongest], kind="stable")][:looked_at]:
        texts[visible(passages.window(int(fires.doc[i]), int(fires.pos[i]), 0, 0).text[0])] = None
    return list(texts)[:number]
