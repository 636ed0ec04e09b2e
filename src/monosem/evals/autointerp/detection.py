"""Detection: does an explanation tell the text on which its feature is active from text where it is silent?

A judge reads the explanation and windows of held-out text, and says for each whether the feature is active in it
(section K.4). Labels are those of the codes, also of windows that were drawn at random. A dense feature gets windows
short enough that silent ones exist, or is asked about single tokens; it is never left out. No window is of a document
that the explanation was made from. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np

from monosem.evals.autointerp.questions import (
    EACH,
    PER_PROMPT,
    Item,
    Trial,
    ask,
    grouped,
    missing,
    outcome,
    requests_of,
    scores_of,
)
from monosem.evals.autointerp.windows import Windows, cut, elsewhere, from_ranks, look, peaks, some, window_length
from monosem.firings import Fires
from monosem.passages import Passages

if TYPE_CHECKING:
    from monosem.evals.autointerp.records import Split
    from monosem.judges import Answer, Judge, Request

BEFORE, AFTER = 10, 5  # tokens around a single token that is asked for
PLAIN_LENGTH, PLAIN_TOP, PLAIN_MASS, PLAIN_RANDOM = 21, 2, 2, 10  # SAEBench's windows
PLAIN_ACTIVE = 0.01  # of the largest activation: from there on SAEBench calls a window active


def detection_trial(
    feature: int,
    split: Split,
    fires: Fires,
    passages: Passages,
    seed: int = 0,
    each: int = EACH,
    per_prompt: int = PER_PROMPT,
) -> Trial:
    """Draw what is asked about a feature; the same for the same arguments.

    each: windows in which it is active (a tenth of them from each tenth by rank of the largest activation), and as many
    in which it is silent, drawn uniformly. Without questions, but with a reason, where there are fewer than MIN_EACH.
    """
    rng = np.random.default_rng([seed, feature, 1])
    explained = split.explain_documents.tolist()
    plain = _plain(fires, passages, explained, rng)
    length = window_length(len(fires.value) / passages.tokens)
    if length is not None:
        windows = elsewhere(cut(passages, length), explained)
        peak = peaks(windows, fires, passages)
        active, silent = np.flatnonzero(peak > 0), np.flatnonzero(peak == 0)
        lack = missing(len(active), len(silent), "window")
        if lack is None:
            chosen = np.concatenate([active[from_ranks(peak[active], each, rng)], some(silent, each, rng)])
            items = _window_items(windows.take(chosen), peak[chosen] > 0, fires, passages)
            return Trial(feature, "window", length, grouped(items, per_prompt, rng), plain, None, seed)
        if len(silent) >= len(active):  # single tokens would be as few
            return Trial(feature, "window", length, (), plain, lack, seed)
    return _token_trial(feature, fires, passages, explained, plain, rng, (each, per_prompt, seed))


def _token_trial(
    feature: int,
    fires: Fires,
    passages: Passages,
    explained: Collection[int],
    plain: tuple[Item, ...],
    rng: np.random.Generator,
    wanted: tuple[int, int, int],
) -> Trial:
    """Draw single tokens, each shown with its context, active and silent ones."""
    each, per_prompt, seed = wanted
    tokens = elsewhere(cut(passages, 1), explained)
    value = peaks(tokens, fires, passages)
    active, silent = np.flatnonzero(value > 0), np.flatnonzero(value == 0)
    lack = missing(len(active), len(silent), "token")
    if lack is not None:
        return Trial(feature, "token", 1, (), plain, lack, seed)
    chosen = np.concatenate([active[from_ranks(value[active], each, rng)], some(silent, each, rng)])
    items = []
    for place, label in zip(passages.place[tokens.start[chosen]].tolist(), value[chosen] > 0, strict=True):
        window = passages.window(place >> 32, place & 0xFFFFFFFF, BEFORE, AFTER)
        marked = tuple(i == window.at for i in range(len(window.text)))
        items.append(Item(tuple(window.text), marked, bool(label), window.doc, int(window.pos[0])))
    return Trial(feature, "token", 1, grouped(items, per_prompt, rng), plain, None, seed)


def _window_items(windows: Windows, label: np.ndarray, fires: Fires, passages: Passages) -> list[Item]:
    items = []
    for start, stop, active in zip(windows.start.tolist(), windows.stop.tolist(), label.tolist(), strict=True):
        window, values = look(passages, start, stop, fires)
        items.append(Item(tuple(window.text), (), active, window.doc, int(window.pos[0])))
        assert active == bool(values.any())
    return items


def _plain(fires: Fires, passages: Passages, explained: Collection[int], rng: np.random.Generator) -> tuple[Item, ...]:
    """Draw SAEBench's windows: 2 strongest, 2 with a chance as their squared activation, 10 whatever the activation."""
    windows = elsewhere(cut(passages, PLAIN_LENGTH), explained)
    peak = peaks(windows, fires, passages).astype(np.float64)
    order = np.argsort(-peak, kind="stable")
    top, rest = order[:PLAIN_TOP], order[PLAIN_TOP:]
    mass = peak[rest] ** 2
    if not len(top) or peak[top[-1]] == 0 or len(rest) < PLAIN_MASS + PLAIN_RANDOM:
        return ()
    heavy = min(PLAIN_MASS, int((mass > 0).sum()))
    drawn = rng.choice(rest, heavy, replace=False, p=mass / mass.sum()) if heavy else rest[:0]
    chosen = np.concatenate([top, drawn, some(np.setdiff1d(rest, drawn), PLAIN_RANDOM, rng)])
    items = []
    for i in rng.permutation(chosen).tolist():
        window, values = look(passages, int(windows.start[i]), int(windows.stop[i]), fires)
        label = bool((values > PLAIN_ACTIVE * fires.value.max()).any())
        items.append(Item(tuple(window.text), (), label, window.doc, int(window.pos[0])))
    return tuple(items)


def detection_requests(trial: Trial, explanation: str) -> list[Request]:
    """Return the questions of a trial: one for each `per_prompt` items, and last SAEBench's, where it has that."""
    return requests_of(trial, explanation)


def detection_score(trial: Trial, answers: Sequence[Answer]) -> dict[str, float | int | str | None]:
    """Return the scores of the answers to `detection_requests`, in their order.

    detection: balanced accuracy, .5 for whoever doesn't know; detection_f1; detection_items: how many were judged;
    detection_length: tokens of a window, 1 for single tokens; detection_failed: share of the items whose answer failed,
    which are not scored; detection_plain: SAEBench's accuracy on 14 windows, without balance; detection_plain_none: the
    accuracy of answering 0 always, which it is to be compared with. None where undefined, and `reason` says why the
    first is.
    """
    scores = scores_of("detection", trial, answers)
    plain = outcome([trial.plain], answers[len(trial.groups) :]) if trial.plain else None
    told = plain is not None and not plain.failed
    scores["detection_plain"] = plain.counts.accuracy() if plain is not None and told else None
    silent = sum(not item.label for item in trial.plain)
    scores["detection_plain_none"] = silent / len(trial.plain) if told else None
    return scores


def detection(
    feature: int, explanation: str, split: Split, fires: Fires, passages: Passages, judge: Judge, seed: int = 0
) -> dict[str, float | int | str | None]:
    """Ask a judge about one feature, once more where an answer can't be read, and return `detection_score`."""
    trial = detection_trial(feature, split, fires, passages, seed)
    return detection_score(trial, ask(trial, detection_requests(trial, explanation), judge))
