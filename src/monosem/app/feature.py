"""What is shown of one feature: read from codes, passages and results, ready for the page and for the exports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from monosem.app.drawing import histogram_svg
from monosem.app.effects import Effects, effects_of
from monosem.app.explanations import Explanation, explanations_of
from monosem.app.neighbours import Near, decoder_rows, nearest
from monosem.app.study import Run, Study
from monosem.app.table import Column, features_table
from monosem.app.tasks import BestFor, tasks_of
from monosem.app.tokens import strongest_tokens, visible, window_html
from monosem.examples import INTERVALS, MIN_FIRINGS, SHOWN, Example, Examples, examples_of
from monosem.firings import Fires
from monosem.metrics import wilson
from monosem.passages import Passages
from monosem.types import UserError

BEFORE, AFTER = 10, 6  # tokens shown around an example
NEAR_OWN, NEAR_OTHER = 6, 1


@dataclass(frozen=True)
class Line:
    """One example on the page. share: percent of the peak."""

    doc: int
    pos: int
    share: int
    tokens: Markup


@dataclass(frozen=True)
class Interval:
    """One interval of activation. low, high: of the peak, in percent; share: of all firings, in percent."""

    number: int
    low: int
    high: int
    share: float
    lines: list[Line]
    rated: bool


@dataclass(frozen=True)
class Logit:
    """An output token and what the feature adds to its logit, per unit of activation."""

    text: str
    value: float

    @property
    def shown(self) -> str:
        """The text as pages show it."""
        return visible(self.text)


@dataclass(frozen=True)
class FeatureView:
    """A feature as its page shows it. notes: what is missing and why; scores: what evaluations say of it."""

    run: Run
    feature: int
    tokens: int
    fires: Fires
    examples: Examples | None
    numbers: dict[str, float | None]
    scores: list[tuple[Column, Any]]
    explanations: list[Explanation]
    tasks: list[BestFor]
    effects: Effects | None
    words: list[str]
    top: list[Line]
    intervals: list[Interval]
    histogram: Markup | None
    raised: list[Logit]
    lowered: list[Logit]
    notes: list[str]


# The nearest features by run, each with the tokens on which it is strongest.
Neighbours = list[tuple[Run, list[tuple[Near, list[str]]]]]

NOTHING = Fires(np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.float32))


def feature_view(study: Study, run: Run, feature: int, whole: bool = False) -> FeatureView:
    """Return what is shown of a feature, with notes where codes or text are missing; with `whole`, raises UserError."""
    notes: list[str] = []
    fires, passages, examples, tokens = NOTHING, None, None, 0
    try:
        firings = study.firings(run.name)
        fires, tokens = firings.of(feature), firings.tokens
        passages = study.passages()
        examples = examples_of(feature, fires, passages)
    except UserError as error:
        if whole:
            raise
        notes.append(str(error))
    if examples is not None and not examples.count:
        notes.append(f"This feature never fires on the {tokens:,} held-out tokens.")
    elif examples is not None and examples.count < MIN_FIRINGS:
        notes.append(f"It fires on fewer than {MIN_FIRINGS} held-out tokens, too few for rating.")
    numbers, scores = _scores(study, run, feature)
    if tokens:
        low, high = wilson(np.array([len(fires.value)]), tokens)
        numbers |= {"density": len(fires.value) / tokens, "density_low": float(low[0]), "density_high": float(high[0])}
        numbers["count"] = len(fires.value)
    if examples is not None and examples.count:
        numbers |= {"peak": examples.peak, "mean_activation": float(fires.value.mean(dtype=np.float64))}
    top = intervals = []
    drawn, words = None, []
    if passages is not None and examples is not None and examples.count:
        top = _lines(examples.top, fires, passages, examples.peak)
        intervals = _intervals(examples, fires, passages)
        drawn = histogram_svg(fires.value, examples.peak)
        words = strongest_tokens(fires, passages)
    raised, lowered = _logits(study, run.name, feature, passages)
    said = explanations_of(study, run.name, feature)
    return FeatureView(
        run,
        feature,
        tokens,
        fires,
        examples,
        numbers,
        scores,
        said,
        tasks_of(study, run, feature),
        effects_of(study, run.name, feature, passages),
        words,
        top,
        intervals,
        drawn,
        raised,
        lowered,
        notes,
    )


def _scores(study: Study, run: Run, feature: int) -> tuple[dict[str, float | None], list[tuple[Column, Any]]]:
    """Return the numbers of the density evaluation by name, and every other column with a value but explanations."""
    table = features_table(study, run)
    row = table.frame.row(feature, named=True)
    numbers = {name: value for name, value in row.items() if "." not in name}
    others = (column for column in table.columns if "." in column.name and not column.explains)
    return numbers, [(column, row[column.name]) for column in others if row[column.name] is not None]


def _lines(examples: list[Example], fires: Fires, passages: Passages, peak: float) -> list[Line]:
    lines = []
    for doc, pos, value in examples:
        window = passages.window(doc, pos, BEFORE, AFTER)
        lines.append(Line(doc, pos, round(100 * value / peak), window_html(window, fires, peak)))
    return lines


def _intervals(examples: Examples, fires: Fires, passages: Passages) -> list[Interval]:
    return [
        Interval(
            i,
            round(100 * (INTERVALS - i - 1) / INTERVALS),
            round(100 * (INTERVALS - i) / INTERVALS),
            100 * examples.shares[i],
            _lines(sample, fires, passages, examples.peak),
            i < SHOWN,
        )
        for i, sample in enumerate(examples.intervals)
    ]


def _logits(study: Study, run: str, feature: int, passages: Passages | None) -> tuple[list[Logit], list[Logit]]:
    """Return the output tokens that the feature raises and lowers most, empty where that was not computed."""
    rows = study.rows(run, "logits")
    if rows is None or passages is None or feature >= rows.height:
        return [], []
    row = rows.row(feature, named=True)
    sides = []
    for side in ("top", "bottom"):
        texts = passages.text(row[f"{side}_tokens"])
        pairs = zip(texts, row[f"{side}_logits"], strict=True)
        sides.append([Logit(text, float(value)) for text, value in pairs])
    return sides[0], sides[1]


def neighbours(study: Study, run: Run, features: Sequence[int]) -> list[Neighbours]:
    """Return the nearest features of each of some features, by decoder cosine.

    Of this run first, then of every other run of the same site; with the tokens on which each is strongest. Raises
    UserError when the run's own weights can't be read.
    """
    rows = decoder_rows(study.folder, run.name, features)
    runs = [run, *(other for other in study.runs().values() if other.name != run.name and other.site == run.site)]
    found: list[Neighbours] = [[] for _ in features]
    for one in runs:
        own = one.name == run.name
        try:
            near = nearest(study.folder, one.name, rows, NEAR_OWN if own else NEAR_OTHER, features if own else ())
        except UserError:
            continue
        for entry, nears in zip(found, near, strict=True):
            entry.append((one, [(n, words_of(study, one.name, n.feature)) for n in nears]))
    return found


def words_of(study: Study, run: str, feature: int) -> list[str]:
    """Return the tokens on which a feature is strongest; empty for a dead one, or without codes.

    They are kept: a table shows those of 50 features, and reading them takes most of its time.
    """
    kept: dict[int, list[str]] = study.kept(("words", run), study.codes_files(run), dict[int, list[str]])
    if feature not in kept:
        try:
            kept[feature] = strongest_tokens(study.firings(run).of(feature), study.passages())
        except UserError:
            return []
    return kept[feature]
