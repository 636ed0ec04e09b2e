"""What a result file records besides its numbers: machine, versions, commit, time."""

from __future__ import annotations

import os
import time
from importlib import metadata
from typing import Any

MORE_PACKAGES = ("numba", "sae-lens", "dictionary-learning", "eai-sparsify")


def surroundings(load: float) -> dict[str, Any]:
    """Return machine, versions and commit. load: load average of one minute before the benchmark began."""
    import torch

    from monosem.environment import describe

    known = describe()
    loads = {"load_before": load, "load_after": os.getloadavg()[0]}
    versions = {}
    for name in MORE_PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "machine": {**known["machine"], "blas": known["blas"], "capability": known["capability"], **loads},
        "versions": {"python": known["python"], **known["versions"], **versions, "torch": torch.__version__},
        "commit": known["commit"],
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
