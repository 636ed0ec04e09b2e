"""Train three SAEs with other libraries on a study's activations, each saved by its library in its own format.

    .venv-oracle/bin/python benchmarks/foreign.py runs/quickstart runs/foreign

sae-lens makes a BatchTopK SAE (saved as JumpReLU), dictionary_learning a TopK with AuxK, sparsify a TopK. All see raw
activations times the scale that gives them a mean norm of sqrt(d_in), one pass in stored order after one permutation;
the scale is folded by each library's own means, so that the files take raw activations. `benchmarks/foreign.toml` puts
them beside the quickstart's runs.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from monosem.activations import open_activations
from monosem.normaliser import fit_normaliser

D_SAE, BATCH, LR, K = 4096, 512, 2e-3, 50


def batches(folder: Path) -> tuple[float, Tensor]:
    """Return the scale of the activations and the scaled rows, permuted."""
    store = open_activations(folder / "activations", "train")
    raw = store.rows(torch.arange(store.n).numpy())
    scale = fit_normaliser("mean_norm", raw).scale
    return scale, raw[torch.randperm(store.n, generator=torch.Generator().manual_seed(0))] * scale


def sae_lens(x: Tensor, scale: float, out: Path) -> None:
    """BatchTopK, k 50; `fold_activation_norm_scaling_factor`, `save_inference_model`."""
    import sae_lens as library
    from sae_lens.saes.sae import TrainStepInput

    config = library.BatchTopKTrainingSAEConfig(d_in=x.shape[1], d_sae=D_SAE, k=K, apply_b_dec_to_input=True)
    sae = library.BatchTopKTrainingSAE(config)
    optimiser = torch.optim.Adam(sae.parameters(), lr=LR)
    dead = torch.zeros(D_SAE, dtype=torch.bool)
    for index, batch in enumerate(x.split(BATCH)):
        step = TrainStepInput(
            sae_in=batch, coefficients={}, dead_neuron_mask=dead, n_training_steps=index, is_logging_step=False
        )
        _update(optimiser, sae.training_forward_pass(step).loss, index, len(x) // BATCH)
    sae.fold_activation_norm_scaling_factor(scale)
    sae.cfg.metadata.hook_name = "blocks.10.hook_resid_post"
    sae.cfg.metadata.model_name = "SmolLM2-135M-Instruct"
    sae.save_inference_model(out)


def dictionary_learning(x: Tensor, scale: float, out: Path) -> None:
    """TopK with AuxK, k 50, its own trainer; `scale_biases`, its ae.pt and config.json."""
    from dictionary_learning.trainers.top_k import TopKTrainer

    steps = len(x) // BATCH
    trainer = TopKTrainer(
        steps=steps,
        activation_dim=x.shape[1],
        dict_size=D_SAE,
        k=K,
        layer=10,
        lm_name="HuggingFaceTB/SmolLM2-135M-Instruct",
        lr=LR,
        warmup_steps=1,
        decay_start=int(0.8 * steps),
        threshold_start_step=steps // 4,
        seed=0,
        device="cpu",
        submodule_name="resid_post_layer_10",
    )
    for index, batch in enumerate(x.split(BATCH)):
        trainer.update(index, batch)
    trainer.ae.scale_biases(1 / scale)
    out.mkdir(parents=True, exist_ok=True)
    torch.save(trainer.ae.state_dict(), out / "ae.pt")
    config = {"trainer": trainer.config, "buffer": {"d_submodule": x.shape[1], "ctx_len": 128}}
    (out / "config.json").write_text(json.dumps(config, indent=2, default=str))


def sparsify(x: Tensor, scale: float, out: Path) -> None:
    """TopK, k 50; biases divided by the scale, `save_to_disk`."""
    from sparsify import SparseCoder, SparseCoderConfig

    coder = SparseCoder(x.shape[1], SparseCoderConfig(num_latents=D_SAE, k=K), dtype=torch.float32)
    optimiser = torch.optim.Adam(coder.parameters(), lr=LR)
    for index, batch in enumerate(x.split(BATCH)):
        coder.set_decoder_norm_to_unit_norm()
        variance = (batch - batch.mean(0)).pow(2).sum()
        _update(optimiser, coder(x=batch, y=batch, total_variance=variance).fvu, index, len(x) // BATCH)
    with torch.no_grad():
        coder.encoder.bias /= scale
        coder.b_dec /= scale
    coder.save_to_disk(out)


def _update(optimiser: torch.optim.Optimizer, loss: Tensor, index: int, steps: int) -> None:
    for group in optimiser.param_groups:
        group["lr"] = LR * min(1.0, (steps - index) / (0.2 * steps))
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()


MAKERS: dict[str, Callable[[Tensor, float, Path], None]] = {
    "sae_lens": sae_lens,
    "dictionary_learning": dictionary_learning,
    "sparsify/layers.10": sparsify,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="a study folder with harvested activations")
    parser.add_argument("out", type=Path, help="where to write the three SAEs")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    scale, x = batches(args.study)
    for name, make in MAKERS.items():
        make(x, scale, args.out / name)
        print(f"{args.out / name}")


if __name__ == "__main__":
    main()
