"""Add a variant: `variants/sqrt.py`, beside this file, is all that it takes.

Copied into src/monosem/variants the file would be found by its name. To leave the package as it is, this example adds
its own folder to the places where variants are looked for. Needs no network and takes seconds.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from compare_in_python import make_study, print_runs

import monosem
import monosem.variants

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Look at the new variant by itself, then train it beside the standard one."""
    monosem.variants.__path__.append(str(HERE / "variants"))
    print("variants:", ", ".join(monosem.variants.variant_names()))

    sae = monosem.make_sae("sqrt", d_in=32, d_sae=128, knee=0.5)
    loss = sae.loss(torch.randn(64, 32))
    print(sae.variant)
    print("loss:", {name: round(float(term), 3) for name, term in loss.terms.items()})

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        study = make_study(folder)
        study["run"] = [
            {"variant": "standard", "l1_coefficient": [0.3, 1.0]},
            {"variant": "sqrt", "l1_coefficient": [0.3, 1.0], "knee": 0.5},
        ]
        monosem.compare(study, folder / "out", say=print)
        print_runs(folder / "out")


if __name__ == "__main__":
    main()
