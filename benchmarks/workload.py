"""What is timed: a setting, a pool of activations, and the weights that every library starts from.

Nothing here imports monosem at module level, so that the process that measures a peer's memory doesn't hold it.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

VARIANTS = ("standard", "tanh", "gated", "topk", "topk-auxk")
POOL_BATCHES = 8
MEMORY_BATCHES = 3  # batches that the memory processes get
DEAD_SCALE = 0.05
D_IN = 576


@dataclass(frozen=True)
class Setting:
    """What one run of the benchmark fixes. l0: target for ReLU variants; dead: share of features, in topk-auxk."""

    variant: str
    d_sae: int
    d_in: int = D_IN
    batch: int = 2048
    k: int = 32
    l0: float = 50.0
    dead: float = 0.1
    lr: float = 1e-7
    l1_coefficient: float = 5.0
    threads: int = 1
    train_steps: int = 0
    seed: int = 0

    @property
    def topk(self) -> bool:
        """Return whether this is a TopK variant, with or without AuxK."""
        return self.variant.startswith("topk")

    @property
    def auxk(self) -> bool:
        """Return whether dead features are trained by AuxK."""
        return self.variant == "topk-auxk"

    def check(self) -> None:
        """Raise UserError when a value makes no benchmark."""
        from monosem.types import UserError

        if self.variant not in VARIANTS:
            raise UserError(f"--variant {self.variant}: unknown variant; known are {', '.join(VARIANTS)}")
        for name in ("d_sae", "d_in", "batch", "k", "threads"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be at least 1")
        if self.topk and self.k > self.d_sae // 2:
            raise UserError(f"--k {self.k}: must be at most half of --d-sae {self.d_sae}")
        if not 0 < self.l0 < self.d_sae / 2:
            raise UserError(f"--l0 {self.l0}: must be above 0 and below half of --d-sae {self.d_sae}")
        if not (0 < self.dead <= 0.5 and round(self.dead * self.d_sae) >= 1):
            raise UserError(f"--dead {self.dead}: must be a share of the features, above 0 and at most 0.5")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise UserError(f"--lr {self.lr}: must be a number above 0")


@dataclass
class Start:
    """What every library starts from.

    pool: normalised activations [batches * batch, d_in]; weights: under our names and shapes; variance: total variance
    of the pool (sum over d_in, mean over tokens); dead: bool [d_sae], the features whose counters start beyond the
    threshold.
    """

    pool: Tensor
    weights: dict[str, Tensor]
    variance: float
    dead: Tensor

    def batches(self, size: int) -> list[Tensor]:
        """Return the pool as whole batches [size, d_in]."""
        return [part for part in self.pool.split(size) if len(part) == size]


@dataclass(frozen=True)
class Check:
    """What a library computes on a batch, by its own forward pass.

    mse: squared error (sum over d_in, mean over tokens); l0: active features a token; aux: AuxK loss before its
    coefficient, in the library's own unit, None without AuxK; dead: features that its counters call dead.
    """

    mse: float
    l0: float
    aux: float | None = None
    dead: int = 0


def synthetic(n: int, d_in: int, seed: int) -> Tensor:
    """Return made-up raw activations [n, d_in] with the structure of a residual stream.

    A Gaussian whose singular values fall as rank^-0.5 in random directions, a token-wise factor (log-normal, sigma
    0.1), a mean as long as the typical deviation, and three dimensions that are 20 times as large, as the outlier
    dimensions of language models are.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    mixing = torch.linalg.qr(normal(d_in, d_in))[0] * torch.arange(1, d_in + 1).rsqrt()[:, None]
    x = normal(n, d_in) @ mixing
    x = (0.1 * normal(n, 1)).exp() * x
    scale = x.square().mean().sqrt()
    x += scale * normal(d_in)
    outliers = torch.randperm(d_in, generator=generator)[:3]
    x[:, outliers] = 20 * scale * (1 + 0.1 * normal(n, len(outliers)))
    return x


def read_activations(path: Path, rows: int, seed: int) -> Tensor:
    """Return `rows` random raw activations [rows, d_in], float32, from a safetensors file with `x` or a study folder.

    Raises UserError when there is no such file, it has no `x`, or it has too few tokens.
    """
    import numpy as np

    from monosem.types import UserError

    if path.is_dir():
        from monosem.activations import open_activations

        folder = path / "activations" if (path / "activations").is_dir() else path
        store = open_activations(folder, "train")
        n, gather = store.n, store.rows
    else:
        try:
            with safe_open(path, framework="pt") as file:
                x = file.get_tensor("x")
        except (OSError, SafetensorError) as error:
            raise UserError(f"--activations {path}: no safetensors file with a tensor `x` ({error})") from error
        n, gather = len(x), lambda index: x[torch.from_numpy(index)].float()
    if n < rows:
        raise UserError(f"--activations {path}: has {n} tokens, {rows} are needed; lower --batch")
    return gather(np.sort(np.random.default_rng(seed).choice(n, size=rows, replace=False)))


