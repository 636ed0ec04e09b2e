"""The pickle in a torch file, read as a list of tensors: nothing that it names is looked up, let alone called.

`torch.save` needs few of pickle's instructions for a state dict, and they are followed here one by one. torch's own
`weights_only` loading runs no code either, but a file can make it allocate any amount, or hash until the end of days.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from monosem.untrusted.words import shown

STORAGES = {
    "torch DoubleStorage": torch.float64,
    "torch FloatStorage": torch.float32,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch LongStorage": torch.int64,
    "torch IntStorage": torch.int32,
    "torch ShortStorage": torch.int16,
    "torch CharStorage": torch.int8,
    "torch ByteStorage": torch.uint8,
    "torch BoolStorage": torch.bool,
}
LITERALS = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE")
FRESH: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}
MAX_SETTINGS = 100
MARK = object()


@dataclass(frozen=True)
class Name:
    """Something of a module, by name."""

    text: str


@dataclass(frozen=True)
class Storage:
    """The numbers of one tensor or several, as claimed: a member of the archive, their type, how many there are."""

    member: str
    dtype: torch.dtype
    numel: int


@dataclass(frozen=True)
class View:
    """A tensor, as claimed: size and stride in numbers of its storage."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def of(self, flat: Tensor) -> Tensor:
        """Return the tensor, given all numbers of its storage. Raises ValueError when they aren't enough."""
        last = self.offset + sum((n - 1) * step for n, step in zip(self.size, self.stride, strict=True))
        numel = 1
        for n in self.size:
            numel *= n
        if min(self.offset, *self.size, *self.stride, 0) < 0 or max(last + 1, numel) > len(flat):
            raise ValueError(f"a tensor claims shape {shown(self.size)}, and there are {len(flat):,} numbers")
        return flat.as_strided(self.size, self.stride, self.offset)


def state_of(data: bytes) -> dict[str, Any]:
    """Return the dict in a pickle: views of tensors, numbers, texts and dicts of them; what else is in it is left out.

    Raises an Exception of some kind for whatever no pickle of a state dict has.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    for operation, argument, _ in pickletools.genops(data):
        name = operation.name
        if name in LITERALS:
            stack.append(argument)
        elif name in FRESH:
            stack.append(FRESH[name]())
        elif name == "GLOBAL":
            stack.append(Name(str(argument)))
        elif name == "MARK":
            stack.append(MARK)
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[int(argument or 0)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[int(argument or 0)])
        elif name == "STOP":
            break
        elif name != "PROTO":
            _combine(name, stack)
    state = stack.pop()
    if type(state) is not dict:
        raise ValueError(f"holds a {type(state).__name__} instead of named tensors")
    return _flat(state)


def _combine(name: str, stack: list[Any]) -> None:
    """Follow an instruction that makes one thing of several on the stack."""
    if name in ("TUPLE", "SETITEMS", "APPENDS"):
        items: list[Any] = []
        while (item := stack.pop()) is not MARK:
            items.append(item)
        items.reverse()
    else:
        count = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "SETITEM": 2, "APPEND": 1}.get(name, 0)
        items = [stack.pop() for _ in range(count)][::-1]
    if name.startswith("TUPLE"):
        stack.append(tuple(items))
    elif name.startswith("SETITEM"):
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) is not str or type(stack[-1]) is not dict:
                raise ValueError("a key that is no text")
            stack[-1][key] = value
    elif name.startswith("APPEND"):
        if type(stack[-1]) is not list:
            raise ValueError("an item of what is no list")
        stack[-1].extend(items)
    elif name == "BINPERSID":
        stack.append(_storage(stack.pop()))
    elif name == "REDUCE":
        arguments, function = stack.pop(), stack.pop()
        stack.append(_made(function, arguments))
    elif name == "BUILD" and type(stack[-2]) is dict:
        stack.pop()  # attributes of an OrderedDict, such as `_metadata`
    else:
        raise ValueError(f"the instruction {name}, which no state dict has")


def _storage(claim: Any) -> Storage:
    if type(claim) is tuple and len(claim) == 5 and claim[0] == "storage" and isinstance(claim[1], Name):
        _, kind, member, _, numel = claim
        if type(member) is str and type(numel) is int and numel >= 0 and kind.text in STORAGES:
            return Storage(member, STORAGES[kind.text], numel)
        raise ValueError(f"numbers of kind {shown(kind.text)}")
    raise ValueError("an odd storage")


def _made(function: Any, arguments: Any) -> Any:
    """Return what a call would have made, without calling anything."""
    called = function.text if isinstance(function, Name) else ""
    if type(arguments) is tuple:
        if called == "collections OrderedDict" and not arguments:
            return {}
        if called == "torch._utils _rebuild_parameter" and arguments and isinstance(arguments[0], View):
            return arguments[0]
        if called == "torch._utils _rebuild_tensor_v2" and len(arguments) >= 4:
            storage, offset, size, stride = arguments[:4]
            lists = type(size) is tuple and type(stride) is tuple and len(size) == len(stride) <= 8
            if isinstance(storage, Storage) and lists and all(type(n) is int for n in (offset, *size, *stride)):
                return View(storage, offset, size, stride)
    raise ValueError(f'calls "{called.replace(" ", ".")[:80]}"')


def _flat(state: dict[str, Any]) -> dict[str, Any]:
    """Return what is of use in a state dict; small dicts only, as many names could share a large one."""
    kept = {key: value for key, value in state.items() if isinstance(value, View) or _is_plain(value)}
    for key, value in state.items():
        if type(value) is dict and len(value) <= MAX_SETTINGS:
            kept[key] = {name: setting for name, setting in value.items() if _is_plain(setting)}
    return kept


def _is_plain(value: Any) -> bool:
    return value is None or type(value) in (bool, int, float, str)
