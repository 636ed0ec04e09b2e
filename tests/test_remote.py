"""Study folders in an object store: an S3 server on loopback, two caches as two machines."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from monosem.remote import RATING, address, at_hand, fetch, fetch_as_helper, held, keep, lease, local, working_copy
from monosem.remote.place import Place, Unreachable
from monosem.store import file_hash
from monosem.types import UserError
from tests.conftest import study_of, wait_until
from tests.test_story import ENVIRONMENT, command, run, write_study

RUNS: list[dict[str, Any]] = [{"variant": "standard", "l1_coefficient": 0.5}, {"variant": "topk", "k": 8}]


class Lab:
    """A place in the bucket, worked on from any of several machines, each with a cache of its own."""

    def __init__(self, url: str, caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.url, self.caches, self.monkeypatch = url, caches, monkeypatch

    def on(self, machine: str) -> Path:
        """Go on from a machine; return its working copy."""
        self.monkeypatch.setenv("MONOSEM_CACHE", str(self.caches / machine))
        return local(self.url)

    def there(self) -> dict[str, bytes]:
        """Return what the store has."""
        fs, root = Place(self.url).connect()
        paths = fs.find(root)
        found = fs.cat(paths, on_error="omit") if paths else {}  # files may vanish meanwhile
        return {path.removeprefix(f"{root}/"): content for path, content in found.items()}


@pytest.fixture
def lab(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setattr(lease, "BEAT", 0.2)
    monkeypatch.setattr(lease, "PATIENCE", 1.0)
    return Lab(f"{bucket}/{tmp_path.name}/study", tmp_path / "caches", monkeypatch)


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_what_changes_on_one_machine_comes_to_the_other(lab: Lab) -> None:
    with at_hand(lab.on("a") and lab.url) as a:
        for name in ("study.toml", "results/x/result.json", "activations/meta.json", "activations/train-0.safetensors"):
            put(a / name, f"{name} 1")
        put(a / "saes/r/checkpoint/step-1/facts.json", "1")
        for name in (".lock", ".x.1.part", "saes/r/checkpoint/unfinished/x", "codes/r/sorting/x", "ray/x"):
            put(a / name, "of this process only")
    assert sorted(lab.there()) == [
        "activations/meta.json",
        "activations/train-0.safetensors",
        "results/x/result.json",
        "saes/r/checkpoint/step-1/facts.json",
        "study.toml",
    ]
    with at_hand(lab.on("b") and lab.url) as b:
        assert b != a
        assert (b / "results/x/result.json").read_text() == "results/x/result.json 1"
        assert not list(b.glob("activations/*.safetensors"))  # until they are opened
        assert not (b / "saes").exists()
        fetch(b / "activations", "train-*.safetensors")
        fetch(b / "saes/r/checkpoint")
        assert (b / "activations/train-0.safetensors").read_text() == "activations/train-0.safetensors 1"
        assert (b / "saes/r/checkpoint/step-1/facts.json").read_text() == "1"
    with held(lab.url) as b:
        shutil.rmtree(b / "saes")
        (b / "results/x/result.json").write_text("result 2")
    assert lab.there()["results/x/result.json"] == b"result 2"
    assert "saes/r/checkpoint/step-1/facts.json" not in lab.there()
    with at_hand(lab.on("a") and lab.url) as a:
        assert (a / "results/x/result.json").read_text() == "result 2"
        fetch(a / "saes/r/checkpoint")
        assert not (a / "saes/r/checkpoint/step-1/facts.json").exists()


def test_where_both_sides_have_changed_the_store_s_counts(lab: Lab) -> None:
    with at_hand(lab.on("a") and lab.url) as a:
        put(a / "x.json", "1")
        put(a / "y.json", "1")
    with at_hand(lab.on("b") and lab.url) as b:
        put(b / "x.json", "of b")
    put(a / "x.json", "of a")
    put(a / "y.json", "of a")
    with at_hand(lab.on("a") and lab.url) as a:
        assert (a / "x.json").read_text() == "of b"
        assert (a / "y.json").read_text() == "of a"
    assert lab.there() == {"x.json": b"of b", "y.json": b"of a"}


def test_room_that_is_made_in_the_cache_takes_nothing_from_the_store(lab: Lab) -> None:
    with at_hand(lab.on("a") and lab.url) as a:
        put(a / "activations/train-0.safetensors", "large")
    (a / "activations/train-0.safetensors").unlink()
    with at_hand(lab.on("a") and lab.url) as a:
        pass
    assert lab.there() == {"activations/train-0.safetensors": b"large"}
    shutil.rmtree(a)
    with at_hand(lab.on("a") and lab.url) as a:
        fetch(a / "activations")
        assert (a / "activations/train-0.safetensors").read_text() == "large"


def test_what_names_other_files_goes_last(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    a, sent = lab.on("a"), []
    upload = Place.upload

    def noted(place: Place, name: str, source: Path) -> str | None:
        sent.append(name)
        return upload(place, name, source)

    monkeypatch.setattr(Place, "upload", noted)
    for number in range(5):
        put(a / f"activations/{number}.json", "names a shard")
        put(a / f"activations/{number}.safetensors", "is one")
    keep(a)
    assert [name.endswith(".json") for name in sent] == [False] * 5 + [True] * 5


def test_work_is_kept_while_it_goes_on(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(working_copy, "EVERY", 0.05)
    with held(lab.on("a") and lab.url) as a:
        put(a / "x.json", "1")
        wait_until(lambda: lab.there().get("x.json") == b"1", 30)
        (a / "x.json").unlink()
        wait_until(lambda: list(lab.there()) == [".lease"], 30)


def test_one_command_at_a_time(lab: Lab) -> None:
    lab.on("a")
    with held(lab.url):
        lab.on("b")
        with pytest.raises(UserError, match=r"another monosem process \(number \d+ on .*wait until it has ended"):
            held(lab.url).__enter__()
    assert not lab.there()
    with held(lab.url):
        pass


def test_a_dead_process_holds_nothing(lab: Lab) -> None:
    said: list[str] = []
    lab.on("b")
    Place(lab.url).write_json(".lease", {"host": "gone", "copy": "x", "process": 1, "name": "x", "beat": 3})
    with held(lab.url, said.append):
        assert json.loads(lab.there()[".lease"])["process"] == os.getpid()
    assert "gone has worked on it" in said[0]
    assert not lab.there()


def test_who_was_taken_over_writes_nothing_more(lab: Lab) -> None:
    a, holding = lab.on("a"), held(lab.url)
    holding.__enter__()
    Place(lab.url).write_json(".lease", {"name": "other"})
    time.sleep(3 * lease.BEAT)
    put(a / "x.json", "late")
    with pytest.raises(UserError, match="taken this study over"):
        keep(a)
    with pytest.raises(UserError, match="taken this study over"):
        holding.__exit__(None, None, None)
    assert list(lab.there()) == [".lease"]


def test_who_holds_a_study_has_the_newer_files(lab: Lab) -> None:
    """Shards that are harvested anew aren't overwritten by the ones that the store has from before."""
    with held(lab.on("a") and lab.url) as a:
        put(a / "activations/train-0.safetensors", "old")
    with held(lab.on("b") and lab.url) as b:  # which has not fetched the old one
        put(b / "activations/train-0.safetensors", "new")
        fetch(b / "activations")
        assert (b / "activations/train-0.safetensors").read_text() == "new"
        put(b / "activations/partial.json", "1")
        keep(b)
        (b / "activations/partial.json").unlink()
        fetch(b)
        assert not (b / "activations/partial.json").exists()
    assert lab.there() == {"activations/train-0.safetensors": b"new"}


