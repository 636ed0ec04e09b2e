"""IOI's dictionaries, edits and scores on planted activations: a = mean + S code + IO code + Pos code + noise.

20 names, 2 orders, 64 dimensions; S and IO are never the same name. What edits and scores give follows by counting.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from monosem.evals.ioi.control import (
    by_ranking,
    greedy,
    necessity,
    recovered,
    removed,
    rescaled,
    sufficiency,
    weights,
)
from monosem.evals.ioi.interpret import (
    best_union,
    f1,
    f1_scores,
    judge,
    predicates,
    ranked,
    union_f1,
    union_f1_interval,
)
from monosem.evals.ioi.phenomena import Splitting, norm, occlusion, share, splitting, unmasked
from monosem.evals.ioi.supervised import Supervised, decoded, least_squares, mean_codes
from monosem.types import UserError

V, D = 20, 64
SIZES = (V, V, 2)
S, IO, POS = 0, 1, 2
NAMES = [f"name {i}" for i in range(V)]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(n: int, seed: int) -> Tensor:
    """Return labels [n, 3] with S != IO."""
    g = generator(seed)
    s = torch.randint(V, (n,), generator=g)
    io = (s + torch.randint(1, V, (n,), generator=g)) % V
    return torch.stack([s, io, torch.arange(n) % 2], 1)


def truth(lengths: tuple[float, float, float] = (1, 1, 1), d: int = D, seed: int = 0) -> Supervised:
    """Return a planted dictionary: codes in random directions, of one length for each attribute."""
    W = torch.randn(sum(SIZES), d, generator=generator(seed))
    scale = torch.tensor(lengths).repeat_interleave(torch.tensor(SIZES))
    return Supervised(W / W.norm(dim=1, keepdim=True) * scale[:, None], torch.full((d,), 3.0), SIZES)


def noise(n: int, size: float, d: int = D, seed: int = 5) -> Tensor:
    return size * torch.randn(n, d, generator=generator(seed)) / d**0.5


def explained(a: Tensor, a_hat: Tensor) -> float:
    return float(1 - (a - a_hat).square().sum() / (a - a.mean(0)).square().sum())


def other_name(labels: Tensor, attribute: int) -> Tensor:
    """Return labels with another name for S or IO, neither of the two that are there."""
    new = labels.clone()
    step = torch.where((labels[:, attribute] + 1) % V == labels[:, 1 - attribute], 2, 1)
    new[:, attribute] = (labels[:, attribute] + step) % V
    return new


PLANTED = truth()
TRAIN, TEST = draw(2000, 1), draw(1000, 2)
A_TRAIN = PLANTED.reconstruct(TRAIN) + noise(2000, 0.1)
A_TEST = PLANTED.reconstruct(TEST) + noise(1000, 0.1, seed=6)
FITTED = least_squares(A_TRAIN, TRAIN, SIZES)


def test_least_squares_explains_all_but_the_noise_and_mean_codes_less() -> None:
    ceiling = explained(A_TEST, PLANTED.reconstruct(TEST))
    of_means = explained(A_TEST, mean_codes(A_TRAIN, TRAIN, SIZES).reconstruct(TEST))
    assert ceiling == pytest.approx(1 - 0.01 / float((A_TEST - A_TEST.mean(0)).square().sum(1).mean()), abs=2e-4)
    assert explained(A_TEST, FITTED.reconstruct(TEST)) == pytest.approx(ceiling, abs=2e-4)
    assert of_means < ceiling - 0.001


def test_the_codes_of_a_noiseless_dictionary_are_found_up_to_a_shift_between_attributes() -> None:
    found = least_squares(PLANTED.reconstruct(TRAIN), TRAIN, SIZES)
    torch.testing.assert_close(found.reconstruct(TEST), PLANTED.reconstruct(TEST), atol=1e-4, rtol=0)
    for attribute in range(3):
        mine, planted = found.of(attribute), PLANTED.of(attribute)
        torch.testing.assert_close(mine - mine.mean(0), planted - planted.mean(0), atol=1e-4, rtol=0)


def test_mean_codes_are_the_means_by_value() -> None:
    a = torch.tensor([[1.0, 0.0], [3.0, 0.0], [8.0, 4.0]])
    found = mean_codes(a, torch.tensor([[0, 1], [0, 0], [2, 1]]), (3, 2))
    mean = torch.tensor([4.0, 4 / 3])
    wanted = torch.tensor([[2.0, 0.0], [4.0, 4 / 3], [8.0, 4.0], [3.0, 0.0], [4.5, 2.0]]) - mean
    torch.testing.assert_close(found.b_dec, mean)
    torch.testing.assert_close(found.W_dec, wanted)  # the second value of the first attribute is never there: 0


def test_values_that_are_never_there_have_no_code() -> None:
    labels = TRAIN[(TRAIN[:, :2] < 15).all(1)]
    found = least_squares(PLANTED.reconstruct(labels), labels, SIZES)
    never = torch.cat([torch.arange(15, 20), torch.arange(35, 40)])
    assert found.W_dec[never].abs().max() < 1e-6
    assert (found.W_dec.norm(dim=1) > 0.1).sum() == 32
    a = PLANTED.reconstruct(labels)
    smallest = torch.linalg.pinv(PLANTED.codes(labels).double()) @ (a - a.mean(0)).double()
    torch.testing.assert_close(found.W_dec, smallest.float(), atol=1e-5, rtol=0)


def test_codes_are_one_hot_and_reconstruct() -> None:
    labels = torch.tensor([[2, 0, 1]])
    assert PLANTED.numbers(labels).tolist() == [[2, 20, 41]]
    assert torch.nonzero(PLANTED.codes(labels)[0])[:, 0].tolist() == [2, 20, 41]
    torch.testing.assert_close(
        PLANTED.codes(TEST) @ PLANTED.W_dec + PLANTED.b_dec, PLANTED.reconstruct(TEST), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("attribute", [S, IO])
def test_an_edit_turns_the_answer_of_a_linear_readout(attribute: int) -> None:
    readout = torch.linalg.pinv(PLANTED.W_dec)[:, attribute * V : (attribute + 1) * V]
    new = other_name(TEST, attribute)

    def agreement(a: Tensor) -> float:
        return float((((a - 3) @ readout).argmax(1) == new[:, attribute]).float().mean())

    assert agreement(A_TEST) == 0
    assert agreement(FITTED.edit(A_TEST, TEST, new)) == 1
    torch.testing.assert_close(FITTED.edit(A_TEST, TEST, TEST), A_TEST, atol=1e-5, rtol=0)


def test_attributes_are_read_off_where_they_are() -> None:
    assert min(decoded(FITTED, A_TEST, TEST)) == 1
    line = Supervised(torch.tensor([[1.0, 0.0], [3.0, 0.0]]), torch.zeros(2), (2,))
    assert decoded(line, torch.tensor([[1.9, 5.0], [0.0, 5.0], [2.1, 5.0]]), torch.tensor([[0], [0], [0]])) == [2 / 3]
    only_io = truth((0, 1, 0))
    a = only_io.reconstruct(torch.cat([TRAIN, TEST])) + noise(3000, 0.1)
    s, io, pos = decoded(least_squares(a[:2000], TRAIN, SIZES), a[2000:], TEST)
    assert io == 1
    assert s < 0.15  # chance: .05
    assert 0.4 < pos < 0.6


@pytest.mark.parametrize(
    "labels",
    [torch.zeros(4, 2).long(), torch.tensor([[0, 0, 2]] * 4), torch.tensor([[-1, 0, 0]] * 4), torch.zeros(3, 3).long()],
)
def test_labels_that_do_not_fit_are_named(labels: Tensor) -> None:
    for make in (mean_codes, least_squares):
        with pytest.raises(UserError, match="labels"):
            make(torch.zeros(4, 5), labels, SIZES)


def naive(difference: Tensor, z_base: Tensor, z_source: Tensor, W_dec: Tensor, k: int) -> tuple[Tensor, list[int]]:
    """Return what the greedy edit of one activation adds, and what it chose, by trying all features."""
    current, chosen = torch.zeros_like(difference), []
    for _ in range(k):
        parts = (z_source - z_base)[:, None] * W_dec
        parts[chosen] = 0
        distances = (current + parts - difference).norm(dim=1)
        best = int(distances.argmin())
        if distances[best] < (current - difference).norm():
            chosen.append(best)
            current = current + parts[best]
    return current, chosen


def test_greedy_is_the_loop_over_all_features() -> None:
    g = generator(3)
    N, F, d, k = 30, 40, 12, 6
    W = torch.randn(F, d, generator=g)
    z_base, z_source = (torch.relu(torch.randn(N, F, generator=g) - 0.8) for _ in range(2))
    difference = (z_source - z_base) @ W + 2 * torch.randn(N, d, generator=g)
    edits = greedy(difference, z_base, z_source, W, [1, 3, k])
    assert list(edits) == [1, 3, k]
    for budget, edit in edits.items():
        assert edit.chosen.shape == (N, budget)
        for i in range(N):
            delta, chosen = naive(difference[i], z_base[i], z_source[i], W, budget)
            torch.testing.assert_close(edit.delta[i], delta, atol=1e-4, rtol=0)
            assert edit.chosen[i][edit.chosen[i] >= 0].tolist() == chosen


def test_greedy_exchanges_the_old_name_for_the_new_one() -> None:
    new = other_name(TEST, IO)
    z_base, z_source = PLANTED.codes(TEST), PLANTED.codes(new)
    difference = PLANTED.reconstruct(new) - PLANTED.reconstruct(TEST)
    edits = greedy(difference, z_base, z_source, PLANTED.W_dec, [1, 2, 4])
    wanted = torch.stack([TEST[:, IO] + V, new[:, IO] + V], 1).sort(1).values
    assert edits[2].chosen.sort(1).values.tolist() == wanted.tolist()
    assert torch.equal(edits[4].chosen, torch.cat([edits[2].chosen, torch.full((1000, 2), -1)], 1))
    one, two, four = ((difference - edits[k].delta).norm(dim=1) for k in (1, 2, 4))
    assert (one < difference.norm(dim=1)).all()
    assert one.min() > 0.9
    assert two.max() < 1e-5
    assert four.max() < 1e-5


def test_greedy_changes_nothing_where_no_feature_leads_nearer() -> None:
    difference, W = torch.tensor([[1.0, 0.0]] * 2), torch.tensor([[-1.0, 0.0], [0.0, 1.0]])
    away, same = torch.tensor([[0.5, 0.5]]), torch.zeros(1, 2)
    for z_source in (torch.cat([away, same]), torch.zeros(2, 2)):
        edit = greedy(difference, torch.zeros(2, 2), z_source, W, [2])[2]
        assert edit.chosen.tolist() == [[-1, -1]] * 2
        assert not edit.delta.any()


def test_weights_sum_to_one_and_an_edit_removes_those_of_its_features() -> None:
    share_of = weights(FITTED.codes(TEST), FITTED.W_dec)
    torch.testing.assert_close(share_of.sum(1), torch.ones(1000))
    edited = torch.where(torch.tensor([False, True, False]), FITTED.numbers(TEST), -1)
    x = FITTED.reconstruct(TEST) - FITTED.b_dec
    by_hand = (FITTED.of(IO)[TEST[:, IO]] * x).sum(1) / x.square().sum(1)
    torch.testing.assert_close(removed(share_of, edited), by_hand)
    assert not weights(torch.zeros(3, 42), FITTED.W_dec).any()
    # features (3, 0) and (1, 2) make (4, 2): shares 12/20 and 8/20
    torch.testing.assert_close(
        weights(torch.ones(1, 2), torch.tensor([[3.0, 0.0], [1.0, 2.0]])), torch.tensor([[0.6, 0.4]])
    )


def test_a_feature_for_each_triple_reconstructs_perfectly_and_any_edit_removes_everything() -> None:
    index = torch.cartesian_prod(torch.arange(V), torch.arange(V), torch.arange(2))
    W = PLANTED.reconstruct(index) - PLANTED.b_dec

    def codes(labels: Tensor) -> Tensor:
        number = (labels[:, S] * V + labels[:, IO]) * 2 + labels[:, POS]
        return torch.zeros(len(labels), len(W)).scatter_(1, number[:, None], 1.0)

    new = other_name(TEST, IO)
    z_base, z_source = codes(TEST), codes(new)
    clean, wanted = PLANTED.reconstruct(TEST), PLANTED.reconstruct(new)
    torch.testing.assert_close(z_base @ W + PLANTED.b_dec, clean, atol=1e-5, rtol=0)
    rank = ranked((index[:, IO] == torch.arange(V)[:, None]).float(), len(W))
    edit = by_ranking(z_base, z_source, W, rank[TEST[:, IO]], rank[new[:, IO]], 1)
    torch.testing.assert_close(clean + edit.delta, wanted, atol=1e-5, rtol=0)
    everything = removed(weights(z_base, W), edit.chosen)
    torch.testing.assert_close(everything, torch.ones(1000))
    changed = torch.where(new != TEST, PLANTED.numbers(TEST), -1)
    floor = float(removed(weights(PLANTED.codes(TEST), PLANTED.W_dec), changed).mean())
    assert 0.2 < floor < 0.5
    assert rescaled(float(everything.mean()), floor) == pytest.approx(1)
    assert rescaled(floor, floor) == 0
    assert rescaled(1, 0.96) is None


def test_greedy_misses_exchanges_whose_first_half_leads_away() -> None:
    """Out goes (1, 2), in comes (-1, 2): either alone is farther from the difference (-2, 0) than nothing is."""
    W = torch.tensor([[1.0, 2.0], [-1.0, 2.0]])
    edit = greedy(W[1:] - W[:1], torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), W, [2])[2]
    assert edit.chosen.tolist() == [[-1, -1]]


def test_by_ranking_removes_active_features_of_the_old_value_and_adds_those_of_the_new() -> None:
    W = torch.eye(6)
    z_base = torch.tensor([[1.0, 0.0, 2.0, 3.0, 0.0, 0.0], [9.0, 0.0, 0.0, 0.0, 0.0, 7.0]])
    z_source = torch.tensor([[0.0, 4.0, 5.0, 0.0, 6.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0, 8.0]])
    old, new = torch.tensor([[1, 2, 3, 0], [1, 4, -1, -1]]), torch.tensor([[0, 2, 4, 1], [5, 0, -1, -1]])
    one = by_ranking(z_base, z_source, W, old, new, 1)
    assert one.chosen.tolist() == [[2, -1], [-1, 5]]  # feature 2 goes out and comes in: one changed feature
    assert one.delta.tolist() == [[0, 0, 3, 0, 0, 0], [0, 0, 0, 0, 0, 8]]
    two = by_ranking(z_base, z_source, W, old, new, 2)
    assert two.chosen.tolist() == [[2, 3, -1, 4], [-1, -1, 5, -1]]
    assert two.delta.tolist() == [[0, 0, 3, -3, 6, 0], [0, 0, 0, 0, 0, 8]]
    with pytest.raises(UserError, match="feature 6"):
        by_ranking(z_base, z_source, W, old + 2, new, 1)


def test_edits_that_do_not_fit_are_refused() -> None:
    z, W, difference = torch.zeros(2, 3), torch.zeros(3, 4), torch.zeros(2, 4)
    with pytest.raises(UserError, match="codes"):
        greedy(difference, z, torch.zeros(2, 4), W, [1])
    with pytest.raises(UserError, match="difference"):
        greedy(torch.zeros(2, 5), z, z, W, [1])
    with pytest.raises(UserError, match="budgets"):
        greedy(difference, z, z, W, [2, 0])
    with pytest.raises(UserError, match="m is 0"):
        by_ranking(z, z, W, torch.zeros(2, 1).long(), torch.zeros(2, 1).long(), 0)


def test_approximation_is_one_for_the_activation_and_zero_for_the_mean() -> None:
    P = torch.linalg.pinv(PLANTED.W_dec).T
    readout = P[V : 2 * V] - P[:V]  # a name's logit: IO is that name, less S is

    def ld(x: Tensor) -> Tensor:
        return ((x - PLANTED.b_dec) * (readout[TEST[:, IO]] - readout[TEST[:, S]])).sum(1)

    mean = A_TEST.mean(0).expand_as(A_TEST)
    clean, ablated = ld(A_TEST), ld(mean)
    a_hat = FITTED.reconstruct(TEST)
    assert float(clean.mean()) == pytest.approx(2, abs=0.02)
    assert sufficiency(clean, clean) == 1
    assert sufficiency(ld(mean + 2 * (A_TEST - mean)), clean) == pytest.approx(2, abs=0.05)
    assert sufficiency(ld(a_hat), clean) == pytest.approx(1, abs=0.02)
    assert necessity(ablated, ld(mean + A_TEST - A_TEST), clean) == pytest.approx(1, abs=1e-4)
    assert necessity(ablated, ld(mean + A_TEST - mean), clean) == pytest.approx(0, abs=1e-4)
    assert necessity(ablated, ld(mean + A_TEST - a_hat), clean) == pytest.approx(1, abs=0.02)
    assert recovered(clean, ablated, clean) == 1
    assert recovered(ablated, ablated, clean) == 0


def test_ratios_to_next_to_nothing_are_left_out() -> None:
    assert sufficiency([1, 1], [0.04, 0.05]) is None
    assert sufficiency([0.03, 0.03], [0.06, 0.06]) == pytest.approx(0.5)
    assert necessity([1, 1], [0, 0], [1.04, 1.04]) is None
    assert necessity([1.0], [1.5], [3.0]) == pytest.approx(0.75)
    assert recovered([0, 0], [1, 1], [1.05, 1.03]) is None
    assert recovered([2.0], [1.0], [3.0]) == pytest.approx(0.5)
    assert recovered([0.0], [1.0], [3.0]) == pytest.approx(0.5)  # a move to the other side is hidden


def test_f1_by_counting() -> None:
    label = torch.arange(200) % 2 == 0
    first = torch.arange(200) < 100
    assert f1(label, label) == 1
    assert f1(torch.ones(200).bool(), label) == pytest.approx(2 / 3)
    assert f1(label & first, label) == pytest.approx(2 / 3)  # half of the prompts: precision 1, recall 1/2
    assert f1(~label, label) == 0
    assert f1(torch.zeros(200).bool(), label) == f1(torch.zeros(200).bool(), torch.zeros(200).bool()) == 0
    assert f1(torch.arange(200) < 3, torch.arange(200) < 1) == pytest.approx(0.5)


def test_the_table_of_f1_is_each_f1() -> None:
    g = generator(4)
    active, labels = torch.rand(300, 7, generator=g) < 0.2, torch.rand(300, 5, generator=g) < 0.4
    active[:, 3] = False
    scores = f1_scores(active, labels)
    assert scores.shape == (5, 7)
    for v in range(5):
        for j in range(7):
            right = int((active[:, j] & labels[:, v]).sum())
            p, r = right / max(int(active[:, j].sum()), 1), right / int(labels[:, v].sum())
            assert float(scores[v, j]) == pytest.approx(2 * p * r / (p + r) if right else 0, abs=1e-6)


def test_a_feature_of_three_names() -> None:
    """Names 0, 1 and 2 share feature 0: it is half right for each; features 1 to 3 take three names together."""
    label = torch.arange(60) % 20
    labels = label[:, None] == torch.arange(V)
    active = torch.stack([label < 3, *(label == v for v in range(3))], 1)
    scores = f1_scores(active, labels)
    torch.testing.assert_close(scores[:3, 0], torch.full((3,), 0.5))
    assert ranked(scores, 1)[:4, 0].tolist() == [1, 2, 3, -1]
    three = (label < 3)[:, None]
    curve, size = best_union(active[:, 1:], three, torch.tensor([[0, 1, 2]]))
    torch.testing.assert_close(curve, torch.tensor([[0.5, 0.8, 1.0]]))
    assert size.tolist() == [3]


def test_unions_get_worse_when_a_feature_only_adds_mistakes() -> None:
    prompt = torch.arange(100)
    label = (prompt < 40)[:, None]
    active = torch.stack([prompt < 20, (prompt >= 15) & (prompt < 18), (prompt >= 40) & (prompt < 60), prompt < 40], 1)
    curve = union_f1(active, label, torch.tensor([[0, 1, 2, 3, -1]]))
    torch.testing.assert_close(curve, torch.tensor([[2 / 3, 2 / 3, 0.5, 0.8, 0.8]]))
    _, size = best_union(active, label, torch.tensor([[0, 1, 2]]))
    assert size.tolist() == [1]
    _, none = best_union(active, label, torch.tensor([[-1, -1]]))
    assert none.tolist() == [0]


def test_features_are_chosen_on_train_prompts_and_count_on_test_prompts() -> None:
    """Feature 0 is value 0 on train prompts, but value 1 on test prompts; 2 and 3 are halves of value 2 on both."""
    train, test = torch.arange(40) % 4, torch.arange(30) % 3
    half = torch.arange(40) % 8 < 4
    train_active = torch.stack([train == 0, train == 3, (train == 2) & half, (train == 2) & ~half], 1)
    half = torch.arange(30) % 6 < 3
    test_active = torch.stack([test == 1, test == 3, (test == 2) & half, (test == 2) & ~half], 1)
    values = torch.arange(4)
    found = judge(train_active, train[:, None] == values, test_active, test[:, None] == values, largest=3)
    assert found.order[0].tolist() == [0, -1, -1]
    assert sorted(found.order[2].tolist()) == [-1, 2, 3]
    assert found.size.tolist() == [1, 0, 2, 1]
    assert found.n.tolist() == [10, 10, 10, 0]
    torch.testing.assert_close(found.single, torch.tensor([0, 0, 2 / 3, math.nan]), equal_nan=True)
    torch.testing.assert_close(found.union, torch.tensor([0, 0, 1, math.nan]), equal_nan=True)
    third = share(found.single)
    assert (third.value, third.n) == (pytest.approx(1 / 3), 3)
    assert third.low == pytest.approx(0.0615, abs=1e-4)  # Wilson, 1 of 3
    with pytest.raises(UserError, match="no value"):
        share(found.single[3:])


def test_the_interval_of_a_union_is_that_of_its_f1_on_resampled_prompts() -> None:
    number = torch.arange(1000)
    label = number < 500
    active = torch.stack([number < 250, label], 1)
    low, high = union_f1_interval(active, label, 1000)
    rng, drawn = np.random.default_rng(1), []
    for _ in range(1000):
        at = torch.from_numpy(rng.integers(1000, size=1000))
        drawn.append(f1(active[at, 0], label[at]))
    np.testing.assert_allclose([low[0], high[0]], np.quantile(drawn, [0.025, 0.975]), atol=0.006)
    assert low[0] < 2 / 3 < high[0] < low[0] + 0.1
    assert low[1] == high[1] == 1


def test_predicates_hold_of_the_right_prompts() -> None:
    names, genders = ["Mary", "John", "Anna"], [True, False, True]
    held = predicates(torch.tensor([[0, 1, 0], [1, 2, 1]]), genders, names)
    true = {
        key: [[values[v] for v in torch.nonzero(row)[:, 0]] for row in holds] for key, (values, holds) in held.items()
    }
    assert true == {
        "S": [["Mary"], ["John"]],
        "IO": [["John"], ["Anna"]],
        "Pos": [["IO first"], ["S first"]],
        "S & Pos": [["Mary, IO first"], ["John, S first"]],
        "IO & Pos": [["John, IO first"], ["Anna, S first"]],
        "S gender": [["female"], ["male"]],
        "IO gender": [["male"], ["female"]],
        "name anywhere": [["Mary", "John"], ["John", "Anna"]],
        "first name": [["John"], ["John"]],
        "second name": [["Mary"], ["Anna"]],
    }
    with pytest.raises(UserError, match="genders"):
        predicates(torch.tensor([[0, 1, 0]]), genders[:2], names)


@dataclass(frozen=True)
class World:
    """Activations of a planted dictionary in few dimensions, and an SAE with a feature for each of its codes."""

    dictionary: Supervised
    a: Tensor
    labels: Tensor

    def encode(self, a: Tensor) -> Tensor:
        """Return codes: a code's direction, above three quarters of its length."""
        W = self.dictionary.W_dec
        lengths = W.norm(dim=1)
        return torch.relu((a - self.dictionary.b_dec) @ (W / lengths[:, None]).T - 0.75 * lengths)


