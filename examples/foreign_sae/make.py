"""Trains the SAE of this folder with EleutherAI's sparsify, on activations that `monosem harvest` stored.

    monosem harvest quickstart --out runs/quickstart
    .venv-oracle/bin/python examples/foreign_sae/make.py runs/quickstart/activations

sparsify's own `SparseCoder` computes the loss (fraction of variance unexplained plus AuxK) and writes the files. Its
`Trainer` is left out, because it runs the whole language model on a GPU. Takes about five minutes on one core.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from sparsify import SparseCoder, SparseCoderConfig
from sparsify.__main__ import RunConfig

from monosem.activations import open_activations, prefetched, training_order

D_SAE, K = 512, 24
BATCH, STEPS, LR, AUXK, DEAD_AFTER = 1024, 2500, 2e-3, 1 / 32, 100_000
HERE = Path(__file__).resolve().parent


def main(activations: Path) -> None:
    """Train the SAE and write config.json and layers.10/."""
    torch.manual_seed(0)
    store = open_activations(activations, "train")
    config = SparseCoderConfig(num_latents=D_SAE, k=K)
    sae = SparseCoder(store.d_in, config)
    optimiser = torch.optim.Adam(sae.parameters(), lr=LR)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(1.0, (STEPS - step) / (0.3 * STEPS)))
    silent = torch.zeros(D_SAE, dtype=torch.int64)
    order = training_order(store.n, BATCH, STEPS, capacity=store.n, seed=0)
    for step, x in enumerate(prefetched(store, order)):
        if step == 0:
            sae.b_dec.data = x.mean(0)
        out = sae(x, dead_mask=silent > DEAD_AFTER)
        (out.fvu + AUXK * out.auxk_loss).backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
        sae.set_decoder_norm_to_unit_norm()
        silent += len(x)
        silent[out.latent_indices.unique()] = 0
        if step % 200 == 0:
            dead = int((silent > DEAD_AFTER).sum())
            print(f"step {step}: FVU {float(out.fvu.detach()):.4f}, {dead} dead", flush=True)
    sae.to(torch.bfloat16).save_to_disk(HERE / "layers.10")
    run = RunConfig(
        sae=config,
        model="HuggingFaceTB/SmolLM2-135M-Instruct",
        dataset="the corpus that monosem comes with",
        ctx_len=128,
        layers=[10],
        batch_size=BATCH // 128,
        optimizer="adam",
        lr=LR,
        lr_warmup_steps=0,
        auxk_alpha=AUXK,
        dead_feature_threshold=DEAD_AFTER,
        log_to_wandb=False,
    )
    run.save_json(HERE / "config.json", indent=2)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
