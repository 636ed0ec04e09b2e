"""Model cards for the hub: what SAEs are, what was measured, how to load them, how they were made. Imports no torch.

Everything is read from files: cfg.json of each SAE, and summary.json, study.toml and environment.json of the study.
"""

from __future__ import annotations

from monosem.card.page import model_card, write_card
from monosem.card.sharing import shared_files

__all__ = ["model_card", "shared_files", "write_card"]
