"""What a result file records besides its numbers: machine, versions, commit, time."""

from __future__ import annotations

import os
import time
from typing import Any

MORE_PACKAGES = ("sae-lens", "dictionary-learning", "eai-sparsify")


def surroundings(load: float) -> dict[str, Any]:
    """Return machine, versions and commit. load: load average of one minute before the benchmark began."""
    import torch

    from monosem.environment import describe, versions

    known = describe()
    loads = {"load_before": load, "load_after": os.getloadavg()[0]}
    return {
        "machine": {**known["machine"], "blas": known["blas"], "capability": known["capability"], **loads},
        "versions": {
            "python": known["python"],
            **known["versions"],
            **versions(MORE_PACKAGES),
            "torch": torch.__version__,
        },
        "commit": known["commit"],
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
