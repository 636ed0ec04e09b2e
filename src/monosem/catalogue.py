"""What comes along: variants, evaluations, formats and studies."""

from __future__ import annotations

import pkgutil
from pathlib import Path

from monosem.remote import fetch, local
from monosem.types import UserError

HERE = Path(__file__).resolve().parent


def study_files() -> dict[str, Path]:
    """Return the studies that come along, by name: inside the package, or in the checkout it runs from."""
    for folder in (HERE / "studies", HERE.parents[1] / "studies"):
        found = {path.stem: path for path in sorted(folder.glob("*.toml"))}
        if found:
            return found
    return {}


def find_study(target: str) -> tuple[Path, Path | None]:
    """Return the study file that `target` means, and its study folder if it lies in one.

    target: a TOML file, a study folder (with study.toml), also in an object store, or the name of a study that comes
    along.
    """
    path = local(target).expanduser()
    fetch(path, "study.toml")
    if path.is_dir():
        if not (path / "study.toml").exists():
            raise UserError(
                f"{target}: not a study folder (no study.toml in it); run `monosem compare STUDY.toml --out {target}`"
            )
        return path / "study.toml", path
    if path.exists():
        return path, path.parent if path.name == "study.toml" else None
    known = study_files()
    if target in known:
        return known[target], None
    raise UserError(f"{target}: no such study file or folder; studies that come along: {', '.join(known)}")


def find_folder(target: str) -> Path:
    """Return the study folder that `target` means, of one in an object store its copy here.

    Raises UserError when it is none.
    """
    if (found := find_study(target)[1]) is None:
        raise UserError(f"{target}: a study folder is wanted here (one that `monosem compare` wrote)")
    return found


def lines(what: str) -> list[str]:
    """Return one line for each thing of a kind: variants, evals, formats or studies."""
    if what == "studies":
        return [f"{name}  {path}" for name, path in study_files().items()]
    folders = {"variants": "variants", "evals": "evals", "formats": "formats"}
    if what not in folders:
        raise UserError(f'list "{what}": unknown; known are variants, evals, formats, studies')
    names = sorted(m.name for m in pkgutil.iter_modules([str(HERE / folders[what])]))
    return [f"{name:<12} {_first_line(HERE / folders[what] / f'{name}.py')}" for name in names]


def _first_line(path: Path) -> str:
    import ast

    source = path if path.exists() else path.with_suffix("") / "__init__.py"
    return (ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or "").partition("\n")[0]
