"""monosem: which sparse autoencoder is better, and is it better for understanding the model?

The public names load on first use, so that `import monosem` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from monosem.formats import convert, load_sae, save_sae
    from monosem.heldout import measure
    from monosem.sae import Sae, make_sae
    from monosem.stages import compare
    from monosem.types import Estimate, UserError

__all__ = ["Estimate", "Sae", "UserError", "compare", "convert", "load_sae", "make_sae", "measure", "save_sae"]
__version__ = "0.1.0"

_HOME = {
    "Estimate": "monosem.types",
    "Sae": "monosem.sae",
    "UserError": "monosem.types",
    "compare": "monosem.stages",
    "convert": "monosem.formats",
    "load_sae": "monosem.formats",
    "make_sae": "monosem.sae",
    "measure": "monosem.heldout",
    "save_sae": "monosem.formats",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'monosem' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