def world(io_length: float) -> World:
    labels = draw(4000, 7)
    planted = truth((1, io_length, 0.2), d=48, seed=8)
    return World(planted, planted.reconstruct(labels) + noise(4000, 0.2, 48), labels)


def occlusions(one: World, fitted: Supervised, train: Tensor) -> dict[str, bool]:
    active = one.encode(one.a) > 0
    held = predicates(one.labels, [True] * V, NAMES)
    shares, norms = {}, {}
    for attribute, name in enumerate(("S", "IO")):
        holds = held[name][1]
        shares[name] = share(judge(active[train], holds[train], active[~train], holds[~train], 1).single).value
        norms[name] = norm(fitted, attribute)
    read = decoded(fitted, one.a[~train], one.labels[~train])
    return {name: found.occluded for name, found in occlusion(shares, norms, {"S": read[0], "IO": read[1]}).items()}


def test_long_io_codes_occlude_short_s_codes_until_they_are_taken_away() -> None:
    one, train = world(io_length=6), torch.arange(4000) % 4 > 0
    fitted = least_squares(one.a[train], one.labels[train], SIZES)
    assert occlusions(one, fitted, train) == {"S": True, "IO": False}
    held = predicates(one.labels, [True] * V, NAMES)
    wanted = {name: held[name] for name in ("S", "IO")}
    found = unmasked(one.encode, one.a, one.labels, fitted, [0, 0.5, 1], wanted, train)
    assert list(found) == [0, 0.5, 1]
    assert found[0]["IO"].value == 1
    assert found[0]["S"].value < 0.3
    assert found[1]["S"].value > 0.9
    assert found[1]["IO"].value < 0.2


