"""SAEs trained in seconds, and the usual mistakes planted into them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from monosem.doctor import Diagnosis
from monosem.equivalents import Plain, as_jumprelu, plain
from monosem.normaliser import fit_normaliser, fold
from monosem.sae import Sae
from monosem.trainer import Plan, Preparation, RunSpec, Trainer
from monosem.variants import Recipe, make_variant

HARMLESS = 1.12  # ratio of NMSEs up to which a mistake need not be named
ADDED = ("b_enc", "b_gate", "b_mag", "threshold")


@dataclass(frozen=True)
class Plant:
    """A misread SAE: what it computes, where it is read, and the kinds that the doctor should name."""

    found: Plain
    site: str
    kinds: frozenset[str] = frozenset()
    verdict: str = "mistake"
    special: bool = False

    def outcome(self, found: Diagnosis, exact: float) -> str:
        """Return named, harmless or missed. exact: NMSE of the SAE as it was trained."""
        if found.verdict == self.verdict and found.kinds == self.kinds:
            return "named"
        right = self.verdict == "mistake" and found.verdict == "right"
        return "harmless" if right and found.rows[0].nmse.value < HARMLESS * exact else "missed"


def train_all(raw: Tensor, steps: int, d_sae: int, k: int, l1: float, lr: float = 3e-3) -> dict[str, Plain]:
    """Train a standard, a gated and a TopK SAE on raw activations; the gated one's equal is the JumpReLU SAE."""
    normaliser = fit_normaliser("mean_norm", raw)
    x = normaliser.apply(raw)[0]
    start = Preparation(normaliser, float(x.double().var(dim=0, correction=0).sum()), x[:4096])
    generator = torch.Generator().manual_seed(0)
    plan = Plan(batch_size=min(512, len(x)), steps=steps)
    kinds = {"standard": {"l1_coefficient": l1}, "gated": {"l1_coefficient": l1}, "topk": {"k": k}}
    trainers = [
        Trainer(RunSpec(name, name, make_variant(name, hyper), d_sae, 0, Recipe(lr=lr)), plan, start, x.device)
        for name, hyper in kinds.items()
    ]
    for step in range(steps):
        batch = x[torch.randint(0, len(x), (plan.batch_size,), generator=generator)]
        for trainer in trainers:
            trainer.step(batch, step, False)
    saes = {}
    for trainer in trainers:
        weights = {name: value.detach().clone().contiguous() for name, value in trainer.weights.items()}
        spec = trainer.spec
        saes[spec.name] = plain(Sae(spec.variant_name, spec.variant, weights, normaliser))
    return {**saes, "jumprelu": as_jumprelu(saes["gated"])}


def plants(p: Plain, s: float, site: str, others: dict[str, str]) -> dict[str, Plant]:
    """Return the misread SAEs by name. s: the normaliser's scale; others: names of sites that are wrong, by plant."""
    w, norms = p.weights, p.weights["W_dec"].norm(dim=1)
    generator = torch.Generator().manual_seed(1)

    def scaled(names: tuple[str, ...], factor: float | Tensor) -> Plain:
        return replace(p, weights={name: v * factor if name in names else v for name, v in w.items()})

    def made(found: Plain, *kinds: str) -> Plant:
        return Plant(found, site, frozenset(kinds))

    def swapped(q: Plain) -> Plain:
        e, d = q.weights["W_enc"], q.weights["W_dec"]
        return replace(q, weights={**q.weights, "W_enc": d.t().contiguous(), "W_dec": e.t().contiguous()})

    d_in = w["W_dec"].shape[1]
    turn = torch.linalg.qr(torch.randn(d_in, d_in, generator=generator))[0]
    order = torch.randperm(len(norms), generator=generator)
    turned = {"W_enc": turn @ w["W_enc"], "W_dec": w["W_dec"] @ turn.t(), "b_dec": turn @ w["b_dec"]}
    noise = {name: torch.randn(v.shape, generator=generator) * v.std() for name, v in w.items()}
    missing, toggled = replace(p, weights=fold(w, 1 / s)), replace(p, centred=not p.centred)
    out = {
        "as trained": Plant(p, site, verdict="right"),
        "bfloat16 weights": Plant(
            replace(p, weights={n: v.bfloat16().float() for n, v in w.items()}), site, verdict="right"
        ),
        **{name: Plant(p, other, frozenset({"site"})) for name, other in others.items()},
        "position 0 included": Plant(p, site, frozenset({"positions"}), special=True),
        "normalisation missing": made(missing, "normalisation"),
        "normalisation doubled": made(replace(p, weights=fold(w, s)), "normalisation"),
        "normalisation by token instead": made(replace(missing, per_token="token_ln"), "normalisation"),
        "normalisation not undone": made(scaled(("W_dec", "b_dec"), s), "normalisation"),
        "input not normalised": made(scaled(("W_enc",), 1 / s), "normalisation"),
        "b_dec subtraction toggled": made(toggled, "b_dec"),
        "b_dec in other units": made(scaled(("b_dec",), s), "b_dec units"),
        "encoder biases in other units": made(scaled(ADDED, 1 / s), "biases"),
        "encoder and decoder exchanged": made(swapped(p), "roles"),
        "features in another order": made(replace(p, weights={**w, "W_dec": w["W_dec"][order]}), "order"),
        "another model": Plant(replace(p, weights={**w, **turned}), site, verdict="unknown"),
        "random weights": Plant(replace(p, weights=noise), site, verdict="unknown"),
        "missing, and another site": replace(made(missing, "normalisation", "site"), site=next(iter(others.values()))),
        "exchanged, and b_dec toggled": made(swapped(toggled), "roles", "b_dec"),
    }
    if norms.log().std() > 0.05:
        out["norms folded into the encoder only"] = made(scaled(("W_enc", *ADDED), norms), "decoder norms")
        out["norms folded into the decoder only"] = made(scaled(("W_dec",), 1 / norms[:, None]), "decoder norms")
    if p.architecture == "topk":
        out["k halved"], out["k doubled"] = (made(replace(p, k=k), "k") for k in (p.k // 2, p.k * 2))
        out["k ignored"] = made(Plain("standard", w, p.centred), "activation")
    if p.architecture == "jumprelu":
        relu = {name: value for name, value in w.items() if name != "threshold"}
        log = {**w, "threshold": w["threshold"].clamp_min(1e-6).log()}
        out["thresholds in other units"] = made(scaled(("threshold",), 1 / s), "threshold")
        out["thresholds as logarithms"] = made(replace(p, weights=log), "threshold")
        out["thresholds ignored"] = made(Plain("standard", relu, p.centred), "activation")
    if p.architecture == "gated":
        gates = {**w, "b_gate": w["b_mag"], "b_mag": w["b_gate"]}
        out["b_gate and b_mag exchanged"] = made(replace(p, weights=gates), "biases")
        relu = {"W_enc": w["W_enc"] * w["r_mag"].exp(), "b_enc": w["b_mag"], "W_dec": w["W_dec"], "b_dec": w["b_dec"]}
        out["gate ignored"] = made(Plain("standard", relu, p.centred), "activation")
    return out
