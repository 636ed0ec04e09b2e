"""Blinded rating of features by people: drawing, storing and analysing (section J).

The mathematics is here as pure functions on arrays. Imports no torch.
"""

from __future__ import annotations

from monosem.rating.agreement import alpha
from monosem.rating.comparison import compare_runs

__all__ = ["alpha", "compare_runs"]