def test_codes_of_one_length_occlude_nothing() -> None:
    one, train = world(io_length=1), torch.arange(4000) % 4 > 0
    fitted = least_squares(one.a[train], one.labels[train], SIZES)
    assert occlusions(one, fitted, train) == {"S": False, "IO": False}


def test_occlusion_needs_a_low_share_shorter_codes_and_an_attribute_that_is_there() -> None:
    def of(s: float, length: float, read: float) -> bool:
        return occlusion({"S": s, "IO": 0.8}, {"S": length, "IO": 2}, {"S": read, "IO": 1})["S"].occluded

    assert of(0.3, 1, 0.9)
    assert not of(0.5, 1, 0.9)
    assert not of(0.3, 3, 0.9)
    assert not of(0.3, 1, 0.1)
    with pytest.raises(UserError, match="same attributes"):
        occlusion({"S": 1}, {"IO": 1}, {"S": 1})


def parts(labels: Tensor, seed: int, of: int = 20) -> Tensor:
    """Return features that are active on random, disjoint twentieths of the prompts with IO first, [N, of]."""
    part = torch.randint(of, (len(labels),), generator=generator(seed))
    return (part[:, None] == torch.arange(of)) & (labels[:, POS] == 0)[:, None]


def split_of(train_active: Tensor, test_active: Tensor, meanings: Tensor | None = None) -> Splitting:
    return splitting(train_active, TRAIN[:, POS] == 0, test_active, TEST[:, POS] == 0, meanings)


