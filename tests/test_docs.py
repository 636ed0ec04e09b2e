"""The documentation is complete and true: keys with their defaults, metrics, commands, hyperparameters, links."""

from __future__ import annotations

import re
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from monosem.catalogue import study_files
from monosem.cli import app
from monosem.config import MeasureConfig, ModelConfig, StudyFile, TextConfig, TrainConfig
from monosem.definitions import METRICS
from monosem.evals import evaluation_names
from monosem.model import HOOKS
from monosem.normaliser import PER_TOKEN, SCALAR
from monosem.schema import SUMMARY_ESTIMATES
from monosem.variants import Recipe, variant_class, variant_names

ROOT = Path(__file__).resolve().parents[1]
SECTIONS = {"model": ModelConfig, "text": TextConfig, "train": TrainConfig, "measure": MeasureConfig}
COMMANDS = {
    command.name or (command.callback.__name__ if command.callback else "") for command in app.registered_commands
} | {group.name for group in app.registered_groups}
PAGES = sorted(path for folder in (ROOT, ROOT / "docs") for path in folder.glob("*.md"))


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def section(page: str, heading: str) -> str:
    """Return what stands below `## heading`, up to the next such heading."""
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE)
    assert found, f"no heading `## {heading}`"
    return found[1]


def rows(text: str) -> dict[str, list[str]]:
    """Return the rows of tables whose first cell is a name in backticks: name -> the other cells, the first counts."""
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if line.startswith("| `")]
    return {row[0].strip().strip("`"): [cell.strip() for cell in row[1:]] for row in reversed(cells)}


def check_default(cell: str, default: Any, name: str) -> None:
    """Compare a default as written (`` `0.5` ``, in TOML) with the true one; where that is None, any words will do."""
    if default is None:
        assert not cell.startswith("`"), f"{name}: no fixed default, the page says {cell}"
        assert cell, f"{name}: say what takes the place of a default"
        return
    assert re.fullmatch(r"`.*`", cell), f"{name}: default {default!r}, the page says {cell!r}"
    written = tomllib.loads(f"value = {cell.strip('`')}")["value"]
    assert written == (list(default) if isinstance(default, tuple) else default), name


@pytest.mark.parametrize("name", SECTIONS)
def test_every_key_of_a_section_is_documented_with_its_default(name: str) -> None:
    documented = rows(section(read("docs/study.md"), f"`[{name}]`"))
    known = SECTIONS[name].model_fields
    assert set(known) <= set(documented)
    assert set(documented) <= set(known) | set(SCALAR) | set(PER_TOKEN)
    for key, field in known.items():
        check_default(documented[key][0], field.get_default(call_default_factory=True), f"{name}.{key}")


def test_top_level_and_run_keys_are_documented() -> None:
    page = read("docs/study.md")
    assert set(rows(section(page, "Top level"))) == set(StudyFile.model_fields)
    named = set(re.findall(r"`(\w+)`", section(page, "`[[run]]`")))
    assert {"variant", "name", "d_sae", "seeds", *(f.name for f in fields(Recipe))} <= named


def test_every_normaliser_is_documented() -> None:
    assert {*SCALAR, *PER_TOKEN} <= set(rows(section(read("docs/study.md"), "`[train]`")))


@pytest.mark.parametrize("name", variant_names())
def test_every_hyperparameter_is_documented_with_its_default(name: str) -> None:
    documented = rows(section(read("docs/variants.md"), f"`{name}`"))
    known = {f.name: f.default for f in fields(variant_class(name))}
    assert set(documented) == set(known)
    for key, default in known.items():
        check_default(documented[key][0], default, f"{name}.{key}")


def test_every_optimiser_setting_is_documented() -> None:
    assert set(rows(section(read("docs/variants.md"), "Optimiser settings"))) == {f.name for f in fields(Recipe)}


def test_every_metric_is_documented_with_its_unit() -> None:
    documented = rows(read("docs/metrics.md"))
    assert set(METRICS) | set(SUMMARY_ESTIMATES) <= set(documented)
    for name, metric in METRICS.items():
        assert metric.unit == documented[name][1], name
        assert documented[name][0], f"{name}: no formula"
        assert documented[name][2], f"{name}: no interval method"


def test_every_evaluation_is_documented() -> None:
    assert set(evaluation_names()) == set(rows(section(read("docs/metrics.md"), "Evaluations")))


def test_every_hook_is_documented() -> None:
    assert set(HOOKS) == set(rows(section(read("docs/sites.md"), "Hook names")))


def test_readme_shows_every_command_and_no_other() -> None:
    pieces = re.findall(r"^```\n(.*?)^```$|`([^`\n]+)`", read("README.md"), re.DOTALL | re.MULTILINE)
    code = "\n".join(block or span for block, span in pieces)
    assert set(re.findall(r"^monosem ([a-z][a-z-]*)", code, re.MULTILINE)) == COMMANDS


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_commands_targets_and_links_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert set(re.findall(r"`monosem ([a-z][a-z-]*)", text)) <= COMMANDS
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE)) <= targets
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if not link.startswith("http") and link != "docs/report.png":  # made by `make screenshot`
            assert (path.parent / link).exists(), link


def test_studies_that_come_along_are_named() -> None:
    assert all(f"`{name}`" in read("README.md") for name in study_files())


def test_the_tree_has_every_module() -> None:
    tree = section(read("ARCHITECTURE.md"), "Tree")
    top = {p.name if p.is_file() else f"{p.name}/" for p in (ROOT / "src" / "monosem").iterdir() if p.name[0] != "_"}
    assert {name for name in top if not re.search(rf"^  {re.escape(name)} ", tree, re.MULTILINE)} == set()


def test_every_make_target_is_in_contributing() -> None:
    targets = set(re.findall(r"^([a-z-]+): .*##", read("Makefile"), re.MULTILINE)) - {"help"}
    assert targets == {name.removeprefix("make ") for name in rows(read("CONTRIBUTING.md")) if name.startswith("make ")}
