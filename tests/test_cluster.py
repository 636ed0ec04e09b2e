"""The Ray engine on a real cluster of two nodes on loopback: the same results, lost processes, bad input."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from monosem.progress import Bar, Ticker
from monosem.stages import _addressed, harvest_header
from monosem.store import file_hash, read_json
from monosem.types import UserError
from monosem.work import Work
from tests.conftest import make_documents, study_of, wait_until, while_running
from tests.test_story import ENVIRONMENT, command, run, run_alone, write_study

pytest.importorskip("ray")
pytest.importorskip("s3fs")

from ray.exceptions import ActorDiedError
from ray.train.v2.api.exceptions import WorkerGroupError

from monosem.cluster import RayEngine
from monosem.cluster.meter import FarTicker, Meter, _Drawing
from monosem.cluster.parts import place_of
from monosem.cluster.slots import Slots, slots
from monosem.config import load_study
from monosem.model import resolve_dtype
from monosem.remote.place import Place

CPU = torch.device("cpu")
RUNS: list[dict[str, Any]] = [{"variant": "standard", "l1_coefficient": 0.5}, {"variant": "topk", "k": [4, 8]}]


@pytest.mark.parametrize(
    ("nodes", "wanted", "gpu", "found"),
    [
        ([{"CPU": 4}, {"CPU": 8}], 0, False, Slots(2, 4)),  # one on each node
        ([{"CPU": 4}, {"CPU": 8}], 3, False, Slots(3, 4)),
        ([{"CPU": 4}, {"CPU": 8}], 5, False, Slots(5, 2)),  # 3 on one node wouldn't leave room
        ([{"CPU": 4}, {"CPU": 8}, {"CPU": 0}], 12, False, Slots(12, 1)),
        ([{"CPU": 32, "GPU": 4}, {"CPU": 64, "GPU": 8}, {"CPU": 8}], 0, True, Slots(12, 8, 1)),
        ([{"CPU": 2, "GPU": 4}], 2, True, Slots(2, 0, 1)),
    ],
)
def test_processes_get_what_leaves_room_for_all(
    nodes: list[dict[str, float]], wanted: int, gpu: bool, found: Slots
) -> None:
    assert slots(nodes, wanted, gpu=gpu) == found


@pytest.mark.parametrize(("gpu", "words"), [(False, "has 3 cores"), (True, "has 1 GPUs")])
def test_no_room_is_said(gpu: bool, words: str) -> None:
    with pytest.raises(UserError, match=words):
        slots([{"CPU": 3, "GPU": 1}], 4, gpu=gpu)


@pytest.mark.parametrize(("gpu", "words"), [(False, "no cores that are up"), (True, "no GPUs that are up")])
def test_a_cluster_without_room_at_all_is_named(gpu: bool, words: str) -> None:
    with pytest.raises(UserError, match=words):
        slots([{"memory": 1.0}], gpu=gpu)


def test_places_have_the_arithmetic_of_who_leads(made: tuple[Path, Path]) -> None:
    study = load_study(made[0], ["model.dtype=auto"])
    place = place_of(Work(study, made[1]))
    assert place.study.file.model.dtype == ("bfloat16" if resolve_dtype("auto", CPU) == torch.bfloat16 else "float32")
    assert place.folder == str(made[1])
    assert harvest_header(place.study) == harvest_header(study)


def test_a_cluster_chooses_devices(made: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": {"CPU": 8.0, "GPU": 2.0}}])
    with pytest.raises(UserError, match=r'model.device = "cuda:1": a cluster chooses'):
        RayEngine()._slots(Work(load_study(made[0], ["model.device=cuda:1"]), made[1]))
    found = RayEngine()._slots(Work(load_study(made[0], ["model.device=auto"]), made[1]))
    assert (found.count, found.gpus) == (2, 1)


def test_what_no_process_was_lost_for_keeps_its_traceback(
    made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistake of ours is no bad news that the user can mend; a lost process is."""
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": {"CPU": 8.0}}])
    monkeypatch.setattr("monosem.cluster.start_meter", lambda: None)
    work = Work(load_study(made[0]), tmp_path)
    for failure, kind in ((KeyError("x"), WorkerGroupError), (ActorDiedError(), UserError)):
        error = WorkerGroupError("said", {0: failure, 1: RuntimeError("a peer has gone")})
        monkeypatch.setattr("monosem.cluster.followed", _raising(error))
        with pytest.raises(kind):
            RayEngine()._train(work, ["topk-k4"])