def prepare(setting: Setting, activations: Path | None) -> tuple[Setting, Start]:
    """Return the setting (with the d_in of the activations) and what every library starts from."""
    from monosem.normaliser import fit_normaliser

    rows = POOL_BATCHES * setting.batch
    if activations is None:
        raw = synthetic(rows, setting.d_in, setting.seed)
    else:
        raw = read_activations(activations, rows, setting.seed)
        setting = replace(setting, d_in=raw.shape[1])
    pool = fit_normaliser("mean_norm", raw).apply(raw)[0]
    pool = pool[torch.randperm(len(pool), generator=torch.Generator().manual_seed(setting.seed))]
    variance = float(pool.double().var(dim=0, correction=0).sum())
    start = Start(pool, {}, variance, torch.zeros(setting.d_sae, dtype=torch.bool))
    start.weights = first_weights(setting, start)
    if setting.auxk:
        _make_dead(setting, start)
    elif not setting.topk:
        _shift_biases(setting, start)
    return setting, start


def variant_of(setting: Setting) -> tuple[str, Any]:
    """Return the name and our variant that this setting times.

    Gated starts from decoder rows of norm 1, where the loss that sae-lens and we train (norms in the penalty) and
    dictionary-learning's (norms held at 1) have the same value.
    """
    from monosem.variants import make_variant

    name = "topk" if setting.topk else setting.variant
    hyper: dict[str, Any] = {"k": setting.k} if setting.topk else {"l1_coefficient": setting.l1_coefficient}
    if setting.auxk:
        hyper["auxk"] = True
    if name == "gated":
        hyper["decoder_init_norm"] = 1.0
    return name, make_variant(name, hyper)


def first_weights(setting: Setting, start: Start) -> dict[str, Tensor]:
    """Return our fresh weights, trained for `train_steps` by our own recipe."""
    _, variant = variant_of(setting)
    generator = torch.Generator().manual_seed(setting.seed)
    weights = variant.init(setting.d_in, setting.d_sae, generator, start.pool[: 2 * setting.batch])
    if setting.train_steps:
        from ours import Ours

        start.weights = weights
        ours = Ours(replace(setting, lr=variant.recipe(setting.d_sae).lr), start)
        batches = start.batches(setting.batch)
        for step in range(setting.train_steps):
            ours.step(batches[step % len(batches)])
        weights = {name: w.detach().contiguous().clone() for name, w in ours.trainer.weights.items()}
        if not setting.topk:
            weights["b_dec"].zero_()  # dictionary-learning subtracts it from the input, the others don't
    return weights


@torch.no_grad()
def _shift_biases(setting: Setting, start: Start) -> None:
    """Set the encoder biases so that `l0` features a token are active, each feature about equally often.

    b_i = -(mean_i + t std_i) of feature i's products over the pool; t is what leaves the target over the first batch.
    """
    W_enc, x = start.weights["W_enc"], start.pool[: setting.batch]
    mean = start.pool.mean(0) @ W_enc
    std = ((torch.cov(start.pool.T) @ W_enc) * W_enc).sum(0).clamp_min(1e-12).sqrt()
    largest = []  # of every 256 tokens; many more than are looked for
    for part in x.split(256):
        z = ((part @ W_enc).sub_(mean).div_(std)).flatten()
        largest.append(z.topk(min(z.numel(), round(8 * setting.l0 * len(part))), sorted=False).values)
    z = torch.cat(largest)
    t = z.kthvalue(max(1, z.numel() - round(setting.l0 * len(x)))).values
    for name in ("b_enc", "b_gate", "b_mag"):
        if name in start.weights:
            start.weights[name] = -(mean + t * std)


@torch.no_grad()
def _make_dead(setting: Setting, start: Start) -> None:
    """Scale the encoder columns of `dead` features down, so that they are never among the k largest.

    They stay positive on half of the tokens. (A very negative bias would keep them out as well, but what AuxK selects
    would then be all zeros after a ReLU, and libraries that skip zeros would be timed doing nothing.)
    """
    generator = torch.Generator().manual_seed(setting.seed + 1)
    start.dead[torch.randperm(setting.d_sae, generator=generator)[: round(setting.dead * setting.d_sae)]] = True
    start.weights["W_enc"][:, start.dead] *= DEAD_SCALE
    start.weights["b_enc"][start.dead] = 0


def write_start(path: Path, setting: Setting, start: Start) -> None:
    """Write what a memory process needs: the setting, a few batches, the weights."""
    tensors = {f"w.{name}": w.contiguous() for name, w in start.weights.items()}
    pool = start.pool[: MEMORY_BATCHES * setting.batch].contiguous()
    facts = {"setting": json.dumps(asdict(setting)), "variance": str(start.variance)}
    save_file({**tensors, "pool": pool, "dead": start.dead}, path, metadata=facts)


def read_start(path: Path) -> tuple[Setting, Start]:
    """Return what `write_start` wrote; the weights are memory-mapped."""
    with safe_open(path, framework="pt") as file:
        facts = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    weights = {name[2:]: w for name, w in tensors.items() if name.startswith("w.")}
    setting = Setting(**json.loads(facts["setting"]))
    return setting, Start(tensors["pool"].clone(), weights, float(facts["variance"]), tensors["dead"].clone())
