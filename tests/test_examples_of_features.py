"""Examples of features: intervals of activation, strongest contexts, samples (section I)."""

from __future__ import annotations

import numpy as np
import pytest

from monosem.examples import INTERVALS, SAMPLES, SHOWN, TOP, Fires, activations_at, examples_of, interval_of, shade
from monosem.passages import Passages

GOLDEN = [1.2, 1.0, 0.55, 0.3, 0.05]


def make_passages(documents: int = 60, length: int = 50) -> Passages:
    """Return a text of `documents` documents of `length` tokens in rows of 25, whose first tokens are unmeasured."""
    n = documents * length
    doc, pos = np.divmod(np.arange(n), length)
    bounds = np.arange(0, n + 1, 25)
    place = doc.astype(np.int64) << 32 | pos
    measured = pos % 25 != 0
    vocabulary = [f" w{i}" for i in range(length)]
    return Passages(int(measured.sum()), documents, vocabulary, place, pos.astype(np.int32), measured, bounds)


def make_fires(passages: Passages, share: float, seed: int = 0) -> Fires:
    """Return firings on a share of the measured tokens, exponentially distributed."""
    rng = np.random.default_rng(seed)
    doc, pos = passages.measured_positions()
    here = rng.random(len(doc)) < share
    return Fires(doc[here], pos[here], (rng.exponential(size=here.sum()) + 0.01).astype(np.float32))


@pytest.mark.parametrize("rule", ["edges", "centres"])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_the_golden_intervals_come_out_under_both_rules(rule: str, kind: type) -> None:
    found = interval_of(np.array(GOLDEN, dtype=kind), float(kind(1.2)), 12, rule)
    assert found.tolist() == [0, 2, 6, 9, 11]
    assert (found < SHOWN).tolist() == [True, True, True, False, False]


def test_both_rules_keep_the_bounds_that_the_method_names() -> None:
    just_above = np.nextafter(5 / 12, 1) + 1e-6
    assert interval_of(np.array([5 / 12 - 1e-6, just_above]), 1.0).tolist() == [7, 6]
    centres = interval_of(np.array([5.5 / 12 - 1e-6, 5.5 / 12]), 1.0, rule="centres")
    assert centres.tolist() == [7, 6]  # ties to the smaller
    assert interval_of(np.array([1e-9, 1.0]), 1.0, rule="centres").tolist() == [11, 0]


def test_top_has_one_a_document_and_no_overlapping_windows() -> None:
    passages = make_passages()
    fires = make_fires(passages, 0.2)
    top = examples_of(3, fires, passages).top
    assert len(top) == TOP
    assert len({e.doc for e in top}) == TOP
    values = [e.value for e in top]
    assert values == sorted(values, reverse=True)
    assert values[0] == fires.value.max()
    best = sorted((fires.value[fires.doc == d].max() for d in np.unique(fires.doc)), reverse=True)[:TOP]
    assert values == pytest.approx(best)


def test_samples_come_from_their_interval_and_from_other_documents_than_top() -> None:
    passages = make_passages()
    fires = make_fires(passages, 0.3)
    found = examples_of(3, fires, passages)
    assert len(found.intervals) == INTERVALS
    tops = {e.doc for e in found.top}
    for i, sample in enumerate(found.intervals):
        assert len(sample) + found.missing[i] == SAMPLES
        assert len({(e.doc, e.pos) for e in sample}) == len(sample)
        others = ~np.isin(fires.doc, list(tops)) & (interval_of(fires.value, found.peak) == i)
        assert sum(e.doc not in tops for e in sample) == min(SAMPLES, others.sum())
        if sample:
            assert set(interval_of(np.array([e.value for e in sample]), found.peak)) == {i}
    everything = np.bincount(interval_of(fires.value, found.peak), minlength=INTERVALS)
    assert found.shares == pytest.approx((everything / len(fires.value)).tolist())
    assert sum(found.shares) == pytest.approx(1)
    assert found.count == len(fires.value)