def test_helpers_begin_with_what_the_store_has_and_remove_nothing(lab: Lab) -> None:
    b = lab.on("b")
    put(b / "saes/r/cfg.json", "stale")  # an earlier command was killed here
    put(b / "saes/old/cfg.json", "stale")
    with held(lab.on("a") and lab.url) as a:
        put(a / "saes/r/cfg.json", "new")
        put(a / "activations/train-0.safetensors", "large")
        put(a / "study.toml", "1")
        keep(a)
        b = lab.on("b")
        fetch_as_helper(b)
        assert (b / "saes/r/cfg.json").read_text() == "new"
        assert not (b / "saes/old/cfg.json").exists()
        fetch(b / "activations")
        (b / "activations/train-0.safetensors").unlink()  # whoever frees space
        (b / "study.toml").unlink()
        put(b / "results/r/result.json", "made")
        put(b / "saes/r/checkpoint/step-1", "1")
        keep(b)
        (b / "saes/r/checkpoint/step-1").unlink()
        keep(b / "saes/r/checkpoint")
        put(a / "study.toml", "2")  # not kept yet
        fetch(a)
        assert (a / "study.toml").read_text() == "2"
        assert (a / "results/r/result.json").read_text() == "made"
        fetch_as_helper(a)  # on the machine of the holder, nothing of its own is lost
        assert (a / "study.toml").read_text() == "2"
    assert lab.there() == {
        "activations/train-0.safetensors": b"large",
        "results/r/result.json": b"made",
        "saes/r/cfg.json": b"new",
        "study.toml": b"2",
    }


