"""What a card is about: one SAE's folder, or a study's with all its SAEs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monosem.report.inputs import Study, read_study
from monosem.store import read_json
from monosem.types import UserError


@dataclass(frozen=True)
class Subject:
    """The SAEs of a folder.

    saes: run name -> (folder, content of cfg.json). runs: the summary's objects, of the one SAE or of the whole study,
    also of SAEs that were loaded from elsewhere, which aren't among `saes`.
    study: the study that they come from, where it is known. single: the folder is one SAE's, not a study's.
    """

    folder: Path
    single: bool
    saes: dict[str, tuple[Path, dict[str, Any]]]
    runs: list[dict[str, Any]]
    study: Study | None

    @property
    def name(self) -> str:
        """The SAE's name, or the study's."""
        return (
            next(iter(self.saes)) if self.single else str((self.study and self.study.summary.get("study")) or "study")
        )

    def fact(self, key: str) -> Any:
        """Return what cfg.json of the first SAE says: `site` and `model` by either name, `context`."""
        _, cfg = next(iter(self.saes.values()))
        names = {"site": "hook_name", "model": "model_name", "context": "context_size"}
        return cfg.get("monosem", {}).get(key) or (cfg.get("metadata") or {}).get(names[key])


def read_subject(folder: Path) -> Subject:
    """Read a folder `saes/<run>` or a study folder.

    Raises UserError when it is neither, when a study has no summary or no finished SAE, or when a file is damaged.
    """
    if (folder / "cfg.json").exists():
        return _single(folder)
    if not (folder / "saes").is_dir():
        raise UserError(f"{folder}: neither an SAE (no cfg.json) nor a study (no saes/); name a folder of either kind")
    study = read_study(folder)
    saes = {}
    for run in study.runs:
        path = folder / "saes" / run["name"]
        if (path / "cfg.json").exists() and not run.get("loaded"):
            saes[run["name"]] = (path, read_cfg(path))
    if not saes:
        raise UserError(
            f"{folder}: {folder / 'saes'} holds no SAE that the summary names as trained here; train them first"
        )
    return Subject(folder, False, saes, study.runs, study)


def _single(folder: Path) -> Subject:
    cfg = read_cfg(folder)
    name = str(cfg.get("monosem", {}).get("name") or folder.resolve().name)
    home = folder.resolve().parent.parent
    study = read_study(home) if folder.resolve().parent.name == "saes" and (home / "summary.json").exists() else None
    runs = [run for run in study.runs if run["name"] == name] if study else []
    return Subject(folder, True, {name: (folder, cfg)}, runs, study if runs else None)


def read_cfg(folder: Path) -> dict[str, Any]:
    """Read an SAE's cfg.json. Raises UserError when it isn't an object, or lacks what every SAE has."""
    path = folder / "cfg.json"
    cfg = read_json(path)
    if not isinstance(cfg, dict) or not isinstance(cfg.get("monosem", {}), dict):
        raise UserError(f"{path}: must be a JSON object, and `monosem` in it, too")
    for key in ("architecture", "d_in", "d_sae"):
        if key not in cfg:
            raise UserError(f'{path}: "{key}" is missing')
    return cfg
