"""Which files of an SAE or a study are published. What isn't named here stays on the machine."""

from __future__ import annotations

from pathlib import Path

from monosem.card.page import model_card
from monosem.card.subject import read_subject
from monosem.store import file_hash
from monosem.types import UserError

OF_A_STUDY = ("study.toml", "summary.json", "environment.json", "report.html")
WEIGHTS = "sae_weights.safetensors"


def shared_files(
    folder: Path, repo: str, license: str | None = None, card: Path | None = None
) -> dict[str, Path | bytes]:
    """Return path in the repository -> file or content: the card, its figure, and what the card is about.

    An SAE is cfg.json and its weights. A study is study.toml, summary.json, environment.json, report.html where they
    exist, and a folder for each SAE that was trained in it. Never activations, codes, checkpoints, judges' answers or
    ratings. repo, license: as model_card takes them. card: a card to publish instead of a fresh one.
    Raises UserError when the folder is neither, when weights are missing or altered, when a link leads out of the
    folder, or when the card can't be read.
    """
    subject = read_subject(folder)
    files: dict[str, Path | bytes] = {name: text.encode() for name, text in model_card(folder, repo, license).items()}
    if card is not None:
        files["README.md"] = _own(card)
    if not subject.single:
        files |= {name: folder / name for name in OF_A_STUDY if (folder / name).exists()}
    for name, (path, cfg) in subject.saes.items():
        weights = path / WEIGHTS
        if not weights.exists():
            raise UserError(
                f"{weights}: no such file; publish folders with cfg.json and {WEIGHTS} (monosem convert writes them)"
            )
        digest = cfg.get("monosem", {}).get("weights_sha256")
        if digest is not None and file_hash(weights) != digest:
            raise UserError(f"{weights}: altered (its SHA-256 is not the one in cfg.json); train this SAE again")
        prefix = "" if subject.single else f"{name}/"
        files |= {f"{prefix}cfg.json": path / "cfg.json", f"{prefix}{WEIGHTS}": weights}
    for path in files.values():
        if isinstance(path, Path) and not path.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{path}: a link that leads out of {folder}; put the file itself there")
    return dict(sorted(files.items()))


def _own(card: Path) -> bytes:
    try:
        return card.read_text(encoding="utf-8").encode()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{card}: can't be read as a card ({error}); write one with `monosem card`") from error
