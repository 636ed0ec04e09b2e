"""Studies in several processes: `--nproc` and torchrun, the same results, processes that are killed, bad input."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.conftest import study_of, while_running
from tests.test_story import ENVIRONMENT, command, run, run_alone, write_study

pytestmark = pytest.mark.slow

RUNS = [{"variant": "standard", "l1_coefficient": 0.5}, {"variant": "topk", "k": 8, "auxk": True}]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_lm: Path, corpus: Path) -> tuple[Path, Path]:
    """A study, and its folder as one process made it."""
    folder = tmp_path_factory.mktemp("processes")
    path = write_study(study_of(tiny_lm, corpus, RUNS), folder / "study.toml")
    run("compare", path, "--out", folder / "one")
    return path, folder / "one"


def check_equal(found: Path, wanted: Path, tolerance: float) -> None:
    names = sorted(path.relative_to(wanted) for path in wanted.glob("saes/*/sae_weights.safetensors"))
    assert len(names) == len(RUNS)
    for name in names:
        weights = load_file(found / name)
        for key, value in load_file(wanted / name).items():
            assert float((weights[key] - value).norm()) <= tolerance * float(value.norm()) + 1e-7, (name, key)


@pytest.mark.parametrize(
    ("settings", "launcher"),
    [
        ((), "--nproc"),  # other runs in each process: bit for bit the same
        (("compute.feature_parallel=2",), "--nproc"),
        (("compute.data_parallel=2",), "torchrun"),
    ],
)
def test_two_processes_train_what_one_does(
    made: tuple[Path, Path], tmp_path: Path, settings: tuple[str, ...], launcher: str
) -> None:
    path, one = made
    options = [part for text in settings for part in ("--set", text)]
    if launcher == "torchrun":
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "monosem"]
        arguments = [*torchrun, "compare", str(path), "--out", str(tmp_path / "two"), *options]
        done = subprocess.run(arguments, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
    else:
        done = run_alone("compare", path, "--out", tmp_path / "two", "--nproc", "2", *options)
    assert "2 runs, 50 steps of 128 tokens" in done.stdout
    assert "2 processes" in done.stdout
    assert done.stdout.count("report: done") == 1
    assert (tmp_path / "two" / "report.html").exists()
    check_equal(tmp_path / "two", one, 1e-4 if settings else 0.0)
    assert "train: reused" in run("train", path, "--out", tmp_path / "two", *options).stdout


WATCHED = """
import atexit, runpy, sys
from pathlib import Path

def say(when):
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    print(when, sum("gloo" in name for name in names), flush=True)

atexit.register(say, "at the end")
import torch.distributed as dist
destroy = dist.destroy_process_group
dist.destroy_process_group = lambda: (say("before"), destroy())
sys.argv[0] = "monosem"
runpy.run_module("monosem", run_name="__main__")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_threads_of_groups_end_before_python_does(made: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "watched.py").write_text(WATCHED)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(tmp_path / "watched.py")]
    options = ["--set", "compute.feature_parallel=2", "--set", "train.checkpoint_seconds=0"]
    arguments = [*torchrun, "compare", str(made[0]), "--out", str(tmp_path / "two"), *options]
    done = subprocess.run(arguments, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    said = done.stdout.splitlines()
    assert sum(line.startswith("before ") and line != "before 0" for line in said) == 2
    assert said.count("at the end 0") == 2


def test_a_killed_process_is_replaced_and_the_result_is_the_same(made: tuple[Path, Path], tmp_path: Path) -> None:
    path, _ = made
    settings = ["compute.feature_parallel=2", "train.checkpoint_seconds=0.2", "train.tokens=19200"]
    options = [part for text in settings for part in ("--set", text)]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_alone("compare", path, "--out", whole, "--nproc", "2", *options)
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(
            command("compare", path, "--out", cut, "--nproc", "2", *options), env=ENVIRONMENT, stdout=log, stderr=log
        )
        while_running(process, tmp_path / "log", lambda: len(list(cut.glob("saes/*/checkpoint/step-*"))) >= 2)
        victims = children_of(process.pid)
        assert len(victims) == 2
        os.kill(victims[-1], signal.SIGKILL)
        assert process.wait(240) == 0, (tmp_path / "log").read_text()[-3000:]
    assert "resumed, 2 runs" in (tmp_path / "log").read_text()
    check_equal(cut, whole, 0.0)
    assert not list(cut.rglob("checkpoint"))


def test_ctrl_c_stops_all_processes_at_once_and_one_goes_on(made: tuple[Path, Path], tmp_path: Path) -> None:
    path, one = made
    out, log = tmp_path / "out", tmp_path / "log"
    options = ("--set", "compute.feature_parallel=2", "--set", "train.checkpoint_seconds=0")
    with open(log, "w") as file:
        process = subprocess.Popen(
            command("compare", path, "--out", out, "--nproc", "2", *options), env=ENVIRONMENT, stdout=file, stderr=file
        )
        while_running(process, log, lambda: list(out.glob("saes/*/checkpoint/step-*/facts.json")))
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130, log.read_text()[-3000:]
    said = log.read_text()
    assert said.count("stopped; the same command goes on") == 1
    assert "forcefully" not in said  # the launcher waits for half a minute for those that don't end
    assert "train: done" not in said
    assert "resumed, 2 runs" in run("compare", path, "--out", out).stdout
    check_equal(out, one, 1e-4)


def children_of(pid: int) -> list[int]:
    """Return the process numbers of the training processes that a launcher started."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            words = (path / "cmdline").read_bytes()
        except OSError:
            continue
        if parent == pid and b"spawn_main" in words:
            found.append(int(path.name))
    return sorted(found)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["--set", "compute.data_parallel=2", "--set", "train.batch_size=99"], "must be a multiple of data_parallel"),
        (["--set", "model.site=blocks.9.hook_resid_post"], "has blocks 0 to 3"),
        (["--set", "run.1.lr=1e30"], "run topk-k8-auxk_True-lr_1e30: loss"),  # in the second process only
    ],
)
def test_bad_input_is_said_once(made: tuple[Path, Path], tmp_path: Path, settings: list[str], words: str) -> None:
    done = run_alone("compare", made[0], "--out", tmp_path / "two", "--nproc", "2", *settings, code=2)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert words in errors[0]
    assert "Traceback" not in done.stderr


def test_one_process_is_not_two(made: tuple[Path, Path]) -> None:
    done = run(
        "train", made[0], "--out", made[1], "--set", "compute.feature_parallel=2", "--set", "train.lr=1e-2", code=2
    )
    assert "1 processes can't be split into groups of 2" in done.stderr
