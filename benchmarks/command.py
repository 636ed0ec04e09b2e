"""How the scripts here end: with one sentence and exit code 2 for what the user can mend."""

from __future__ import annotations

import sys
from collections.abc import Callable

from monosem.types import UserError


def exit_code(work: Callable[[], object]) -> int:
    """Call `work` and return 0, or print the UserError that it raises and return 2."""
    try:
        work()
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0
