"""Logs and numbers are copied to a tracker whole and once, and a tracker never costs a training."""

from __future__ import annotations

import copy
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import monosem
from monosem.store import file_hash
from monosem.types import UserError
from tests.conftest import study_of

FAKE = '''
"""Behaves as W&B does: steps only rise, a run that is resumed online goes on after its last step."""
import json, os
from pathlib import Path

server = {}
calls = []

def login():
    calls.append("login")
    if os.environ.get("FAKE_LOGIN") == "none":
        raise RuntimeError("api_key not configured (no-tty)")

def Settings(**values):
    return values

class Run:
    def __init__(self, options):
        offline = os.environ.get("WANDB_MODE") == "offline"
        if offline:
            where = Path(options["dir"]) / "wandb" / f"offline-run-{len(calls)}-{options['id']}"
            where.mkdir(parents=True)
            self.held = {"history": [], "summary": {}}
        else:
            self.held = server.setdefault(options["id"], {"history": [], "summary": {}, "options": options, "exit": []})
        calls.append(options)
        self.held["exit"] = self.held.get("exit", [])
        self.step = 1 + max([row["_step"] for row in self.held["history"]], default=-1)
        self.summary = self.held["summary"]

    def log(self, values, step, commit):
        assert commit and step >= self.step, "a row of the past is dropped by W&B"
        if step >= int(os.environ.get("FAKE_BREAKS_AT", 10**9)):
            raise ConnectionError("the network is down\\nmore of it")
        self.held["history"].append({"_step": step, **values})
        self.step = step + 1

    def finish(self, exit_code):
        self.held["exit"].append(exit_code)

def init(**options):
    assert options["reinit"] == "create_new" and options["resume"] == "allow"
    return Run(options)
'''


RUNS = [{"variant": "standard", "l1_coefficient": 0.5}, {"variant": "topk", "k": 8}]


@pytest.fixture(scope="module")
def harvested(tmp_path_factory: pytest.TempPathFactory, tiny_lm: Path, corpus: Path) -> tuple[dict[str, Any], Path]:
    """A study of two runs and 50 steps, 11 of them logged, and its folder with activations."""
    study = study_of(tiny_lm, corpus, RUNS)
    study["train"] |= {"log_every": 5, "checkpoint_seconds": 1e-9}
    folder = tmp_path_factory.mktemp("harvested") / "out"
    monosem.compare(study, folder, only="harvest")
    return study, folder


@pytest.fixture
def small(harvested: tuple[dict[str, Any], Path], tmp_path: Path) -> dict[str, Any]:
    """The study, in `tmp_path / "out"`."""
    study, folder = harvested
    shutil.copytree(folder, tmp_path / "out")
    return copy.deepcopy(study)


def work(study: dict[str, Any], folder: Path, *stages: str) -> list[str]:
    """Do stages of a study, train and measure by default; return what was said."""
    said: list[str] = []
    for stage in stages or ("train", "measure"):
        monosem.compare(study, folder, only=stage, say=said.append)
    return said


@pytest.fixture
def wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A made-up `wandb`, online."""
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "wandb.py").write_text(FAKE)
    monkeypatch.syspath_prepend(tmp_path / "fake")
    for name in [name for name in sys.modules if name.partition(".")[0] == "wandb"]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    import wandb

    yield wandb
    del sys.modules["wandb"]


def tracked(study: dict[str, Any], kind: str) -> dict[str, Any]:
    return {**study, "train": {**study["train"], "track": kind}}


def logs(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of each run's log, without missing values."""
    found = {path.parent.name: pl.read_parquet(path).to_dicts() for path in folder.glob("saes/*/log.parquet")}
    return {run: [{k: v for k, v in row.items() if v is not None} for row in rows] for run, rows in found.items()}


def interrupted(monkeypatch: pytest.MonkeyPatch, at: int, error: type[BaseException]) -> None:
    """Let the training stop at a step, once."""
    from monosem import train

    step_all: Callable[..., None] = train.step_all

    def stop(trainers: Any, x: Any, index: int, *rest: Any) -> None:
        if index == at:
            monkeypatch.setattr(train, "step_all", step_all)
            raise error(f"stopped at {at}")
        step_all(trainers, x, index, *rest)

    monkeypatch.setattr(train, "step_all", stop)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return what TensorBoard's own reader finds in a folder, each event."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    reader = accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {tag: [(e.step, e.value) for e in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def held_out(folder: Path, run: str) -> dict[str, float]:
    """Return what was measured of a run."""
    found = {}
    for evaluation in ("density", "frontier"):
        result = json.loads((folder / "results" / run / evaluation / "result.json").read_text())
        found |= {name: estimate["value"] for name, estimate in result["scalars"].items() if estimate}
    return found


