"""The words that every layer shares. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


class UserError(Exception):
    """A fault that the user can mend.

    The message is one sentence that names the file, field or value and says how to mend it. The command line
    prints it and exits with code 2; Python callers get it as an exception.
    """


class FormatWarning(UserWarning):
    """Something in a file that doesn't keep it from being read, but that its owner should know."""


@dataclass(frozen=True)
class Estimate:
    """A measured quantity: point value, 95 % interval and the number of tokens (or features) behind it."""

    value: float
    low: float
    high: float
    n: int

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form used in every result file."""
        return asdict(self)

    @classmethod
    def exact(cls, value: float, n: int) -> Estimate:
        """Return an estimate without sampling error (a count, a constant)."""
        return cls(value, value, value, n)