def _raising(error: Exception) -> Any:
    def followed(*_: Any) -> None:
        raise error

    return followed


def test_an_address_elsewhere_is_led_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _addressed("ray") == "ray"
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    assert _addressed("ray") == "ray://head:10001"
    assert _addressed("local") == "local"
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert _addressed("ray") == "ray"


def test_progress_of_another_process_is_drawn_here() -> None:
    drawn: list[Any] = []

    class Noting(Bar):
        def to(self, amount: int) -> None:
            drawn.append(amount)

        def table(self, rows: dict[str, dict[str, float]]) -> None:
            drawn.append(rows)

    class NotingTicker(Ticker):
        @contextlib.contextmanager
        def bar(self, what: str, total: int, unit: str) -> Iterator[Bar]:
            drawn.append((what, total, unit))
            yield Noting()
            drawn.append("closed")

    meter, drawing = Meter(), _Drawing(drawn.append, NotingTicker())
    meter.tell(("say", "begun"), ("bar", "train", 10, "tokens"), ("to", 4, {"a": {"l0": 2.0}}))
    meter.tell(("bar", "train", 10, "tokens"), ("to", 10, {}), ("end",))  # after a restart
    for event in meter.read():
        drawing.draw(event)
    bar = ("train", 10, "tokens")
    assert drawn == ["begun", bar, 4, {"a": {"l0": 2.0}}, "closed", bar, 10, {}, "closed"]
    assert meter.read() == []
    assert FarTicker(meter).meter is meter