def test_ratings_are_added_to_by_one_process_at_a_time(lab: Lab) -> None:
    lab.on("a")
    with held(lab.url), at_hand(lab.url, RATING):  # while a command works on the study
        lab.on("b")
        with pytest.raises(UserError, match="another monosem process"):
            at_hand(lab.url, RATING).__enter__()
    assert not lab.there()


def test_folders_come_and_go_while_files_are_kept(lab: Lab) -> None:
    a, over = lab.on("a"), threading.Event()

    def change() -> None:
        while not over.is_set():
            put(a / "saes/r/checkpoint/step-1/facts.json", "1")
            shutil.rmtree(a / "saes/r/checkpoint/step-1")

    changing = threading.Thread(target=change)
    changing.start()
    try:
        for _ in range(100):
            keep(a)
    finally:
        over.set()
        changing.join()


def test_the_first_error_is_the_one_that_is_said(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    a, holding = lab.on("a"), held(lab.url)
    holding.__enter__()
    put(a / "x.json", "1")
    monkeypatch.setattr(Place, "upload", _refused)
    error = KeyboardInterrupt()
    assert not holding.__exit__(KeyboardInterrupt, error, None)  # it goes on
    with pytest.raises(UserError, match="refused"):
        keep(a)


def _refused(*_: Any) -> None:
    raise UserError("refused")


def test_what_was_sent_before_a_failure_is_noted(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    a, upload = lab.on("a"), Place.upload
    for number in range(4):
        put(a / f"{number}.json", "1")

    def fail_once(place: Place, name: str, source: Path) -> str | None:
        if name == "2.json":
            time.sleep(0.3)
            raise UserError("refused")
        return upload(place, name, source)

    monkeypatch.setattr(Place, "upload", fail_once)
    with pytest.raises(UserError, match="refused"):
        keep(a)
    monkeypatch.setattr(Place, "upload", upload)
    put(a / "0.json", "changed since")
    fetch(a)
    assert (a / "0.json").read_text() == "changed since"


def test_a_store_that_does_not_answer_costs_no_training(
    lab: Lab, tiny_lm: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_of(tiny_lm, corpus, RUNS)
    study["train"] |= {"checkpoint_seconds": 0.0, "tokens": 128 * 5}
    path, a = write_study(study, tmp_path / "study.toml"), lab.on("a")
    run("harvest", path, "--out", lab.url)
    upload, asked = Place.upload, []

    def refuse(self: Place, name: str, source: Path) -> str | None:
        if not name.startswith("saes/"):
            return upload(self, name, source)
        asked.append(name)
        raise Unreachable(f"{self.url}: no route to host")

    with monkeypatch.context() as broken:
        broken.setattr(Place, "upload", refuse)
        assert "no route to host" in run("train", path, "--out", lab.url, code=2).stderr
    assert any("checkpoint" in name for name in asked)
    assert len(list(a.glob("saes/*/sae_weights.safetensors"))) == 2
    assert "train: reused" in run("compare", path, "--out", lab.url).stdout
    assert sum(name.endswith("sae_weights.safetensors") for name in lab.there()) == 2
    assert not list(a.glob("saes/*/checkpoint"))
    assert not [name for name in lab.there() if "checkpoint" in name]


def test_ctrl_c_stays_one_when_the_store_does_not_answer(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise Unreachable("no route to host")

    def interrupted() -> None:
        with held(lab.url) as a:
            put(a / "x.json", "1")
            for name in ("upload", "remove"):
                monkeypatch.setattr(Place, name, refuse)
            raise KeyboardInterrupt

    lab.on("a")
    with pytest.raises(KeyboardInterrupt):
        interrupted()


def test_keys_that_make_folders_be_seen_are_no_files(lab: Lab) -> None:
    store, root = Place(lab.url).connect()
    for name in ("", "saes/"):
        store.pipe_file(f"{root}/{name}", b"")
    lab.on("a")
    with at_hand(lab.url) as a:
        put(a / "saes/r/cfg.json", "{}")
    assert "saes/r/cfg.json" in lab.there()


def test_files_are_named_by_where_the_user_has_them(lab: Lab, finished_study: Path) -> None:
    a = lab.on("a")
    run("compare", finished_study / "study.toml", "--out", lab.url)
    store, root = Place(lab.url).connect()
    store.pipe_file(f"{root}/activations/meta.json", b'{"a": ')
    said = run("compare", lab.url, code=2).stderr
    assert f"error: {lab.url}/activations/meta.json: not valid JSON" in said
    assert f"(the copy here: {a})" in said
    store.rm_file(f"{root}/activations/meta.json")  # as the message says
    assert "harvest: " in run("compare", lab.url).stdout


def test_a_place_below_saes_is_a_place_of_its_own(lab: Lab, bucket: str) -> None:
    lab.on("a")
    for name in ("saes/one", "saes/one/"):
        assert address(local(f"{bucket}/{name}")) == f"{bucket}/saes/one"


def test_a_study_moves_between_machines(lab: Lab, tiny_lm: Path, corpus: Path, tmp_path: Path) -> None:
    study = write_study(study_of(tiny_lm, corpus, RUNS), tmp_path / "study.toml")
    run("compare", study, "--out", tmp_path / "here")
    a = lab.on("a")
    said = run("compare", study, "--out", lab.url).stdout
    assert f"{lab.url}: worked on in {a}" in said
    assert f"report: {a}/report.html ({lab.url}/report.html)" in said
    here = {path.relative_to(tmp_path / "here").as_posix() for path in (tmp_path / "here").rglob("*") if path.is_file()}
    assert set(lab.there()) == here - {".lock"}
    for path in (tmp_path / "here").glob("saes/*/sae_weights.safetensors"):
        assert file_hash(a / path.relative_to(tmp_path / "here")) == file_hash(path)
    lab.on("b")
    said = run("compare", lab.url).stdout
    for stage in ("harvest", "train", "measure", "report"):
        assert f"{stage}: reused" in said
    assert "measure: done" in run("measure", lab.url, "--set", "measure.ce_tokens=500").stdout
    run("eval", "density", lab.url)
    run("export-results", lab.url)
    run("rate", "draw", lab.url, "--features", 2)
    run("card", f"{lab.url}/saes/topk-k8")
    assert {"saebench", "ratings"} <= {name.partition("/")[0] for name in lab.there()}
    assert "saes/topk-k8/README.md" in lab.there()
    lab.on("c")
    assert "nothing was sent" in run("push", lab.url, "hf:x/y", "--dry-run").stdout


def test_another_machine_goes_on_after_kill_9(lab: Lab, tiny_lm: Path, corpus: Path, tmp_path: Path) -> None:
    study = study_of(tiny_lm, corpus, RUNS)
    study["train"] |= {"checkpoint_seconds": 0.0, "tokens": 128 * 150}
    path = write_study(study, tmp_path / "study.toml")
    lab.on("a")
    environment = {**ENVIRONMENT, **os.environ}
    process = subprocess.Popen(command("compare", path, "--out", lab.url), env=environment, stdout=subprocess.DEVNULL)
    fs, root = Place(lab.url).connect()
    wait_until(lambda: len(fs.glob(f"{root}/saes/*/checkpoint/step-*")) >= 2, 30)
    process.send_signal(signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL
    b = lab.on("b")
    said = run("compare", path, "--out", lab.url).stdout
    assert "harvest: reused" in said
    assert "train: done" in said
    assert "resumed, 2 runs" in said
    run("compare", path, "--out", tmp_path / "here")
    for weights in (tmp_path / "here").glob("saes/*/sae_weights.safetensors"):
        assert file_hash(b / weights.relative_to(tmp_path / "here")) == file_hash(weights)
    assert not [name for name in lab.there() if "checkpoint" in name]


def test_machines_of_torchrun_share_a_bucket_and_no_folder(
    lab: Lab, tiny_lm: Path, corpus: Path, tmp_path: Path
) -> None:
    study = study_of(tiny_lm, corpus, RUNS)
    study["train"] |= {"checkpoint_seconds": 0.0, "tokens": 128 * 30}
    path = write_study(study, tmp_path / "study.toml")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    nodes = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}"]
    launch = [sys.executable, "-m", "torch.distributed.run", *nodes, "--local-addr=127.0.0.1", "-m", "monosem"]
    arguments = [*launch, "compare", str(path), "--out", lab.url, "--set", "compute.feature_parallel=2"]
    processes = []
    for machine in ("a", "b"):
        lab.on(machine)
        environment = {**ENVIRONMENT, **os.environ, "OMP_NUM_THREADS": "1"}
        processes.append(subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, text=True))
    said = "".join(process.communicate(timeout=200)[0] for process in processes)
    assert [process.returncode for process in processes] == [0, 0]
    assert "2 processes" in said
    run("compare", path, "--out", tmp_path / "here")
    c = lab.on("c")
    fetch(c)
    for weights in (tmp_path / "here").glob("saes/*/sae_weights.safetensors"):
        found = load_file(c / weights.relative_to(tmp_path / "here"))
        for name, value in load_file(weights).items():
            assert float((found[name] - value).norm()) <= 1e-5 * float(value.norm()), (weights, name)
    assert not [name for name in lab.there() if "checkpoint" in name]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://nowhere-at-all/x", "s3://nowhere-at-all/x: can't be written (The specified bucket does not exist)"),
        ("foo://lab/x", "foo://lab/x: no such kind of store (Protocol not known: foo)"),
        ("gs://lab/x", "pip install 'monosem[gs]'"),
        ("s3://", "s3://: a bucket and a folder in it are wanted, as s3://BUCKET/DIR"),
    ],
)
def test_bad_places_are_named(
    lab: Lab, url: str, words: str, finished_study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    lab.on("a")
    assert words in run("compare", finished_study / "study.toml", "--out", url, code=2).stderr


def test_a_place_without_a_study_is_named(lab: Lab) -> None:
    lab.on("a")
    assert f"error: {lab.url}: not a study folder (no study.toml in it)" in run("report", lab.url, code=2).stderr
    for arguments in (["serve"], ["export-features"], ["export-results"], ["rate", "freeze"]):
        assert f"error: {lab.url}: not a study folder" in run(*arguments, lab.url, code=2).stderr
    assert not lab.there()


def test_a_store_that_does_not_answer_is_named(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = lab.on("a")

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no route to host\nand more")

    put(folder / "x.json", "1")
    monkeypatch.setattr(Place(lab.url).connect()[0], "put_file", refuse)
    with pytest.raises(UserError, match=r"can't be written \(no route to host\); see that the place exists"):
        keep(folder)
    assert (folder / "x.json").exists()


def test_an_ordinary_folder_needs_nothing(tmp_path: Path) -> None:
    put(tmp_path / "x.json", "1")
    before = threading.active_count()
    with at_hand(tmp_path) as folder, held(tmp_path) as same:
        assert folder == same == tmp_path == local(tmp_path) == local(f"file://{tmp_path}")
        assert threading.active_count() == before
        fetch(folder)
        keep(folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "x.json"]
