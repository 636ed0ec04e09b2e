"""The hub: specs, download of one folder, offline use, upload as one commit, each refusal in one sentence.

The hub is a server on this machine (`hub_server`); huggingface_hub itself is the real one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from monosem import wheels
from monosem.hub import Address, fetch, parse, push, specs
from monosem.types import UserError
from tests.hub_server import Hub
from tests.published import write_publishable

FILES = {
    "README.md": b"# many",
    "config.json": b"{}",
    "one/cfg.json": b'{"d_in": 4}',
    "one/sae_weights.safetensors": b"one" * 500,
    "one/log.parquet": b"log",
    "one/checkpoint/step.safetensors": b"no",
    "two[1]/params.npz": b"two",
    "deep/average_l0_22/params.npz": b"deep",
    "deep/average_l0_71/params.npz": b"deeper",
    **{f"layers/{i}.pt": b"%d" % i for i in range(9)},
    "layers/config.json": b'{"layers": 9}',
}


@pytest.fixture
def server() -> Iterator[Hub]:
    hub = Hub()
    hub.repository("owner/name", FILES)
    yield hub
    hub.close()


@pytest.fixture
def hub(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The server as huggingface_hub's only hub, with an empty cache and a token that may write."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_write")
    return server


@pytest.fixture
def offline(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call it to set HF_HUB_OFFLINE."""
    from huggingface_hub import constants

    return lambda: monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def refusal(call: Any, *arguments: Any, **options: Any) -> str:
    """Return the sentence that a call is refused with."""
    with pytest.raises(UserError) as caught:
        call(*arguments, **options)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


@pytest.mark.parametrize(
    ("spec", "address"),
    [
        ("hf:o/n", Address("o/n")),
        ("hf:o/n/", Address("o/n")),
        ("hf:o/n/a/b.c", Address("o/n", "a/b.c")),
        ("hf:o/n@dev", Address("o/n", "", "dev")),
        ("hf:o/n/a@refs/pr/1", Address("o/n", "a", "refs/pr/1")),
        ("hf:o/n/a@b/c@dev", Address("o/n", "a@b/c", "dev")),
    ],
)
def test_specs(spec: str, address: Address) -> None:
    assert parse(spec) == address


@pytest.mark.parametrize(
    "spec",
    [
        "hf:", "hf:o", "hf:o/", "hf:/n", "hf:o n/m", "hf:o/n--x", "hf:../x", "hf:o/..", "hf:o/n/../x", "hf:o/n//x",
        "hf:o/n/a/./b", "hf:o/n/a\\b", "hf:o/n/a\x07b", "hf:o/n@", "hf:o/n@..", "hf:o/n@a/../../b", "o/n", "hub:o/n",
        "saelens:", "saelens:x", "saelens:/x",
    ],
)  # fmt: skip
def test_a_bad_spec_is_refused_before_any_request(spec: str, hub: Hub) -> None:
    sentence = refusal(fetch, spec)
    assert sentence.startswith(f"{spec}: ")
    assert hub.asked == []


def test_only_the_files_of_the_folder_are_downloaded(hub: Hub, tmp_path: Path) -> None:
    found = fetch("hf:owner/name/one")
    assert sorted(hub.downloads()) == ["one/cfg.json", "one/sae_weights.safetensors"]
    sha = hub.repositories["owner/name"].branches["main"]
    assert found.facts == {"repo": "owner/name", "revision": sha}
    assert {path.name: path.read_bytes() for path in found.folder.iterdir()} == {
        "cfg.json": FILES["one/cfg.json"],
        "sae_weights.safetensors": FILES["one/sae_weights.safetensors"],
    }
    assert found.root == tmp_path / "cache" / "models--owner--name"
    assert all(path.resolve().is_relative_to(found.root.resolve()) for path in found.folder.iterdir())


def test_a_second_fetch_downloads_nothing(hub: Hub) -> None:
    first = fetch("hf:owner/name/one")
    hub.asked.clear()
    assert fetch("hf:owner/name/one") == first
    assert hub.downloads() == []


def test_brackets_in_a_name_are_no_pattern(hub: Hub) -> None:
    assert [path.name for path in fetch("hf:owner/name/two[1]").folder.iterdir()] == ["params.npz"]
    assert hub.downloads() == ["two[1]/params.npz"]


def test_a_file_comes_with_the_configuration_beside_it(hub: Hub) -> None:
    found = fetch("hf:owner/name/layers/3.pt")
    assert sorted(hub.downloads()) == ["layers/3.pt", "layers/config.json"]
    assert (found.folder.name, found.facts["file"]) == ("layers", "3.pt")
    assert (found.folder / "3.pt").read_bytes() == b"3"


