"""Study files: fan-out, precedence, overrides, and one clear sentence for everything that is wrong."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from monosem.catalogue import study_files
from monosem.config import load_study, make_study
from monosem.types import UserError

GOOD: dict[str, Any] = {
    "name": "good",
    "text": {"train_tokens": 1000},
    "train": {"d_sae": 64},
    "run": [
        {"variant": "topk", "k": [4, 8]},
        {"variant": "standard", "l1_coefficient": [1.0, 2.0], "lr": [1e-3, 1e-4]},
    ],
}


def changed(**changes: Any) -> dict[str, Any]:
    study = copy.deepcopy(GOOD)
    for path, value in changes.items():
        target: Any = study
        *parents, last = path.split("__")
        for part in parents:
            target = target[int(part)] if isinstance(target, list) else target.setdefault(part, {})
        target[last] = value
    return study


def test_lists_multiply_out() -> None:
    runs = make_study(GOOD).runs
    assert [r.name for r in runs] == [
        "topk-k4",
        "topk-k8",
        "standard-l1_1-lr_0.001",
        "standard-l1_1-lr_0.0001",
        "standard-l1_2-lr_0.001",
        "standard-l1_2-lr_0.0001",
    ]
    assert runs[3].recipe.lr == 1e-4
    assert runs[0].recipe.lr == pytest.approx(2e-4 / (64 / 2**14) ** 0.5)


def test_precedence_is_run_then_train_then_recipe() -> None:
    study = make_study(changed(train__lr=0.5, train__seeds=[0, 7], run__0__seeds=[3]))
    names = {r.name: r for r in study.runs}
    assert names["topk-k4"].recipe.lr == 0.5
    assert names["topk-k4"].seed == 3
    assert names["standard-l1_1-lr_0.001-seed7"].recipe.lr == 1e-3
    assert names["topk-k4"].recipe.beta2 == 0.999
    assert names["topk-k4"].recipe.eps == 6.25e-10


@pytest.mark.parametrize(
    ("study", "words"),
    [
        (changed(text__trian_tokens=5), r"text\.trian_tokens: unknown key; known are .*train_tokens"),
        (changed(extra=1), r"extra: unknown key; known are .*model"),
        (changed(train__d_sae="many"), r"train\.d_sae = 'many': .*integer"),
        (changed(train__d_sae=0), r"d_sae = 0: .*at least"),
        (changed(train__batch_size=0), r"train\.batch_size = 0"),
        (changed(train__normalise="loud"), r"train\.normalise = 'loud'"),
        (changed(train__seeds=[]), r"train\.seeds"),
        (changed(run__0__variant="topq"), r"unknown variant; known are .*gated.*standard.*tanh.*topk"),
        (changed(run__0__kk=3), r"kk: unknown key for variant \"topk\".*known are .*k"),
        (changed(run__0__k=[65]), r"k = 65: .*d_sae = 64"),
        (changed(run__0__k=["a"]), r"k = 'a'"),
        (changed(run__0__k=[]), r"k = \[\]: give at least one value"),
        (changed(run__0__batch_size=5), r"batch_size: unknown key .*equal for all runs"),
        (changed(run__1__lr=[-1.0]), r"lr = -1\.0"),
        (changed(run__1__l1_coefficient=[-1.0]), r"l1_coefficient"),
        (changed(run__1__name="a b"), r"name = 'a b'"),
        (changed(name="../up"), r"name = \"\.\./up\""),
        (changed(run=[]), r"run"),
        (changed(run=[{"k": 3}]), r"variant: missing"),
        (changed(run=[{"variant": "topk", "k": 3}] * 2), r"two runs are called \"topk-k3\""),
        (changed(run=[{"variant": "gated", "mode": "mixed"}]), r"mixed"),
        (changed(compute__threads=100_000), r"compute\.threads = 100000: input should be less than or equal to 1024"),
        (changed(model__device_map="autoo"), r"model\.device_map = 'autoo': input should be '', 'auto'"),
        (changed(model__max_memory={"cpu": "1GB"}), r"model\.max_memory = .*: it needs model\.device_map, as \"auto\""),
        *(
            (
                changed(model__device_map="auto", model__max_memory=limits),
                r"model\.max_memory = .*: give each GPU's number or cpu a size, as \{ \"0\" = \"20GiB\"",
            )
            for limits in ({"cpu": "lots"}, {"cpu": "-1GB"}, {"gpu": "1GB"}, {"0": "20"}, {"0": "20gb"})
        ),
        ({"run": [{"variant": "topk"}]} | {"text": {"eval_tokens": 0}}, r"text\.eval_tokens = 0"),
    ],
)
def test_bad_studies_get_one_clear_sentence(study: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        make_study(study)
    assert "\n" not in str(caught.value)


def test_files_that_are_not_studies(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such study file"):
        load_study(tmp_path / "missing.toml")
    (tmp_path / "bad.toml").write_text("a = = 1")
    with pytest.raises(UserError, match=r"bad\.toml: not valid TOML: .*line 1"):
        load_study(tmp_path / "bad.toml")


def test_overrides(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[text]\ntrain_tokens = 10\n[[run]]\nvariant = "topk"\nk = [4]\n')
    study = load_study(path, ["train.d_sae=32", "run.0.k=[2, 3]", "model.site=blocks.1.hook_mlp_out", "text.seed=5"])
    assert [r.name for r in study.runs] == ["topk-k2", "topk-k3"]
    assert study.file.name == "mine"
    assert study.file.model.site == "blocks.1.hook_mlp_out"
    assert study.file.text.seed == 5
    for wrong, words in [
        ("train.d_sae", "write section.key=value"),
        ("run.5.k=1", "no run number"),
        ("run.k=1", "no run number|name one of"),
        ("name.x=1", "is a value, not a section"),
        ("train.dsae=1", "unknown key"),
    ]:
        with pytest.raises(UserError, match=words):
            load_study(path, [wrong])


def test_the_resolved_study_reads_back_as_itself(tmp_path: Path) -> None:
    study = make_study(changed(train__lr=0.5))
    (tmp_path / "study.toml").write_text(study.toml())
    assert load_study(tmp_path / "study.toml") == study


def test_studies_that_come_along_are_valid() -> None:
    files = study_files()
    assert {"quickstart", "june2024", "tiny"} <= set(files)
    studies = {name: load_study(path) for name, path in files.items()}
    quick = studies["quickstart"].file
    assert quick.text.train_tokens >= 300_000
    assert quick.text.eval_tokens >= 50_000
    assert quick.train.d_sae >= 4096
    assert quick.measure.ce_tokens >= 8_000
    by_variant: dict[str, list[Any]] = {}
    for run in studies["quickstart"].runs:
        by_variant.setdefault(run.variant_name, []).append(run.variant)
    assert set(by_variant) == {"standard", "tanh", "gated", "topk"}
    assert all(len(runs) >= 3 for runs in by_variant.values())
    assert {20, 50} <= {v.k for v in by_variant["topk"]}
    seed = studies["june2024"]
    assert {r.d_sae for r in seed.runs} == {131_072, 262_144}
    assert {r.seed for r in seed.runs} == {0, 1, 2}
    assert {r.variant.k for r in seed.runs if r.variant_name == "topk"} == {20, 50, 100}  # type: ignore[attr-defined]
