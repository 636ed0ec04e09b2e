"""How the kernels work: threads, chunk, precision of the first look, reference. None of it changes what is computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import torch

from monosem.kernels import cpu, screen

reference: ContextVar[bool] = ContextVar("reference", default=False)
"""Whether the slow, readable references compute everything."""


@contextmanager
def reference_kernels(on: bool = True) -> Iterator[None]:
    """Compute everything by the slow references inside this context (and by torch's Adam in trainers made in it)."""
    token = reference.set(on)
    try:
        yield
    finally:
        reference.reset(token)


def configure(
    *, threads: int = 0, chunk: int = cpu.CHUNK, first_look: Literal["auto", "int8", "float32"] = "auto"
) -> None:
    """Set what the kernels of this process use.

    threads: 0 leaves torch's number; chunk: tokens whose products with all features are in memory at a time;
    first_look: precision in which candidates are found, `auto` measures which is faster.
    """
    if threads:
        torch.set_num_threads(threads)
    cpu.CHUNK = chunk
    screen.choose_screen(first_look)


def describe(device: torch.device = torch.device("cpu")) -> dict[str, Any]:  # noqa: B008
    """Return what the kernels use on a device, for the record."""
    if reference.get():
        return {"reference": True, "threads": torch.get_num_threads()}
    look = screen.screen_precision() if device.type == "cpu" else "bfloat16"
    return {"first_look": look, "chunk": cpu.CHUNK, "threads": torch.get_num_threads()}