def check_event_files(folder: Path) -> None:
    """Compare the event files of a study that was measured with its logs and results."""
    for run, rows in logs(folder).items():
        found = scalars(folder / "tensorboard" / run)
        names = {name for row in rows for name in row} - {"step"}
        assert {"tokens", "loss", "l0", "nmse", "dead", "lr", "gradient_norm", "tokens_per_second"} < names
        for name in names:
            steps, values = zip(*[(row["step"], row[name]) for row in rows if name in row], strict=True)
            assert [step for step, _ in found[name]] == list(steps), name
            assert [value for _, value in found[name]] == pytest.approx(list(values), rel=1e-6)
        numbers = held_out(folder, run)
        copied = {name.removeprefix("heldout/"): found[name] for name in found if name.startswith("heldout/")}
        assert {"l0", "nmse", "ce_recovered", "dead_fraction"} < set(copied)
        for name, events in copied.items():
            assert events == [(rows[-1]["step"], pytest.approx(numbers[name], rel=1e-6))], name
    assert {run: len(rows) for run, rows in logs(folder).items()} == {"standard-l1_0.5": 11, "topk-k8": 11}


def test_event_files_hold_every_row_once_and_the_numbers(small: dict[str, Any], tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    folder = tmp_path / "out"
    work(tracked(small, "tensorboard"), folder, "train")
    watching = accumulator.EventAccumulator(str(folder / "tensorboard" / "topk-k8")).Reload()
    events = watching.Scalars("loss")
    work(tracked(small, "tensorboard"), folder, "measure")
    assert watching.Reload().Scalars("loss") == events  # the times at which they were logged, too
    check_event_files(folder)
    before = sorted(folder.glob("tensorboard/*/events.*"))
    work(tracked(small, "tensorboard"), folder, "measure")
    assert sorted(folder.glob("tensorboard/*/events.*")) == before  # nothing new, nothing written
    small["measure"]["ce_tokens"] = 200  # other numbers, in place of the old ones
    work(tracked(small, "tensorboard"), folder, "measure")
    check_event_files(folder)


def test_event_files_of_one_second_are_read_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard ends the names with a counter without leading zeros: 9 would come after 10."""
    pytest.importorskip("tensorboard")
    from tensorboard.summary.writer import event_file_writer

    from monosem.tracking import _TensorBoard

    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(9))
    for value in range(2):
        copy = _TensorBoard(tmp_path, whole=False)
        copy.log(0, {"loss": float(value)})
        copy.close(False)
    assert scalars(tmp_path)["loss"] == [(0, 1.0)]


@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError])
def test_event_files_of_a_resumed_training(
    small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    folder = tmp_path / "out"
    if error is UserError:
        small["train"]["checkpoint_seconds"] = 3600  # begins anew at step 0; else it goes on at 23
    interrupted(monkeypatch, 23, error)
    with pytest.raises(error):
        work(tracked(small, "tensorboard"), folder)
    watching = accumulator.EventAccumulator(str(folder / "tensorboard" / "topk-k8")).Reload()
    assert [event.step for event in watching.Scalars("loss")] == [0, 5, 10, 15, 20]  # there already
    work(tracked(small, "tensorboard"), folder)
    check_event_files(folder)
    assert [event.step for event in watching.Reload().Scalars("loss")] == [*range(0, 50, 5), 49]


def test_a_tracker_changes_no_result_and_may_come_later(small: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    shutil.copytree(tmp_path / "out", tmp_path / "tracked")
    work(small, tmp_path / "out")
    work(tracked(small, "tensorboard"), tmp_path / "tracked", "train")
    for run in ("standard-l1_0.5", "topk-k8"):
        ours, theirs = (tmp_path / name / "saes" / run / "sae_weights.safetensors" for name in ("out", "tracked"))
        assert file_hash(ours) == file_hash(theirs)
    said = work(tracked(small, "tensorboard"), tmp_path / "out")
    assert said == [f"{stage}: reused, its inputs have not changed" for stage in ("train", "measure")]
    check_event_files(tmp_path / "out")


def check_server(wandb: Any, folder: Path) -> None:
    """Compare what W&B's server holds with the logs and results of a study."""
    runs = {held["options"]["name"]: held for held in wandb.server.values()}
    assert len(wandb.server) == len(runs) == 2
    for name, rows in logs(folder).items():
        history = [{("step" if k == "_step" else k): v for k, v in row.items()} for row in runs[name]["history"]]
        ours, theirs = (
            [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in log] for log in (rows, history)
        )
        assert ours == theirs
        assert all("tokens_per_second" in row for row in history)
        assert runs[name]["exit"][-1] == 0
        assert runs[name]["summary"]["heldout/nmse"] == held_out(folder, name)["nmse"]


def test_wandb_gets_every_row_once(small: dict[str, Any], tmp_path: Path, wandb: Any) -> None:
    folder = tmp_path / "out"
    work(tracked(small, "wandb"), folder)
    check_server(wandb, folder)
    options = next(call for call in wandb.calls if call != "login" and call["name"] == "topk-k8")
    assert (options["project"], options["group"], options["dir"]) == ("monosem", "tiny", folder)
    assert options["config"].items() > {"variant": "topk", "k": 8, "d_sae": 64, "seed": 0, "lr": 3e-3}.items()
    configs = [call["config"] for call in wandb.calls if call != "login" and call["name"] == "topk-k8"]
    assert configs[0] == configs[1]  # while it was trained, and from its files
    calls = len(wandb.calls)
    work(tracked(small, "wandb"), folder)
    assert set(wandb.calls[calls:]) == {"login"}
    small["train"]["lr"] = 1e-3  # other weights: other runs
    work(tracked(small, "wandb"), folder, "train")
    assert sorted(held["options"]["config"]["lr"] for held in wandb.server.values()) == [1e-3, 1e-3, 3e-3, 3e-3]


@pytest.mark.parametrize("seconds", [1e-9, 3600])
def test_wandb_goes_on_after_its_last_step(
    small: dict[str, Any], tmp_path: Path, wandb: Any, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    small["train"]["checkpoint_seconds"] = seconds
    interrupted(monkeypatch, 23, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        work(tracked(small, "wandb"), tmp_path / "out")
    assert [held["exit"] for held in wandb.server.values()] == [[1], [1]]
    for held in wandb.server.values():
        del held["history"][-2:]  # what had not been sent when the process died
    work(tracked(small, "wandb"), tmp_path / "out")
    check_server(wandb, tmp_path / "out")


def test_an_offline_run_has_one_folder(
    small: dict[str, Any], tmp_path: Path, wandb: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    interrupted(monkeypatch, 23, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        work(tracked(small, "wandb"), tmp_path / "out")
    work(tracked(small, "wandb"), tmp_path / "out", "train")
    assert len(list(tmp_path.glob("out/wandb/offline-run-*"))) == 2  # one a run
    assert "login" not in wandb.calls


@pytest.mark.parametrize("at", [0, 20])
def test_a_tracker_that_fails_costs_one_warning(
    small: dict[str, Any], tmp_path: Path, wandb: Any, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    monkeypatch.setenv("FAKE_BREAKS_AT", str(at))
    said = work(tracked(small, "wandb"), tmp_path / "out", "train")
    assert [line for line in said if line.startswith("warning")] == [
        "warning: wandb failed (the network is down); the work goes on without it"
    ]
    assert all(held["exit"] == [1] for held in wandb.server.values())
    assert len(logs(tmp_path / "out")["topk-k8"]) == 11
    monkeypatch.delenv("FAKE_BREAKS_AT")
    work(tracked(small, "wandb"), tmp_path / "out")  # the rows that are missing come with the numbers
    check_server(wandb, tmp_path / "out")


def test_event_files_that_could_not_be_written_come_later(
    small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = pytest.importorskip("torch.utils.tensorboard").SummaryWriter
    add_scalar = writer.add_scalar

    def full(self: Any, name: str, value: float, step: int) -> None:
        if step >= 20:
            raise OSError(28, "No space left on device")
        add_scalar(self, name, value, step)

    with monkeypatch.context() as patched:
        patched.setattr(writer, "add_scalar", full)
        said = work(tracked(small, "tensorboard"), tmp_path / "out", "train")
    assert [line for line in said if line.startswith("warning")] == [
        "warning: tensorboard failed ([Errno 28] No space left on device); the work goes on without it"
    ]
    work(tracked(small, "tensorboard"), tmp_path / "out", "measure")
    check_event_files(tmp_path / "out")


@pytest.mark.parametrize("kind", ["tensorboard", "wandb"])
def test_a_missing_package_is_refused_before_any_work(
    tiny_study: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setitem(sys.modules, kind, None)
    with pytest.raises(UserError, match=rf"pip install {kind}"):
        monosem.compare(tracked(tiny_study, kind), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_login_is_refused_before_any_work(
    tiny_study: dict[str, Any], tmp_path: Path, wandb: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_LOGIN", "none")
    with pytest.raises(UserError, match=r"no login .*run `wandb login`, or set WANDB_MODE=offline"):
        monosem.compare(tracked(tiny_study, "wandb"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unknown_tracker_is_refused(tiny_study: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"train\.track = 'neptune': input should be '', 'tensorboard' or 'wandb'"):
        monosem.compare(tracked(tiny_study, "neptune"))
