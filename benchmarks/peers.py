"""The other libraries, each driven through its own training loop, one step at a time.

An adapter is built from the common weights (transposed where the library stores them so) and has `step(x)`, one whole
training step, and `check(x)`, what the library's own forward pass computes. Both use the library's functions only.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor
from workload import Check, Setting, Start

STEPS = 1_000_000
LATE = 500_000  # the step that the benchmark pretends to be at: every warm-up is over


class SaeLens:
    """sae-lens: `SAETrainer.step`, with what `SAETrainer.fit` does around it for every batch."""

    def __init__(self, setting: Setting, start: Start, *, sparse: bool = False):
        """Build the SAE and its trainer; sparse: the TopK path on sparse tensors."""
        import sae_lens
        from sae_lens.config import SAETrainerConfig
        from sae_lens.training.sae_trainer import SAETrainer

        options: dict[str, Any] = {"d_in": setting.d_in, "d_sae": setting.d_sae, "device": "cpu", "dtype": "float32"}
        if setting.topk:
            kind = "TopK"
            options |= {"k": setting.k, "apply_b_dec_to_input": True}
            if sparse:  # with the decoder norms in the activations, the backward pass of this path fails on the CPU
                options |= {"use_sparse_activations": True, "rescale_acts_by_decoder_norm": False}
                warnings.filterwarnings("ignore", message="Sparse invariant checks")
        else:
            kind = "Gated" if setting.variant == "gated" else "Standard"
            options |= {"l1_coefficient": setting.l1_coefficient, "apply_b_dec_to_input": False}
        sae = getattr(sae_lens, f"{kind}TrainingSAE")(getattr(sae_lens, f"{kind}TrainingSAEConfig")(**options))
        sae.load_state_dict(start.weights)
        config = SAETrainerConfig(
            total_training_samples=STEPS * setting.batch,
            train_batch_size_samples=setting.batch,
            lr=setting.lr,
            lr_end=setting.lr,  # outside of the library's runner nothing fills it in
        )
        self.batch = start.pool[: setting.batch]
        self.trainer = SAETrainer(config, sae, self._provider())
        self.auxk = setting.auxk
        self.mark_dead(start.dead)

    def _provider(self) -> Iterator[Tensor]:
        while True:
            yield self.batch

    def mark_dead(self, dead: Tensor) -> None:
        """Start the counters of these features, bool [d_sae], beyond the library's threshold."""
        self.trainer.n_forward_passes_since_fired[dead] = self.trainer.cfg.dead_feature_window + 1

    def step(self, x: Tensor) -> None:
        """Do what one turn of the loop in `fit` does, without its progress bar and logging."""
        self.batch = x
        self.trainer.maybe_reset_sparsity()
        self.trainer.step(next(self.trainer.data_provider))
        self.trainer._checkpoint_if_needed()
        self.trainer.n_training_steps += 1

    @torch.no_grad()
    def check(self, x: Tensor) -> Check:
        """Return what `training_forward_pass` computes."""
        from sae_lens.saes.sae import TrainStepInput

        trainer = self.trainer
        out = trainer.sae.training_forward_pass(
            TrainStepInput(
                sae_in=x,
                coefficients=trainer.get_coefficients(),
                dead_neuron_mask=trainer.dead_neurons,
                n_training_steps=trainer.n_training_steps,
                is_logging_step=False,
            )
        )
        acts = out.feature_acts.to_dense() if out.feature_acts.is_sparse else out.feature_acts
        aux = float(out.losses["auxiliary_reconstruction_loss"]) if self.auxk else None
        return Check(float(out.losses["mse_loss"]), _l0(acts), aux, int(trainer.dead_neurons.sum()))