def test_without_ray_the_extra_is_named(finished_study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("monosem.cluster")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "pip install 'monosem[ray]'" in run("compare", finished_study, "--engine", "ray", code=2).stderr
    assert "there is local, ray, or ray://" in run("compare", finished_study, "--engine", "slurm", code=2).stderr


@pytest.mark.parametrize("address", ["ray://", "ray://head", "ray://head:port"])
def test_an_address_that_is_none_is_named(finished_study: Path, address: str) -> None:
    said = run("compare", finished_study, "--engine", address, code=2).stderr
    assert f'--engine "{address}": write ray://HOST:PORT' in said


def test_a_cluster_without_room_is_named_before_the_harvest(
    made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": {"CPU": 2.0}}])
    work = Work(load_study(made[0], ["compute.feature_parallel=4"]), tmp_path)
    with pytest.raises(UserError, match="has 2 cores"):
        RayEngine().check(work)
    with pytest.raises(UserError, match="2 processes can't be split into groups of 4"):
        RayEngine(2).check(work)


@dataclass
class Cluster:
    """address: of the head node; client: of its Ray Client server; nodes: process numbers."""

    address: str
    client: str
    nodes: list[subprocess.Popen[bytes]]

    def workers(self, title: str) -> list[int]:
        """Return the process numbers of workers whose title has this in it."""
        titles = {pid: _read(pid, "cmdline").replace("\0", " ") for pid in self.processes()}
        return sorted(pid for pid, words in titles.items() if words.startswith("ray::") and title in words)

    def processes(self) -> set[int]:
        """Return the process numbers of everything that runs on the nodes."""
        parents: dict[int, int] = {}
        for path in Path("/proc").glob("[0-9]*"):
            if words := _read(int(path.name), "stat").rpartition(")")[2].split():
                parents[int(path.name)] = int(words[1])
        found = {node.pid for node in self.nodes}
        while more := {pid for pid, parent in parents.items() if parent in found} - found:
            found |= more
        return found


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    except OSError:  # it has ended
        return ""


@pytest.fixture(scope="module")
def cluster(bucket: str) -> Iterator[Cluster]:
    """Two nodes of one core each, with caches of their own, which reach the bucket."""
    ports = []
    for _ in range(2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
    logs = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # sockets lie there, whose paths must be short
    shared = [
        "--block",
        "--num-cpus=1",
        "--num-gpus=0",
        "--object-store-memory=80000000",
        "--node-ip-address=127.0.0.1",
    ]
    head = ["--head", f"--port={ports[0]}", f"--ray-client-server-port={ports[1]}", "--include-dashboard=false"]
    ray = [str(Path(sys.executable).with_name("ray")), "start"]
    address = f"127.0.0.1:{ports[0]}"
    nodes = []
    try:
        for options in ([*head, f"--temp-dir={logs}"], [f"--address={address}"]):
            own = {"RAY_USAGE_STATS_ENABLED": "0", "MONOSEM_CACHE": str(logs / f"cache-{len(nodes)}")}
            environment = {**ENVIRONMENT, **os.environ, **own}
            with open(logs / f"node-{len(nodes)}.log", "wb") as log:
                nodes.append(
                    subprocess.Popen(
                        [*ray, *options, *shared], env=environment, stdout=log, stderr=log, start_new_session=True
                    )
                )
            wait_until(partial(started, logs / f"node-{len(nodes) - 1}.log"), 120)
        yield Cluster(address, f"ray://127.0.0.1:{ports[1]}", nodes)
    finally:
        for pid in Cluster("", "", nodes).processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for node in nodes:
            node.wait()
        shutil.rmtree(logs, ignore_errors=True)


def started(log: Path) -> bool:
    return "runtime started" in log.read_text()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_lm: Path) -> tuple[Path, Path]:
    """A study of six shards, and its folder as one process made it."""
    folder = tmp_path_factory.mktemp("cluster")
    corpus = folder / "corpus.jsonl"
    texts = [f"Part {part}: {text}" for part in range(5) for text in make_documents()]
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    study = study_of(tiny_lm, corpus, RUNS)
    study["model"] |= {"context": 8, "batch_rows": 1}
    study["text"] |= {"train_tokens": 16_000}
    study["train"] |= {"tokens": 19_200, "checkpoint_seconds": 0.0}
    path = write_study(study, folder / "study.toml")
    run("compare", path, "--out", folder / "one")
    return path, folder / "one"


@pytest.fixture(scope="module")
def disturbed(cluster: Cluster, made: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The same study, made by the cluster with one worker killed in harvest and one in training; and what was said."""
    folder = tmp_path_factory.mktemp("disturbed")
    out, log = folder / "study", folder / "log"
    environment = {**ENVIRONMENT, "RAY_ADDRESS": cluster.address}
    arguments = command("compare", made[0], "--out", out, "--engine", "ray", "--nproc", "2")
    with open(log, "w") as file:
        process = subprocess.Popen(arguments, env=environment, stdout=file, stderr=file)

        running = partial(while_running, process, log)
        victim = running(lambda: cluster.workers("MapWorker"))[0]
        os.kill(victim, signal.SIGSTOP)  # so that it certainly has not done its part when the other one has
        running(lambda: (out / "activations" / "partial.json").exists())
        running(lambda: read_json(out / "activations" / "partial.json")["shards"])
        os.kill(victim, signal.SIGKILL)
        running(lambda: len(list(out.glob("saes/*/checkpoint/step-*"))) >= 2)
        os.kill(cluster.workers("RayTrainWorker")[0], signal.SIGKILL)
        assert process.wait(300) == 0, log.read_text()[-3000:]
    return out, log.read_text()


@pytest.mark.slow
def test_lost_workers_change_nothing(made: tuple[Path, Path], disturbed: tuple[Path, str]) -> None:
    (_, one), (out, said) = made, disturbed
    shards = sorted((one / "activations").glob("*.safetensors"))
    assert len(shards) >= 6
    for path in shards:
        assert file_hash(out / path.relative_to(one)) == file_hash(path), path
    weights = sorted(one.glob("saes/*/sae_weights.safetensors"))
    assert len(weights) == 3
    for path in weights:
        assert file_hash(out / path.relative_to(one)) == file_hash(path), path
    for name in ("heldout.safetensors",):
        ours = load_file(out / "results" / name)
        for key, value in load_file(one / "results" / name).items():
            assert float((ours[key].double() - value.double()).abs().max()) <= 1e-6 * float(value.abs().max() + 1), key
    wanted, found = (read_json(folder / "summary.json")["runs"] for folder in (one, out))
    assert len(wanted) == 3
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours["name"] == theirs["name"]
    assert "3 runs" in said
    assert "2 processes" in said
    assert "report: done" in said
    assert not (out / "ray").exists()
    assert not list(out.rglob("checkpoint"))
    said = run("compare", out).stdout
    for stage in ("harvest", "train", "measure", "report"):
        assert f"{stage}: reused" in said  # without the cluster


@pytest.mark.slow
def test_machines_share_a_bucket_and_no_folder(
    cluster: Cluster, made: tuple[Path, Path], bucket: str, tmp_path: Path
) -> None:
    url, log, cache = f"{bucket}/{tmp_path.name}", tmp_path / "log", tmp_path / "cache"
    environment = {**ENVIRONMENT, **os.environ, "MONOSEM_CACHE": str(cache)}
    split = ("--engine", cluster.client, "--nproc", "2", "--set", "compute.feature_parallel=2")
    seldom = ("--set", "train.checkpoint_seconds=0.5")
    store, root = Place(url).connect()
    with open(log, "w") as file:
        process = subprocess.Popen(
            command("compare", made[0], "--out", url, *split, *seldom), env=environment, stdout=file, stderr=file
        )

        running = partial(while_running, process, log)
        running(lambda: store.glob(f"{url}/saes/*/checkpoint/step-*/facts.json"))
        os.kill(cluster.workers("RayTrainWorker")[0], signal.SIGKILL)
        assert process.wait(300) == 0, log.read_text()[-3000:]
    assert "2 processes" in log.read_text()
    names = {path.removeprefix(f"{root}/") for path in store.find(url)}
    assert not [name for name in names if "checkpoint" in name or name.startswith((".", "ray/"))]
    folder = next((cache / "studies").iterdir())
    assert (folder / "report.html").exists()
    assert not list(folder.glob("activations/*.safetensors"))  # who gives the command has no use for them
    for path in sorted((made[1] / "activations").glob("*.safetensors")):
        stored = store.cat_file(f"{url}/activations/{path.name}")
        assert hashlib.sha256(stored).hexdigest() == file_hash(path), path
    for path in sorted(made[1].glob("saes/*/sae_weights.safetensors")):
        wanted, found = load_file(path), load_file(folder / path.relative_to(made[1]))
        for name, value in wanted.items():
            assert float((found[name] - value).norm()) <= 1e-5 * float(value.norm()), (path, name)


@pytest.mark.slow
def test_a_worker_s_bad_news_arrive_through_the_client_as_one_sentence(
    cluster: Cluster, made: tuple[Path, Path], tmp_path: Path
) -> None:
    out = Path(shutil.copytree(made[1], tmp_path / "study"))
    done = run_alone("train", out, "--engine", cluster.client, "--set", "run.1.lr=1e30", code=2)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert re.search(r"error: run topk-k\d-lr_1e30: loss", errors[0])
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_an_evaluation_runs_in_tasks(cluster: Cluster, made: tuple[Path, Path], tmp_path: Path) -> None:
    out = Path(shutil.copytree(made[1], tmp_path / "study"))
    shutil.rmtree(out / "results" / "topk-k4" / "frontier")
    before = file_hash(out / "results" / "frontier.charts.json")
    done = subprocess.run(
        command("eval", "frontier", out, "--engine", "ray"),
        env={**ENVIRONMENT, "RAY_ADDRESS": cluster.address},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "frontier: 1 runs judged, 2 reused" in done.stdout
    assert file_hash(out / "results" / "frontier.charts.json") == before


@pytest.mark.slow
def test_a_cluster_that_is_not_there_is_named(made: tuple[Path, Path]) -> None:
    done = subprocess.run(
        command("compare", made[1], "--engine", "ray"),
        env={**ENVIRONMENT, "RAY_ADDRESS": "127.0.0.1:1"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 2, done.stderr[-3000:]
    assert "no Ray cluster at 127.0.0.1:1" in done.stderr
    assert "Traceback" not in done.stderr