def random_features(n: int, seed: int) -> Tensor:
    return torch.rand(n, 300, generator=generator(seed)) < 0.03


def test_disjoint_parts_of_a_binary_attribute_are_found() -> None:
    train = torch.cat([random_features(2000, 10), parts(TRAIN, 11)], 1)
    test = torch.cat([random_features(1000, 12), parts(TEST, 13)], 1)
    found = split_of(train, test)
    assert found.split
    assert sorted(found.splinters.tolist()) == list(range(300, 320))
    assert (found.held, found.size, found.overlap) == (20, 20, 0)
    assert found.union[-1] == 1
    assert found.single < 0.2
    assert (found.union.diff() > 0).all()


def test_an_attribute_with_a_feature_of_its_own_or_none_is_not_split() -> None:
    noise_train, noise_test = random_features(2000, 10), random_features(1000, 12)
    none = split_of(noise_train, noise_test)
    assert (none.split, none.held, len(none.union)) == (False, 0, 0)
    assert math.isnan(none.overlap)
    own = [(labels[:, POS] == 0)[:, None] for labels in (TRAIN, TEST)]
    both = split_of(torch.cat([parts(TRAIN, 11), own[0]], 1), torch.cat([parts(TEST, 13), own[1]], 1))
    assert (both.split, both.held, both.single) == (False, 20, 1)
    few = split_of(parts(TRAIN, 11, of=9), parts(TEST, 13, of=9))
    assert (few.split, few.held, few.union[-1]) == (False, 9, 1)


