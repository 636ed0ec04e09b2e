"""When to ask again: backoff with jitter, Retry-After and rate-limit headers. Imports no torch."""

from __future__ import annotations

import asyncio
import email.utils
import random
import re
import time
from collections.abc import Mapping
from datetime import datetime

LONGEST = 30.0  # seconds of backoff at most, where the server doesn't say how long

_UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SPAN = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|[smhd]))+")
_LIMITS = (  # (what is left, when there is more): OpenAI's names and Anthropic's
    ("x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"),
    ("x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"),
    ("anthropic-ratelimit-requests-remaining", "anthropic-ratelimit-requests-reset"),
    ("anthropic-ratelimit-tokens-remaining", "anthropic-ratelimit-tokens-reset"),
)


def seconds_until(text: str, now: float) -> float | None:
    """Return the seconds that a header means: "1.5", "6m0s", "20ms", an HTTP date or an RFC 3339 time; None if none.

    now: seconds since 1970.
    """
    text = text.strip()
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    if _SPAN.fullmatch(text):
        return sum(float(n) * _UNITS[unit] for n, unit in re.findall(r"(\d+(?:\.\d+)?)(ms|[smhd])", text))
    for parse in (datetime.fromisoformat, email.utils.parsedate_to_datetime):
        try:
            return max(0.0, parse(text).timestamp() - now)
        except ValueError:
            continue
    return None


def asked_wait(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Return the seconds that a refusal asks to wait, None when it doesn't say. headers: names in any case."""
    now = time.time() if now is None else now
    low = {name.lower(): value for name, value in headers.items()}
    if re.fullmatch(r"\d+(\.\d+)?", low.get("retry-after-ms", "")):
        return float(low["retry-after-ms"]) / 1000
    wait = seconds_until(low["retry-after"], now) if "retry-after" in low else None
    return wait if wait is not None else spent_wait(low, now)


def spent_wait(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Return the seconds until there is more, where the headers say that nothing is left of a limit; else None."""
    now = time.time() if now is None else now
    low = {name.lower(): value for name, value in headers.items()}
    waits = [
        seconds_until(low[reset], now) for left, reset in _LIMITS if low.get(left, "").strip() == "0" and reset in low
    ]
    return max((wait for wait in waits if wait is not None), default=None)


def backoff(attempt: int, first: float, rng: random.Random) -> float:
    """Return the seconds before attempt number `attempt` + 1: doubled each time, and a random half of it."""
    return min(LONGEST, first * 2.0 ** min(attempt, 16)) * (0.5 + 0.5 * rng.random())


class Pace:
    """The pause that all questions under way share: one refusal holds all of them off."""

    def __init__(self) -> None:
        """Start at once."""
        self._until = 0.0

    def hold_off(self, seconds: float) -> None:
        """Let nothing be sent for so long."""
        self._until = max(self._until, time.monotonic() + seconds)

    async def ready(self, rng: random.Random) -> None:
        """Wait until questions may be sent; not all at the same moment."""
        while (left := self._until - time.monotonic()) > 0:
            await asyncio.sleep(left * (1 + 0.1 * rng.random()))
