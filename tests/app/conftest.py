"""The made-up study, once for all tests that only read it."""

from __future__ import annotations

from pathlib import Path

import pytest

from .study import make_study


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study(tmp_path_factory.mktemp("study"))
