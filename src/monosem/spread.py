"""Language models that don't fit on one device, spread over several, memory and disk by Accelerate (optional)."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from monosem.types import UserError


@dataclass(frozen=True)
class Spread:
    """How a model that doesn't fit on one device is spread over this machine's devices, its memory and its disk.

    device_map: Accelerate's `auto`, `balanced`, `balanced_low_0` or `sequential`; "" for one device. max_memory: what
    each may hold at most (`{"0": "20GiB", "cpu": "60GiB"}`); the rest of the weights stays on disk.
    """

    device_map: str = ""
    max_memory: dict[str, str] = field(default_factory=dict)

    def options(self) -> dict[str, Any]:
        """Return arguments of `from_pretrained`. Raises UserError without Accelerate, or for a size that is none."""
        if not self.device_map:
            return {}
        if importlib.util.find_spec("accelerate") is None:
            raise UserError(
                f'model.device_map = "{self.device_map}": needs Accelerate; install it with pip install '
                "'monosem[large]'"
            )
        from accelerate.utils import convert_file_size_to_int

        logging.getLogger("accelerate.big_modeling").setLevel(logging.ERROR)  # it warns of what was asked for

        try:
            limits = {
                int(key) if key.isdecimal() else key: int(convert_file_size_to_int(value))
                for key, value in self.max_memory.items()
            }
        except ValueError as error:
            raise UserError(f"model.max_memory = {self.max_memory}: {error}") from error
        count = torch.cuda.device_count()
        if absent := [key for key in limits if isinstance(key, int) and key >= count]:
            raise UserError(f"model.max_memory = {self.max_memory}: no GPU {absent[0]} here; this machine has {count}")
        return {"device_map": self.device_map, **({"max_memory": limits} if limits else {})}

    def check(self, lm: Any) -> None:
        """Raise UserError when nothing of a loaded model fits into memory."""
        if set(lm.hf_device_map.values()) == {"disk"}:
            raise UserError(f"model.max_memory = {self.max_memory}: nothing of the model fits into that; allow more")


@contextlib.contextmanager
def loaded(*modules: nn.Module) -> Iterator[None]:
    """Have the weights of modules in memory, to be read, also where Accelerate has left them on disk."""
    with contextlib.ExitStack() as stack:
        for module in modules:
            if hasattr(module, "_hf_hook"):
                from accelerate.utils import align_module_device

                stack.enter_context(align_module_device(module))
        yield