def test_a_revision_is_a_branch_or_a_commit(hub: Hub) -> None:
    repository = hub.repositories["owner/name"]
    old = repository.branches["main"]
    repository.branches["dev"] = old
    new = repository.commit({"one/cfg.json": b'{"new": 1}'}, "dev")
    told = {spec: fetch(f"hf:owner/name/one{spec}") for spec in ("", "@dev", f"@{new}", f"@{old}")}
    assert [found.facts["revision"] for found in told.values()] == [old, new, new, old]
    assert (told["@dev"].folder / "cfg.json").read_bytes() == b'{"new": 1}'
    assert (told[""].folder / "cfg.json").read_bytes() == FILES["one/cfg.json"]


@pytest.mark.parametrize("way", ["offline", "no server"])
@pytest.mark.parametrize("path", ["one", "layers/3.pt", "one@dev"])
def test_the_cache_is_enough_without_a_network(way: str, path: str, hub: Hub, offline: Any) -> None:
    hub.repositories["owner/name"].commit({"one/cfg.json": b"{}"}, "dev")
    hub.repositories["owner/name"].commit({"one/params.npz": b"dev"}, "dev")
    online = fetch(f"hf:owner/name/{path}")
    hub.asked.clear()
    offline() if way == "offline" else hub.close()
    assert fetch(f"hf:owner/name/{path}") == online
    assert hub.asked == []


def test_what_is_not_in_the_cache_is_refused_offline(hub: Hub, offline: Any) -> None:
    fetch("hf:owner/name/one")
    offline()
    for spec in (
        "hf:owner/name/two[1]",
        "hf:owner/name/nothing",
        "hf:owner/name/one@dev",
        "hf:owner/other/one",
        "hf:owner/name",
    ):
        sentence = refusal(fetch, spec)
        assert sentence.startswith(f"{spec}: ")
        assert "cache" in sentence
        assert "network" in sentence


def test_half_of_an_sae_in_the_cache_is_refused_offline(hub: Hub, offline: Any) -> None:
    (fetch("hf:owner/name/one").folder / "sae_weights.safetensors").unlink()
    offline()
    assert "not all of this is in the cache" in refusal(fetch, "hf:owner/name/one")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("hf:owner/nam/one", ["no model repository owner/nam", "hf auth login"]),
        ("hf:owner/name/one@dev", ['no revision "dev"']),
        ("hf:owner/name/on", ['has no "on"', "nearest: one"]),
        ("hf:owner/name/one/cfg", ['owner/name/one has no "cfg"', "cfg.json"]),
        ("hf:owner/name/none/x", ['no folder "none"']),
        ("hf:owner/name/deep", ["no weights there", "average_l0_22, average_l0_71"]),
        ("hf:owner/name", ["no weights there", "deep, layers, one"]),
        ("hf:owner/name/layers", ["9 files of weights", "name one of them: 0.pt"]),
    ],
)
def test_what_the_hub_lacks(spec: str, words: list[str], hub: Hub) -> None:
    sentence = refusal(fetch, spec)
    assert sentence.startswith(f"{spec}: ")
    for part in words:
        assert part in sentence
    assert hub.downloads() == []