def test_features_that_are_hardly_ever_active_are_no_splinters() -> None:
    first = torch.nonzero(TRAIN[:, POS] == 0)[:, 0]
    rare = torch.zeros(2000, 2).bool()
    rare[first[:19], 0] = True
    rare[first[:20], 1] = True
    assert split_of(rare, parts(TEST, 13)[:, :2]).splinters.tolist() == [1]


def test_copies_of_one_part_overlap_and_are_not_split() -> None:
    copies = split_of(parts(TRAIN, 11)[:, :1].expand(-1, 12), parts(TEST, 13)[:, :1].expand(-1, 12))
    assert (copies.held, copies.overlap, copies.size, copies.split) == (12, 1, 1, False)


def test_features_of_a_name_with_a_position_are_no_splinters() -> None:
    held = [predicates(labels, [True] * V, NAMES)["S & Pos"][1] for labels in (TRAIN, TEST)]
    assert split_of(held[0][:, ::2], held[1][:, ::2]).split
    assert len(split_of(held[0][:, ::2], held[1][:, ::2], meanings=held[0]).splinters) == 0


def test_the_random_construction_splits_its_direction() -> None:
    """The paper's toy: x = +-mu + N(0, I), 100 dimensions, |mu| = 2; encoders: directions of random x, bias -2.35."""

    def sample(n: int, seed: int) -> tuple[Tensor, Tensor]:
        x, sign = torch.randn(n, 100, generator=generator(seed)), torch.arange(n) % 2 == 0
        x[:, 0] += torch.where(sign, 2.0, -2.0)
        return x, sign

    W = torch.nn.functional.normalize(sample(1000, 20)[0], dim=1)
    (x_train, train), (x_test, test) = sample(4000, 21), sample(2000, 22)
    found = splitting(x_train @ W.T > 2.35, train, x_test @ W.T > 2.35, test)
    assert found.held >= 50
    assert found.overlap < 0.1
    assert found.single < 0.2
    assert found.split


def test_splitting_needs_the_value() -> None:
    with pytest.raises(UserError, match="no prompt"):
        splitting(torch.ones(3, 1).bool(), torch.zeros(3).bool(), torch.ones(3, 1).bool(), torch.ones(3).bool())
