"""What the benchmark times is the same work: every adapter starts from our weights and computes our loss."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.oracle

BENCHMARKS = str(Path(__file__).resolve().parents[2] / "benchmarks")
VARIANTS = ("standard", "tanh", "gated", "topk", "topk-auxk")
PEERS = ("sae-lens", "sae-lens-sparse", "dictionary-learning", "eai-sparsify")
TOPK_ONLY = ("sae-lens-sparse", "eai-sparsify")
CASES = [(v, p) for v in VARIANTS for p in PEERS if v.startswith("topk") or p not in TOPK_ONLY]


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("sae_lens", "dictionary_learning", "sparsify"):
        pytest.importorskip(module)
    monkeypatch.syspath_prepend(BENCHMARKS)


def prepared(variant: str, **changes: Any) -> tuple[Any, Any]:
    from workload import Setting, prepare

    return prepare(Setting(variant, **{"d_sae": 192, "d_in": 24, "batch": 64, "k": 6, "l0": 12.0, **changes}), None)


def test_the_cases_are_those_of_the_roster() -> None:
    from roster import PEERS as ROSTER

    assert set(CASES) == {(variant, name) for name, peer in ROSTER.items() for variant in peer.variants}


@pytest.mark.parametrize(("variant", "peer"), CASES)
def test_first_loss_agrees_and_steps_run(variant: str, peer: str) -> None:
    from ours import Ours
    from roster import PEERS as ROSTER

    setting, start = prepared(variant)
    ours, theirs = Ours(setting, start), ROSTER[peer].build(setting, start)
    batches = start.batches(setting.batch)
    for x in batches[:2]:
        mine, other = ours.check(x), theirs.check(x)
        assert other.mse == pytest.approx(mine.mse, rel=1e-5)
        assert other.l0 == pytest.approx(mine.l0, abs=1e-6)
    for x in batches[:5]:
        ours.step(x)
        theirs.step(x)
    mine, other = ours.check(batches[5]), theirs.check(batches[5])
    assert other.mse == pytest.approx(mine.mse, rel=1e-3)  # the learning rate is tiny: the workload stays
    assert other.l0 == pytest.approx(mine.l0, abs=0.1)
    if variant == "topk-auxk":
        assert mine.dead == other.dead == int(start.dead.sum()) == 19
        assert mine.aux > 0
        assert other.aux > 0
    else:
        assert mine.aux is other.aux is None


@pytest.mark.parametrize(("variant", "peer"), CASES)
def test_a_step_trains(variant: str, peer: str) -> None:
    from roster import PEERS as ROSTER

    setting, start = prepared(variant, lr=1e-3)
    theirs = ROSTER[peer].build(setting, start)
    x = start.batches(setting.batch)[0]
    before = theirs.check(x).mse
    for _ in range(20):
        theirs.step(x)
    after = theirs.check(x).mse
    assert math.isfinite(after)
    assert after < before


@pytest.mark.parametrize("variant", ["standard", "tanh", "gated"])
def test_l0_is_the_target(variant: str) -> None:
    from ours import Ours

    setting, start = prepared(variant, batch=512)
    ours, batches = Ours(setting, start), start.batches(512)
    assert ours.check(batches[0]).l0 == pytest.approx(12.0, abs=0.01)
    for x in batches:
        assert ours.check(x).l0 == pytest.approx(12.0, rel=0.1)


def test_dictionary_learning_has_our_auxk() -> None:
    from ours import Ours
    from roster import PEERS as ROSTER

    # d_in 32: half of it is a power of two, so that both select as many dead features
    setting, start = prepared("topk-auxk", d_in=32)
    x = start.batches(setting.batch)[0]
    theirs = ROSTER["dictionary-learning"].build(setting, start)
    assert theirs.check(x).aux == pytest.approx(Ours(setting, start).check(x).aux, rel=1e-5)


class Lookup(torch.nn.Module):
    """The least of a language model that sparsify's Trainer needs: token i has row i of a table as its activation."""

    device = torch.device("cpu")

    def __init__(self, table: torch.Tensor):
        super().__init__()
        self.layer = torch.nn.Identity()
        self.register_buffer("table", table)
        self.dummy_inputs = {"x": torch.zeros((1, 1), dtype=torch.long)}

    @property
    def base_model(self) -> torch.nn.Module:
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(self.table[x])


@pytest.mark.parametrize("variant", ["topk", "topk-auxk"])
def test_sparsify_steps_are_those_of_its_own_trainer(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peers import Sparsify
    from sparsify import SparseCoderConfig, TrainConfig, Trainer

    setting, start = prepared(variant, lr=1e-3)
    rows = 5 * setting.batch
    dataset = [{"input_ids": torch.tensor([row])} for row in range(rows)]
    config = TrainConfig(
        SparseCoderConfig(num_latents=setting.d_sae, k=setting.k),
        batch_size=setting.batch,
        optimizer="adam",
        lr=setting.lr,
        lr_warmup_steps=0,
        auxk_alpha=1 / 32 if setting.auxk else 0.0,
        hookpoints=["layer"],
        finetune="set, so that step 0 leaves the decoder bias alone",
        log_to_wandb=False,
        save_dir=str(tmp_path),
    )
    trainer = Trainer(config, dataset, Lookup(start.pool[:rows]))
    ours = Sparsify(setting, start)
    theirs = trainer.saes["layer"]
    theirs.load_state_dict(ours.coder.state_dict())
    trainer.num_tokens_since_fired["layer"].copy_(ours.silent)
    # the schedule falls over the length of a training: give ours the length of theirs
    ours.scheduler.lr_lambdas = trainer.lr_schedulers[0].lr_lambdas
    precision = torch.get_float32_matmul_precision()
    trainer.fit()  # sets it to "high"
    torch.set_float32_matmul_precision(precision)
    for x in start.batches(setting.batch)[:5]:
        ours.step(x)
    for name, weight in ours.coder.state_dict().items():
        torch.testing.assert_close(weight, theirs.state_dict()[name], rtol=0, atol=0, msg=name)
    assert torch.equal(ours.silent, trainer.num_tokens_since_fired["layer"])
