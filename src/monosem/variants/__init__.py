"""SAE variants: one short file each, found by file name. `monosem.variant` says what a variant is."""

from __future__ import annotations

import importlib
import json
import pkgutil
from dataclasses import fields
from typing import Any

from pydantic import TypeAdapter, ValidationError

from monosem.families import BatchSparse, KSparse, Penalised
from monosem.kernels import Codes, DenseCodes, RaggedCodes, SparseCodes
from monosem.types import UserError
from monosem.variant import Architecture, Loss, Recipe, Step, Variant, Weights

__all__ = [
    "Architecture",
    "BatchSparse",
    "Codes",
    "DenseCodes",
    "KSparse",
    "Loss",
    "Penalised",
    "RaggedCodes",
    "Recipe",
    "SparseCodes",
    "Step",
    "Variant",
    "Weights",
    "make_variant",
    "variant_class",
    "variant_names",
]


def variant_names() -> list[str]:
    """Return the names of all variants: the modules of this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def variant_class(name: str) -> type[Variant]:
    """Return the variant class that the module `name` of this folder defines.

    Raises UserError when there is no such variant.
    """
    if name not in variant_names():
        raise UserError(f'variant = "{name}": unknown variant; known are {", ".join(variant_names())}')
    module = importlib.import_module(f"{__name__}.{name}")
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Variant) and value.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise TypeError(f"{module.__name__} must define exactly one Variant, found {len(found)}")
    return found[0]


def make_variant(name: str, hyper: dict[str, Any]) -> Variant:
    """Return the variant `name` with checked hyperparameters.

    Raises UserError for an unknown variant, an unknown hyperparameter (naming the known ones) or a wrong type.
    """
    cls = variant_class(name)
    known = [f.name for f in fields(cls)]
    for key in hyper:
        if key not in known:
            raise UserError(f'{key}: unknown key for variant "{name}"; known are {", ".join(known)}')
    try:  # strict as JSON is: 5 for 5.0 and a list for a tuple, but no "5" and no true for 1
        return TypeAdapter(cls).validate_json(json.dumps(hyper, default=repr), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f'{where} = {first["input"]!r}: {first["msg"]} (variant "{name}")') from error