def test_access(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repository("owner/gated", FILES, gated=True)
    hub.repository("owner/private", FILES, private=True)
    assert "consent to its conditions" in refusal(fetch, "hf:owner/gated/one")
    assert fetch("hf:owner/private/one").facts["repo"] == "owner/private"
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    assert "doesn't accept the token" in refusal(fetch, "hf:owner/name/one")
    monkeypatch.delenv("HF_TOKEN")
    hub.repository("owner/secret", FILES, private=True)
    assert "or it is private" in refusal(fetch, "hf:owner/secret/one")


def test_a_hub_out_of_order(hub: Hub) -> None:
    hub.broken = 418
    assert "status 418" in refusal(fetch, "hf:owner/name/one")


@pytest.mark.parametrize(
    "path",
    ["../../escaped.json", "one/../../../escaped.json", "/tmp/escaped.json", "one/a/b.json", "one/..", "one\\x.json"],
)
def test_names_that_lead_out_of_the_folder_are_refused(path: str, hub: Hub, tmp_path: Path) -> None:
    names = ("one/params.npz", path)
    hub.listed["one"] = [{"type": "file", "path": name, "oid": "0" * 40, "size": 3} for name in names]
    assert "nothing is read" in refusal(fetch, "hf:owner/name/one")
    assert hub.downloads() == []
    assert not list(tmp_path.rglob("*escaped*"))


def test_an_answer_that_is_no_listing(hub: Hub) -> None:
    hub.listed["one"] = [{"type": "file", "path": "one"}]
    assert "can't be read" in refusal(fetch, "hf:owner/name/one")


TABLE = """
gpt2-res:
  conversion_func: null
  model: gpt2
  repo_id: owner/name
  config_overrides: {dataset_path: text}
  links: {paper: x}
  saes:
  - {id: blocks.0.hook, path: one, l0: 12.5, norm_scaling_factor: 3.0, neuronpedia: gpt2/0-res}
  - {id: blocks.1.hook, path: "two[1]", l0: 9}
gpt2-att:
  conversion_func: openai
  model: gpt2
  repo_id: owner/name
  saes: [{id: layer/3, path: layers/3.pt}, {id: '4', path: 4}]
"""


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A wheel of sae-lens with a small table; none is installed."""
    wheel = tmp_path / "sae_lens.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("sae_lens/pretrained_saes.yaml", TABLE)
        archive.writestr("sae_lens/__init__.py", "raise SystemExit('imported')")
    monkeypatch.setattr(specs.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(specs.wheels, "wheel", lambda package: {wheels.SAELENS: wheel}[package])
    specs.releases.cache_clear()
    yield
    specs.releases.cache_clear()


def test_a_release_of_saelens(table: None, hub: Hub) -> None:
    found = fetch("saelens:gpt2-res/blocks.0.hook")
    sha = hub.repositories["owner/name"].branches["main"]
    assert found.facts == {
        "repo": "owner/name", "revision": sha, "release": "gpt2-res", "conversion_func": None, "model": "gpt2",
        "repo_id": "owner/name", "config_overrides": {"dataset_path": "text"}, "id": "blocks.0.hook", "path": "one",
        "l0": 12.5, "norm_scaling_factor": 3.0, "neuronpedia": "gpt2/0-res",
    }  # fmt: skip
    assert sorted(hub.downloads()) == ["one/cfg.json", "one/sae_weights.safetensors"]
    other = fetch("saelens:gpt2-att/layer/3")
    assert (other.facts["file"], other.facts["conversion_func"]) == ("3.pt", "openai")
    assert parse("saelens:gpt2-att/4").path == "4"


def test_what_saelens_has_not(table: None) -> None:
    assert refusal(parse, "saelens:gpt2-ress/x").endswith('no release "gpt2-ress"; nearest: gpt2-res, gpt2-att')
    assert refusal(parse, "saelens:gpt2-res/blocks.0.hok").endswith("nearest: blocks.0.hook, blocks.1.hook")
    assert refusal(parse, "saelens:zzz/x").endswith("some: gpt2-res, gpt2-att")


def test_an_installed_saelens_is_read_and_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "sae_lens"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    (package / "pretrained_saes.yaml").write_text(TABLE)
    monkeypatch.syspath_prepend(tmp_path)
    specs.releases.cache_clear()
    assert parse("saelens:gpt2-res/blocks.1.hook").path == "two[1]"
    (package / "pretrained_saes.yaml").write_text("a: [")
    specs.releases.cache_clear()
    assert "not valid YAML" in refusal(parse, "saelens:gpt2-res/blocks.1.hook")
    specs.releases.cache_clear()


def test_what_is_pushed_is_what_is_fetched(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(bytes(range(256)) * 40)
    files = {"cfg.json": b'{"x": 1}', "sae_weights.safetensors": tmp_path / "w.safetensors", "README.md": b"# card"}
    url = push(files, "hf:me/new/sub", message="first")
    repository = hub.repositories["me/new"]
    assert url.endswith(repository.branches["main"])
    assert (repository.private, repository.messages[1:]) == (False, ["first"])  # one commit after the empty one
    assert set(repository.commits[repository.branches["main"]]) == {f"sub/{name}" for name in files}
    folder = fetch("hf:me/new/sub").folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        "cfg.json": b'{"x": 1}',
        "sae_weights.safetensors": (tmp_path / "w.safetensors").read_bytes(),
    }


def test_a_push_keeps_what_else_there_is_and_goes_to_its_branch(hub: Hub) -> None:
    before = hub.repositories["owner/name"].branches["main"]
    push({"cfg.json": b"1"}, "hf:owner/name/new@dev", message="m")
    push({"cfg.json": b"2"}, "hf:owner/name/new@dev", message="m")  # the branch is there already
    repository = hub.repositories["owner/name"]
    assert repository.branches["main"] == before
    assert repository.commits[repository.branches["dev"]] == {**FILES, "new/cfg.json": b"2"}


def test_private(hub: Hub) -> None:
    push({"cfg.json": b"1"}, "hf:me/hidden", message="m", private=True)
    assert hub.repositories["me/hidden"].private
    push({"cfg.json": b"2"}, "hf:me/hidden", message="m", private=True)
    before = dict(hub.repositories["owner/name"].branches)
    assert "everybody can read it" in refusal(push, {"cfg.json": b"1"}, "hf:owner/name", message="m", private=True)
    assert hub.repositories["owner/name"].branches == before


def test_refused_pushes(hub: Hub, offline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"cfg.json": b"1", "README.md": b"---\nlicense: x\n---\n"}
    assert "not a place on the hub" in refusal(push, files, "saelens:a/b", message="m")
    hub.bad_metadata = '"license" must be one of ...'
    sentence = refusal(push, files, "hf:owner/name", message="m")
    assert "the hub won't take this" in sentence
    assert '"license" must be one of' in sentence
    hub.bad_metadata = ""
    for token, words in {"hf_read": "may not write to", "hf_expired": "doesn't accept the token"}.items():
        monkeypatch.setenv("HF_TOKEN", token)
        for repo in ("owner/name", "owner/new"):
            assert words in refusal(push, files, f"hf:{repo}", message="m")
    monkeypatch.setenv("HF_TOKEN", "hf_write")
    offline()
    assert "while HF_HUB_OFFLINE is set" in refusal(push, files, "hf:owner/name", message="m")
    monkeypatch.delenv("HF_TOKEN")
    hub.asked.clear()
    assert "no token" in refusal(push, files, "hf:owner/name", message="m")
    assert hub.asked == []
    assert hub.repositories["owner/name"].messages == [""]


def test_a_name_taken_by_another_kind(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub says that the name is taken, and has no model of that name."""
    monkeypatch.setattr(hub, "create", lambda *_: hub.json({"error": "taken", "url": f"{hub.url}/owner/data"}, 409))
    assert "a data set or a space of that name" in refusal(push, {"cfg.json": b"1"}, "hf:owner/data", message="m")


def test_no_server_to_push_to(hub: Hub) -> None:
    hub.close()
    assert "can't be reached" in refusal(push, {"cfg.json": b"1"}, "hf:owner/name", message="m")


@pytest.mark.slow
def test_from_the_command_line(server: Hub, tmp_path: Path) -> None:
    """Push a study, load one of its SAEs, then again with the server gone: each in a process of its own."""
    study = write_publishable(tmp_path / "study")
    environment = {**os.environ, "HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": "hf_write"}

    def run(*command: str, code: int = 0, **more: str) -> str:
        done = subprocess.run([sys.executable, *command], env={**environment, **more}, capture_output=True, text=True)
        assert done.returncode == code, done.stderr[-2000:]
        return done.stdout if code == 0 else done.stderr

    push_it = ("-m", "monosem", "push", str(study), "hf:me/study")
    listed = run(*push_it, "--dry-run")
    assert "me/study" not in server.repositories
    run(*push_it, "--private", "--message", "ours")
    repository = server.repositories["me/study"]
    files = repository.commits[repository.branches["main"]]
    assert repository.private
    assert {line.split()[1]: int(line.split()[0].replace(",", "")) for line in listed.splitlines()[:-1]} == {
        name: len(data) for name, data in files.items()
    }
    weights = "topk-k20-s0/sae_weights.safetensors"
    assert files[weights] == (study / "saes" / weights).read_bytes()

    load = "import monosem; print(monosem.load_sae('hf:me/study/topk-k20-s0').variant_name)"
    assert run("-c", load) == "topk\n"
    find = (
        "import sys; from monosem.hub import fetch; from monosem.types import UserError\n"
        "try: print(fetch(sys.argv[1]))\n"
        "except UserError as error: sys.exit(f'refused: {error}')\n"
        "assert 'torch' not in sys.modules"
    )
    online = run("-c", find, "hf:me/study/topk-k20-s0")
    server.close()
    assert run("-c", find, "hf:me/study/topk-k20-s0") == online
    assert run("-c", find, "hf:me/study/topk-k20-s0", HF_HUB_OFFLINE="1") == online
    assert "refused: hf:me/x/y: HF_HUB_OFFLINE is set" in run("-c", find, "hf:me/x/y", code=1, HF_HUB_OFFLINE="1")


def test_the_table_comes_from_the_version_that_the_oracle_tests_compare_with() -> None:
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    assert f'"{wheels.SAELENS.name}=={wheels.SAELENS.version}"' in text
