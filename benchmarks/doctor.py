"""Plant the usual mistakes into SAEs of the embedded model and count how many the doctor names.

    .venv/bin/python benchmarks/doctor.py --layer 20 --tokens 1500 --json doctor.json

SAEs of four architectures are trained for seconds at `blocks.LAYER.hook_resid_post`; every mistake of
`tests/doctor/planted.py` is planted into each. A mistake counts as harmless where the doctor calls the file right and
the error is within 12 % of that of the SAE as it was trained; only others can be missed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.doctor.planted import plants, train_all

from monosem.doctor import Sample, examine, take_sample
from monosem.equivalents import sae_of
from monosem.model import load_model
from monosem.normaliser import fit_normaliser
from monosem.sources import documents
from monosem.text import pack

ARCHITECTURES = ("topk", "standard", "jumprelu", "gated")


def activations(layer: int, train_tokens: int, tokens: int) -> tuple[torch.Tensor, Sample]:
    """Return training activations [n, 576] without outliers, and a held-out sample with the sites beside."""
    model, site = load_model(), f"blocks.{layer}.hook_resid_post"
    held_out = take_sample(model, site, d_in=576, tokens=tokens)
    rows = pack(documents(), model.tokenizer, context=128, train_tokens=train_tokens, eval_tokens=4000).train
    pieces = []
    for start in range(0, len(rows.tokens), 8):
        part, keep = (torch.from_numpy(values[start : start + 8]) for values in (rows.tokens, rows.keep))
        pieces.append(model.activations(part.long(), model.site(site))[keep].float())
    x = torch.cat(pieces)
    norms = x.norm(dim=1)
    return x[norms < 10 * norms.median()], held_out


def main() -> None:
    """Print one line a mistake and the counts of each architecture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--layer", type=int, default=20, help="1 to 28")
    parser.add_argument("--tokens", type=int, default=4000, help="held-out tokens that the doctor reads, at least")
    parser.add_argument("--train-tokens", type=int, default=40_000)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--d-sae", type=int, default=1024)
    parser.add_argument("--architectures", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    parser.add_argument("--mistakes", nargs="+", default=[""], help="those whose names contain one of these")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    layer = arguments.layer
    here = f"blocks.{layer}.hook_resid_post"
    others = {
        "hook one block early": f"blocks.{layer - 1}.hook_resid_post",
        "hook one block late": f"blocks.{layer + 1}.hook_resid_post",
        "hook_mlp_out": f"blocks.{layer}.hook_mlp_out",
    }
    x, held_out = activations(layer, arguments.train_tokens, arguments.tokens)
    saes = train_all(x, steps=arguments.steps, d_sae=arguments.d_sae, k=32, l1=2.0)
    scale, rows = fit_normaliser("mean_norm", x).scale, []
    for architecture in arguments.architectures:
        exact = 1.0
        for name, plant in plants(saes[architecture], scale, here, others).items():
            if name != "as trained" and not any(part in name for part in arguments.mistakes):
                continue
            sample = replace(held_out, x={plant.site: held_out.x[plant.site], **held_out.x})
            positions = "all" if plant.special else "text"
            found = examine(sae_of(plant.found, {}), sample=sample, positions=positions)
            as_read = found.rows[0]
            exact = as_read.nmse.value if name == "as trained" else exact
            outcome = plant.outcome(found, exact)
            named = ", ".join(change.what for change in found.changes) or found.verdict
            rows.append({"architecture": architecture, "mistake": name, "outcome": outcome, "named": named})
            rows[-1] |= {"explained_variance": as_read.explained_variance.value, "l0": as_read.l0.value}
            ev = as_read.explained_variance.value
            figures = f"EV {ev:9.3f}  L0 {as_read.l0.value:6.1f}"
            print(f"{architecture:9} {name:36} {outcome:9} {figures}  {named}", flush=True)
    for architecture in arguments.architectures:
        counts = Counter(row["outcome"] for row in rows if row["architecture"] == architecture)
        print(f"{architecture}: {counts['named']} named, {counts['harmless']} harmless, {counts['missed']} missed")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
