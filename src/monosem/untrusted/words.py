"""What a stranger's file says, in the words of an error: short, on one line, printable, and quick to make."""

from __future__ import annotations

from reprlib import Repr
from typing import Any


class _Short(Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxother = self.maxlong = 80
        self.maxlevel = 3

    def repr_str(self, x: str, level: int) -> str:
        return f'"{printable(x if len(x) <= 80 else x[:77] + "...")}"'


def shown(value: Any) -> str:
    """Return `repr(value)`, shortened before it is made: nested lists that share parts would be endless."""
    return printable(_SHORT.repr(value))


def words(error: BaseException) -> str:
    """Return the first line of an error, shortened: torch explains itself at length."""
    text = printable((str(error) or type(error).__name__).strip().splitlines()[0])
    return text if len(text) <= 160 else text[:157] + "..."


def printable(text: str) -> str:
    """Return a text without anything that could move a terminal's cursor."""
    return "".join(c if c.isprintable() else "?" for c in text)


_SHORT = _Short()
