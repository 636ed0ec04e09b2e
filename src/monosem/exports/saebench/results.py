"""What the evaluations left of a run, as far as it is of the run's weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from polars import selectors

from monosem.evaluate import result_folder
from monosem.store import read_json
from monosem.types import Estimate, UserError


@dataclass(frozen=True)
class Stored:
    """A result on disk. scalars: None where undefined; reasons: why; settings: it was made with; inputs: hashes of what
    it depends on; incomplete: what is missing from it, in words.
    """

    path: Path
    scalars: dict[str, Estimate | None]
    reasons: dict[str, str]
    settings: dict[str, Any]
    inputs: dict[str, Any]
    incomplete: str

    def value(self, name: str) -> float | None:
        """Return a scalar's value, None where there is none."""
        found = self.scalars.get(name)
        return None if found is None else found.value

    def rows(self) -> pl.DataFrame:
        """Read the table beside it, with null for NaN. Raises UserError when it is missing or damaged."""
        path = self.path.parent / "rows.parquet"
        try:
            return pl.read_parquet(path, glob=False).with_columns(selectors.float().fill_nan(None))
        except (pl.exceptions.PolarsError, OSError, pl.exceptions.PanicException) as error:
            raise UserError(
                f"{path}: can't be read ({error}); delete its folder and run the evaluation again"
            ) from error


@dataclass(frozen=True)
class Results:
    """The results of a run. weights: SHA-256 of its weights."""

    folder: Path
    run: str
    weights: str

    def of(self, evaluation: str) -> Stored | None:
        """Return one evaluation's result, None where there is none. Raises UserError for one of other weights."""
        path = result_folder(self.folder, self.run, evaluation) / "result.json"
        if not path.exists():
            return None
        found = read_json(path)
        try:
            header, scalars = found["header"], found["scalars"]
            if header["sae"] != self.weights:
                raise UserError(
                    f"{path}: belongs to other weights of {self.run}; run `monosem eval {evaluation} {self.folder}`"
                )
            estimates = {name: None if value is None else Estimate(**value) for name, value in scalars.items()}
            incomplete = str(found.get("incomplete") or "")
            return Stored(path, estimates, found["reasons"], header["settings"], header["inputs"], incomplete)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: not a result ({error!r}); delete it and run the evaluation again") from error

    def required(self, evaluation: str) -> Stored:
        """Return one evaluation's result. Raises UserError where there is none."""
        found = self.of(evaluation)
        if found is None:
            raise UserError(f"{self.run}: no result of {evaluation}; run `monosem measure {self.folder}` first")
        return found
