"""Training logs and held-out numbers, copied to TensorBoard or Weights & Biases (`train.track`).

It is a copy and nothing is read back from it. A copy is always made from a run's log, from its first row on, so that
every row comes once however often a training is cut short. What goes wrong costs a warning, never a training.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import polars as pl

from monosem.schema import SUMMARY_ESTIMATES
from monosem.store import read_json, value_hash, write_json
from monosem.types import UserError

if TYPE_CHECKING:
    from monosem.evals import Judged
    from monosem.trainer import Trainer

Kind = Literal["", "tensorboard", "wandb"]
Say = Callable[[str], object]
Follow = Callable[[Sequence["Trainer"]], None]
OFFLINE = ("offline", "disabled", "dryrun")  # values of WANDB_MODE
HELD_OUT = "heldout/"  # stands before the names of what was measured on held-out text


def check_tracker(kind: Kind) -> None:
    """Raise UserError, saying what to do, when the tracker's package is missing or wants a login."""
    if not kind:
        return
    if importlib.util.find_spec(kind) is None:
        raise UserError(
            f'train.track = "{kind}": the package {kind} is missing; run `pip install {kind}`, or set train.track = ""'
        )
    if kind == "wandb" and os.environ.get("WANDB_MODE") not in OFFLINE:
        try:
            importlib.import_module(kind).login()
        except Exception as error:
            raise UserError(
                f'train.track = "wandb": no login ({_first_line(error)}); run `wandb login`, or set WANDB_MODE=offline'
            ) from error


@contextlib.contextmanager
def tracking(kind: Kind, study: str, folder: Path, say: Say) -> Iterator[Follow]:
    """Open a tracker for a training; it yields a function that copies what is new in the logs of the trainers.

    study, folder: name and folder of the study. say: is told, once, when the tracker fails.
    """
    if not kind:
        yield lambda _trainers: None
        return
    tracker = _Tracker(kind, study, folder, say)
    try:
        yield tracker.follow
    except BaseException:
        tracker.close(failed=True)
        raise
    tracker.close()


def publish(kind: Kind, study: str, folder: Path, results: Sequence[Judged], say: Say) -> None:
    """Copy what was measured of each run, and the rows of its log that are not there yet.

    results: of the evaluations `frontier` and `density`; the point values of their headline numbers are copied.
    """
    if not kind:
        return
    numbers: dict[str, dict[str, float]] = {}
    for judged in results:
        found = {name: e.value for name in SUMMARY_ESTIMATES if (e := judged.result.scalars.get(name)) is not None}
        numbers.setdefault(judged.info.name, {}).update(found)
    tracker = _Tracker(kind, study, folder, say)
    for name, values in numbers.items():
        tracker.attempt(tracker.finish, name, values)


class _Copy(Protocol):
    """A run as a tracker has it. first: the first step of which it has no row."""

    first: float

    def log(self, step: int, values: dict[str, float]) -> None: ...

    def conclude(self, step: int, values: dict[str, float]) -> None: ...

    def close(self, failed: bool) -> None: ...


class _TensorBoard:
    """Event files in `tensorboard/<run>`. A new one takes the place of the others, or adds to them if they are whole.

    Readers forget what came before a file that begins a session at step 0. Were the old files deleted, a TensorBoard
    that is running would stop at the last row it has read.
    """

    def __init__(self, where: Path, whole: bool) -> None:
        from torch.utils.tensorboard import SummaryWriter

        newest = max((int(path.name.split(".")[3]) for path in where.glob("events.out.tfevents.*")), default=0)
        while int(time.time()) == newest:  # names begin with the second, and readers go by the order of names
            time.sleep(0.02)
        self.first = float("inf") if whole else 0
        self.writer = SummaryWriter(str(where), purge_step=None if whole else 0)

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def conclude(self, step: int, values: dict[str, float]) -> None:
        self.log(step, {HELD_OUT + name: value for name, value in values.items()})

    def close(self, failed: bool) -> None:
        self.writer.close()


class _Wandb:
    """A run of Weights & Biases. An online one goes on after its last step; offline ones can't, and are made anew."""

    def __init__(self, folder: Path, study: str, name: str, id: str, config: dict[str, Any]) -> None:
        wandb = importlib.import_module("wandb")
        for old in (folder / "wandb").glob(f"offline-run-*-{id}"):
            shutil.rmtree(old)
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "monosem"),
            group=study,
            name=name,
            id=id,
            resume="allow",
            reinit="create_new",
            dir=folder,
            config=config,
            settings=wandb.Settings(console="off", silent=True),
        )
        self.first = self.run.step

    def log(self, step: int, values: dict[str, float]) -> None:
        self.run.log(values, step=step, commit=True)

    def conclude(self, step: int, values: dict[str, float]) -> None:
        self.run.summary.update({HELD_OUT + name: value for name, value in values.items()})

    def close(self, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))