class DictionaryLearning:
    """dictionary_learning: the trainers' own `update(step, x)`."""

    NAMES: ClassVar = {
        "standard": {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight", "b_dec": "bias"},
        "topk": {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight", "b_dec": "b_dec"},
        "gated": {
            "W_enc": "encoder.weight",
            "W_dec": "decoder.weight",
            "b_dec": "decoder_bias",
            "b_gate": "gate_bias",
            "b_mag": "mag_bias",
            "r_mag": "r_mag",
        },
    }

    def __init__(self, setting: Setting, start: Start):
        """Build the trainer: StandardTrainerAprilUpdate, GatedSAETrainer or TopKTrainer."""
        from dictionary_learning.trainers.gdm import GatedSAETrainer
        from dictionary_learning.trainers.standard import StandardTrainerAprilUpdate
        from dictionary_learning.trainers.top_k import TopKTrainer

        options: dict[str, Any] = {
            "steps": STEPS,
            "activation_dim": setting.d_in,
            "dict_size": setting.d_sae,
            "layer": 0,
            "lm_name": "",
            "lr": setting.lr,
            "warmup_steps": 0,
            "device": "cpu",
        }
        if setting.topk:
            kind, self.trainer = "topk", TopKTrainer(**options, k=setting.k)
        else:
            options |= {"l1_penalty": setting.l1_coefficient, "sparsity_warmup_steps": None}
            kind = "gated" if setting.variant == "gated" else "standard"
            self.trainer = (GatedSAETrainer if kind == "gated" else StandardTrainerAprilUpdate)(**options)
        for ours, theirs in self.NAMES[kind].items():
            weight = start.weights[ours]
            self.trainer.ae.get_parameter(theirs).data.copy_(weight if weight.dim() == 1 else weight.T)
        self.topk, self.auxk, self.index = setting.topk, setting.auxk, LATE
        self.mark_dead(start.dead)

    def mark_dead(self, dead: Tensor) -> None:
        """Start the counters of these features, bool [d_sae], beyond the library's threshold (TopK only has any)."""
        if self.topk:
            self.trainer.num_tokens_since_fired[dead] = self.trainer.dead_feature_threshold + 1

    def step(self, x: Tensor) -> None:
        """Do one step. (Step 0 would set the decoder bias, the first 1,000 leave the threshold's average out.)"""
        self.trainer.update(self.index, x)
        self.index += 1

    @torch.no_grad()
    def check(self, x: Tensor) -> Check:
        """Return what `loss(logging=True)` computes. It counts the batch as seen."""
        log = self.trainer.loss(x, self.index, logging=True)
        mse = log.losses["l2_loss" if self.topk else "mse_loss"]
        aux = log.losses["auxk_loss"] if self.auxk else None
        return Check(mse, _l0(log.f), aux, self.trainer.dead_features if self.topk else 0)


class Sparsify:
    """eai-sparsify: what `sparsify.trainer.Trainer.fit` and the hook inside it do for every batch.

    Their Trainer only runs inside a language model. The calls are those of version 1.3.3 in its order, for loss_fn
    "fvu", optimizer "adam", no accumulation and one process (the tests compare the weights with those that the
    library's own Trainer makes).
    """

    def __init__(self, setting: Setting, start: Start):
        """Build the coder, Adam and the schedule as `Trainer.__init__` does."""
        with contextlib.redirect_stdout(io.StringIO()):  # it prints that Triton is missing
            from sparsify import SparseCoder, SparseCoderConfig
        from transformers import get_linear_schedule_with_warmup

        config = SparseCoderConfig(num_latents=setting.d_sae, k=setting.k)
        self.coder = SparseCoder(setting.d_in, config, dtype=torch.float32)
        names = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "W_dec", "b_dec": "b_dec"}
        for ours, theirs in names.items():
            weight = start.weights[ours]
            self.coder.get_parameter(theirs).data.copy_(weight.T if ours == "W_enc" else weight)
        self.auxk_alpha = 1 / 32 if setting.auxk else 0.0
        self.threshold = 10_000_000
        groups = [{"params": self.coder.parameters(), "lr": setting.lr}]
        self.optimizer = torch.optim.Adam(groups)
        self.scheduler = get_linear_schedule_with_warmup(self.optimizer, 0, STEPS)
        self.silent = torch.zeros(setting.d_sae, dtype=torch.long)
        self.did_fire = torch.zeros(setting.d_sae, dtype=torch.bool)
        self.average_fvu = self.average_auxk = 0.0
        self.mark_dead(start.dead)

    def mark_dead(self, dead: Tensor) -> None:
        """Start the counters of these features, bool [d_sae], beyond the library's threshold."""
        self.silent[dead] = self.threshold + 1

    def _forward(self, x: Tensor) -> Any:
        dead = self.silent > self.threshold if self.auxk_alpha > 0 else None
        return self.coder(x=x, y=x, dead_mask=dead, total_variance=(x - x.mean(0)).pow(2).sum())

    def step(self, x: Tensor) -> None:
        """Do one step: the hook's part (to `backward`), then the loop's."""
        x = x[torch.ones(len(x), dtype=torch.bool)]  # the hook takes the tokens that are not excluded
        self.coder.set_decoder_norm_to_unit_norm()
        out = self._forward(x)
        self.did_fire[out.latent_indices.flatten()] = True
        self.average_fvu += float(out.fvu.detach())
        if self.auxk_alpha > 0:
            self.average_auxk += float(out.auxk_loss.detach())
        (out.fvu + self.auxk_alpha * out.auxk_loss + out.multi_topk_fvu / 8).backward()
        self.coder.remove_gradient_parallel_to_decoder_directions()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()
        with torch.no_grad():
            self.silent += len(x)
            self.silent[self.did_fire] = 0
            self.did_fire.zero_()
        self.average_fvu = self.average_auxk = 0.0

    @torch.no_grad()
    def check(self, x: Tensor) -> Check:
        """Return what the coder's `forward` computes; its fraction of variance unexplained becomes an MSE."""
        out = self._forward(x)
        mse = float(out.fvu) * float((x - x.mean(0)).pow(2).sum()) / len(x)
        dead = int((self.silent > self.threshold).sum())
        return Check(mse, _l0(out.latent_acts), float(out.auxk_loss) if self.auxk_alpha > 0 else None, dead)


def _l0(acts: Tensor) -> float:
    """Return the mean number of values above 0 in a row of `acts` [n, ...]."""
    return float((acts > 0).sum() / len(acts))
