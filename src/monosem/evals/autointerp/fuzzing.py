"""Fuzzing: does an explanation tell the tokens on which its feature is active from others?

A judge reads the explanation and windows with some tokens marked, and says for each window whether the marks are right
(section K.4). Right marks are the tokens with at least .3 of the window's largest activation. Wrong marks stand on
tokens where the feature is silent, as many as on windows with right marks. Delphi's rule (`wrong_marks = "mean"`: as
many as the feature is active on in an activating window, on average, rounded up) often gives one more, and counting
marks then scores above .9 without reading; what counting would score is reported in either case.
Everything is taken from the codes; no window is of a document that the explanation was made from. Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from monosem.evals.autointerp.questions import (
    EACH,
    MIN_EACH,
    PER_PROMPT,
    Item,
    Trial,
    ask,
    grouped,
    missing,
    requests_of,
    scores_of,
)
from monosem.evals.autointerp.windows import Windows, cut, elsewhere, from_ranks, look, peaks, some, window_length
from monosem.firings import Fires
from monosem.passages import Passages

if TYPE_CHECKING:
    from monosem.evals.autointerp.records import Split
    from monosem.judges import Answer, Judge, Request

THRESHOLD = 0.3  # of a window's largest activation: from there on a token is marked
DENSE_LENGTH = 16  # tokens of a window for features that have no silent windows
WrongOn = Literal["silent", "active"]
WrongMarks = Literal["mean", "alike"]


def fuzzing_trial(
    feature: int,
    split: Split,
    fires: Fires,
    passages: Passages,
    seed: int = 0,
    each: int = EACH,
    per_prompt: int = PER_PROMPT,
    wrong_on: WrongOn = "silent",
    wrong_marks: WrongMarks = "alike",
) -> Trial:
    """Draw what is asked about a feature; the same for the same arguments.

    each: windows with right marks (of all ranks of the largest activation), and as many with wrong ones. wrong_on:
    silent: wrong marks stand in windows in which the feature is silent; active: on silent tokens of other activating
    windows, which is harder, and what a feature without silent windows gets anyway. Without questions, but with a
    reason, where there are fewer than MIN_EACH of either. wrong_marks: how many tokens are marked wrongly, see above.
    """
    rng = np.random.default_rng([seed, feature, 2])
    explained = split.explain_documents.tolist()
    length = window_length(len(fires.value) / passages.tokens)
    if wrong_on == "silent" and length is not None:
        windows, peak = _windows(passages, length, explained, fires)
        active, silent = np.flatnonzero(peak > 0), np.flatnonzero(peak == 0)
        if missing(len(active), len(silent), "window") is None:
            right, wrong = active[from_ranks(peak[active], each, rng)], some(silent, each, rng)
            items = _marked(windows, (right, wrong), fires, passages, rng, wrong_marks)
            return Trial(feature, "marks", length, grouped(items, per_prompt, rng), (), None, seed)
    length = DENSE_LENGTH if length is None else length
    windows, peak = _windows(passages, length, explained, fires)
    active = np.flatnonzero(peak > 0)
    right = active[from_ranks(peak[active], min(each, len(active) // 2), rng)]
    room = [i for i in np.setdiff1d(active, right).tolist() if _silent(windows, i, fires, passages).any()]
    wrong = some(np.array(room, dtype=np.int64), each, rng)
    if min(len(right), len(wrong)) < MIN_EACH:
        lack = (
            f"{len(right)} windows for right marks and {len(wrong)} for wrong ones outside the explained documents; "
            f"at least {MIN_EACH} of each are needed"
        )
        return Trial(feature, "marks", length, (), (), lack, seed)
    items = _marked(windows, (right, wrong), fires, passages, rng, wrong_marks)
    return Trial(feature, "marks", length, grouped(items, per_prompt, rng), (), None, seed)


def _windows(passages: Passages, length: int, explained: Collection[int], fires: Fires) -> tuple[Windows, np.ndarray]:
    windows = elsewhere(cut(passages, length), explained)
    return windows, peaks(windows, fires, passages)


def _silent(windows: Windows, i: int, fires: Fires, passages: Passages) -> np.ndarray:
    """Return which tokens of a window the feature is silent on, bool."""
    return look(passages, int(windows.start[i]), int(windows.stop[i]), fires)[1] == 0


def _marked(
    windows: Windows,
    chosen: tuple[np.ndarray, np.ndarray],
    fires: Fires,
    passages: Passages,
    rng: np.random.Generator,
    wrong_marks: WrongMarks,
) -> list[Item]:
    """Return the chosen windows with marks: those for right ones, those for wrong ones."""
    items, active = [], []
    for i in chosen[0].tolist():
        window, values = look(passages, int(windows.start[i]), int(windows.stop[i]), fires)
        marked = values >= np.float32(THRESHOLD) * values.max()
        items.append(Item(tuple(window.text), tuple(marked.tolist()), True, window.doc, int(window.pos[0])))
        active.append(int((values > 0).sum()))
    right = [sum(item.marked) for item in items]
    for i in chosen[1].tolist():
        window, values = look(passages, int(windows.start[i]), int(windows.stop[i]), fires)
        number = math.ceil(np.mean(active)) if wrong_marks == "mean" else int(rng.choice(right))
        marked = np.zeros(len(values), dtype=bool)
        marked[some(np.flatnonzero(values == 0), number, rng)] = True
        items.append(Item(tuple(window.text), tuple(marked.tolist()), False, window.doc, int(window.pos[0])))
    return items


def by_count(items: Sequence[Item]) -> float | None:
    """Return the balanced accuracy of the best rule that only counts marks; None without items of both labels.

    The best of all thresholds in either direction, found on the items themselves, so a little above .5 by chance.
    """
    count = np.array([sum(item.marked) for item in items])
    label = np.array([item.label for item in items], dtype=bool)
    if label.all() or not label.any():
        return None
    found = [((count <= n)[label].mean() + (count > n)[~label].mean()) / 2 for n in np.unique(count)]
    return float(max(max(share, 1 - share) for share in found))


def fuzzing_requests(trial: Trial, explanation: str) -> list[Request]:
    """Return the questions of a trial, one for each `per_prompt` items."""
    return requests_of(trial, explanation)


def fuzzing_score(trial: Trial, answers: Sequence[Answer]) -> dict[str, float | int | str | None]:
    """Return the scores of the answers to `fuzzing_requests`, in their order.

    fuzzing: balanced accuracy, .5 for whoever doesn't know; fuzzing_f1; fuzzing_items: how many were judged;
    fuzzing_length: tokens of a window; fuzzing_failed: share of the items whose answer failed, which are not scored;
    fuzzing_by_count: what `by_count` would score on all items. None where undefined, and `reason` says why.
    """
    items = [item for group in trial.groups for item in group]
    return {**scores_of("fuzzing", trial, answers), "fuzzing_by_count": by_count(items)}


def fuzzing(
    feature: int, explanation: str, split: Split, fires: Fires, passages: Passages, judge: Judge, seed: int = 0
) -> dict[str, float | int | str | None]:
    """Ask a judge about one feature, once more where an answer can't be read, and return `fuzzing_score`."""
    trial = fuzzing_trial(feature, split, fires, passages, seed)
    return fuzzing_score(trial, ask(trial, fuzzing_requests(trial, explanation), judge))