@dataclass
class _Tracker:
    """Copies of runs. The state says of each: `key` of its weights, `id`, `rows` when whole, `concluded` with what."""

    kind: Kind
    study: str
    folder: Path
    say: Say
    copies: dict[str, _Copy] = field(default_factory=dict)
    sent: dict[str, int] = field(default_factory=dict)
    state: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: bool = False

    def __post_init__(self) -> None:
        if self._state_file.exists():
            self.attempt(lambda: self.state.update(read_json(self._state_file)))

    @property
    def _state_file(self) -> Path:
        return self.folder / self.kind / "monosem.json"

    def attempt(self, act: Callable[..., object], *arguments: Any) -> None:
        """Do it; what goes wrong is said once, and nothing is tried any more."""
        if self.failed:
            return
        try:
            act(*arguments)
        except Exception as error:
            self.failed = True
            self.say(f"warning: {self.kind} failed ({_first_line(error)}); the work goes on without it")

    def follow(self, trainers: Sequence[Trainer]) -> None:
        for trainer in trainers:
            if len(trainer.log) > self.sent.get(trainer.spec.name, 0):
                self.attempt(self._follow, trainer)

    def _follow(self, trainer: Trainer) -> None:
        spec = trainer.spec
        if spec.name not in self.copies:
            config = _config(spec.variant_name, spec.d_sae, spec.seed, asdict(spec.variant), asdict(spec.recipe))
            self._open(spec.name, spec.key, config)
        self._send(spec.name, trainer.log)

    def _open(self, name: str, key: str, config: dict[str, Any], whole: bool = False) -> None:
        before = self.state.get(name, {})
        id = before["id"] if before.get("key") == key else secrets.token_hex(4)
        self._note(name, {"key": key, "id": id})  # first, so that a training that is killed goes on in the same run
        if self.kind == "wandb":
            self.copies[name] = _Wandb(self.folder, self.study, name, id, config)
        else:
            self.copies[name] = _TensorBoard(self.folder / "tensorboard" / name, whole)
        self.sent[name] = 0

    def _send(self, name: str, rows: list[dict[str, Any]]) -> None:
        copy = self.copies[name]
        for row in rows[self.sent[name] :]:
            if row["step"] >= copy.first:
                copy.log(row["step"], {k: v for k, v in row.items() if k != "step" and v is not None})
            self.sent[name] += 1

    def finish(self, name: str, values: dict[str, float]) -> None:
        """Complete the copy of a run on disk, unless it holds these values already."""
        run = self.folder / "saes" / name
        cfg = read_json(run / "cfg.json")
        ours = cfg["monosem"]
        rows = pl.read_parquet(run / "log.parquet").to_dicts() if (run / "log.parquet").exists() else []
        before = self.state.get(name, {})
        known = before.get("key") == ours["train_key"]
        if known and before.get("concluded") == value_hash(values):
            return
        whole = known and before.get("rows") == len(rows) and "concluded" not in before
        config = _config(ours["variant"], cfg["d_sae"], ours.get("seed"), ours["hyper"], ours.get("recipe", {}))
        self._open(name, ours["train_key"], config, whole)
        self._send(name, rows)
        copy = self.copies.pop(name)
        copy.conclude(rows[-1]["step"] if rows else 0, values)
        copy.close(False)
        self._note(name, {**self.state[name], "rows": len(rows), "concluded": value_hash(values)})

    def close(self, failed: bool = False) -> None:
        """Close what `follow` opened."""
        for name, copy in self.copies.items():
            if self.failed:
                with contextlib.suppress(Exception):
                    copy.close(True)
                continue
            self.attempt(copy.close, failed)
            if not failed:
                self.attempt(self._note, name, {**self.state[name], "rows": self.sent[name]})

    def _note(self, name: str, entry: dict[str, Any]) -> None:
        self.state[name] = entry
        write_json(self._state_file, self.state)


def _config(variant: str, d_sae: int, seed: Any, hyper: dict[str, Any], recipe: dict[str, Any]) -> dict[str, Any]:
    return {"variant": variant, "d_sae": d_sae, "seed": seed, **hyper, **recipe}


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