def test_where_other_documents_are_too_few_samples_come_from_those_of_top_without_overlap() -> None:
    passages = make_passages(3)
    place = [(0, 10), (0, 18), (0, 19), (1, 10), (2, 10), (2, 30)]
    doc, pos = (np.array(column) for column in zip(*place, strict=True))
    value = np.array([1.0, 0.99, 0.98, 0.97, 0.5, 0.96], dtype=np.float32)
    found = examples_of(0, Fires(doc, pos, value), passages)
    assert [(e.doc, e.pos) for e in found.top] == [(0, 10), (1, 10), (2, 30)]
    assert [(e.doc, e.pos) for e in found.intervals[0]] == [(0, 19)]  # (0, 18) overlaps with (0, 10)
    assert [(e.doc, e.pos) for e in found.intervals[6]] == [(2, 10)]
    assert found.missing[0] == SAMPLES - 1


def test_the_same_arguments_give_the_same_examples_and_another_seed_others() -> None:
    passages = make_passages()
    fires = make_fires(passages, 0.3)
    assert examples_of(3, fires, passages) == examples_of(3, fires, passages)
    assert examples_of(3, fires, passages).intervals != examples_of(3, fires, passages, seed=1).intervals
    assert examples_of(3, fires, passages).intervals != examples_of(4, fires, passages).intervals


def test_random_tokens_are_measured_ones_with_their_true_activations() -> None:
    passages = make_passages()
    fires = make_fires(passages, 0.5)
    random = examples_of(0, fires, passages).random
    values = {(int(d), int(p)): float(v) for d, p, v in zip(*fires, strict=True)}
    measured = {(int(d), int(p)) for d, p in zip(*passages.measured_positions(), strict=True)}
    assert len({(e.doc, e.pos) for e in random}) == 10
    assert all((e.doc, e.pos) in measured and e.value == values.get((e.doc, e.pos), 0.0) for e in random)
    assert {e.value > 0 for e in random} == {True, False}


def test_per_document_looks_at_so_many_tokens_whatever_they_do() -> None:
    passages = make_passages()
    everywhere = make_fires(passages, 1.0)
    found = examples_of(0, everywhere, passages, per_document=7)
    assert found.count == 7 * 60
    sparse = Fires(*(column[::3] for column in everywhere))
    fewer = examples_of(0, sparse, passages, per_document=7)
    assert fewer.count == pytest.approx(7 * 60 / 3, rel=0.25)  # not the strongest, nor the firing ones
    assert examples_of(0, everywhere, passages, per_document=7) == found


def test_few_firings_show_what_there_is_and_a_dead_feature_nothing() -> None:
    passages = make_passages()
    fires = Fires(np.array([2, 2]), np.array([1, 30]), np.array([1.0, 0.5], dtype=np.float32))
    found = examples_of(0, fires, passages)
    assert [(e.doc, e.pos) for e in found.top] == [(2, 1)]
    assert [(e.doc, e.pos) for e in found.intervals[6]] == [(2, 30)]
    assert sum(found.missing) == SAMPLES * INTERVALS - 1
    assert found.shares[0] == found.shares[6] == 0.5
    dead = examples_of(0, Fires(*(column[:0] for column in fires)), passages)
    assert (dead.peak, dead.count, dead.top, sum(dead.shares)) == (0, 0, [], 0)
    assert len(dead.random) == 10


def test_shade_gives_each_token_its_own_activation() -> None:
    passages = make_passages(4)
    fires = Fires(np.array([1, 2, 2, 3]), np.array([3, 3, 5, 4]), np.array([9, 1.5, 0.5, 9], dtype=np.float32))
    window = passages.window(2, 4)
    assert shade(window, fires).tolist() == [0, 0, 0, 1.5, 0, 0.5, 0, 0, 0]
    assert window.text[window.at] == " w4"
    assert shade(passages.window(0, 4), fires).tolist() == [0] * 9
    assert activations_at(fires, np.array([2, 3]), np.array([5, 5])).tolist() == [0.5, 0]
