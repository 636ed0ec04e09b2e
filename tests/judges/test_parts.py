"""Cache, budget, waiting, scripts and specs: each part against cases worked out by hand."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from monosem.judges import Answer, Budget, Cost, Request, Slots, make_judge
from monosem.judges.budget import message_tokens, text_tokens
from monosem.judges.cache import AnswerLog
from monosem.judges.endpoint import Secret, endpoint_of, key_for
from monosem.judges.pacing import asked_wait, backoff, seconds_until, spent_wait
from monosem.judges.scripted import ScriptedJudge
from monosem.judges.trie import Trie
from monosem.types import UserError

KEYS = ["a" * 64, "b" * 64, "c" * 64]
NOW = 1_767_225_600.0  # 2026-01-01 00:00 UTC


def asks(*texts: str, **more) -> list[Request]:
    return [Request((("user", text),), **more) for text in texts]


def test_a_torn_line_costs_that_answer_only(tmp_path):
    log = AnswerLog(tmp_path, "m@http://h/v1", {"model": "m"})
    log.put(KEYS[0], {}, {"text": "one"})
    log.put(KEYS[1], {}, {"text": "two {}"})
    whole = log.path.read_bytes()
    for cut in range(1, len(whole.splitlines()[1]) + 1):
        log.path.write_bytes(whole[:-cut])  # a kill in the middle of the second line
        again = AnswerLog(tmp_path, "m@http://h/v1", {"model": "m"})
        assert again.get(KEYS[0]) == {"text": "one"}
        assert again.get(KEYS[1]) is None
        again.put(KEYS[2], {}, {"text": "three"})
        third = AnswerLog(tmp_path, "m@http://h/v1", {"model": "m"})
        # Only the line break may have been lost: then the line is whole, and closed now.
        second = {"text": "two {}"} if cut == 1 else None
        assert [third.get(key) for key in KEYS] == [{"text": "one"}, second, {"text": "three"}]
        assert again.get(KEYS[2]) == {"text": "three"}


def test_a_damaged_line_is_as_if_it_were_not_there(tmp_path):
    log = AnswerLog(tmp_path, "m", 1)
    log.put(KEYS[0], {}, {"text": "one"})
    log.path.write_bytes(log.path.read_bytes().replace(b'"text": ', b'"text"; ') + b"\x00\xff nonsense\n\n")
    assert AnswerLog(tmp_path, "m", 1).get(KEYS[0]) is None
    assert AnswerLog(tmp_path, "m", 2).path != log.path


def test_two_writers_share_a_file(tmp_path):
    one, two = AnswerLog(tmp_path, "m", 1), AnswerLog(tmp_path, "m", 1)
    assert two.get(KEYS[1]) is None
    one.put(KEYS[0], {}, {"text": "é" * 50})
    two.put(KEYS[1], {}, {"text": "two"})
    assert two.get(KEYS[1]) == {"text": "two"}
    one.put(KEYS[2], {}, {"text": "three"})
    assert [AnswerLog(tmp_path, "m", 1).get(key)["text"] for key in KEYS] == ["é" * 50, "two", "three"]


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    log = AnswerLog(tmp_path, "m", 1)

    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.write", full)
    with pytest.raises(UserError, match="can't be stored"):
        log.put(KEYS[0], {}, {})


def test_a_budget_by_hand():
    budget = Budget.checked(1000, 0.001, (1.0, 2.0))  # a token of prompt 1e-6, of answer 2e-6
    assert budget.cost(300, 350).money == pytest.approx(0.001)
    assert budget.hold(300, 350)  # 0.001 is all the money
    assert not budget.hold(1, 0)
    budget.settle(300, 350, budget.cost(300, 100))  # it took 500e-6 of it
    assert budget.spent == Cost(300, 100, pytest.approx(0.0005))
    assert budget.hold(500, 0)
    assert not budget.hold(0, 1)
    tokens = Budget.checked(10, None, None)
    assert [tokens.hold(5, 0), tokens.hold(3, 3), tokens.hold(4, 1)] == [True, False, True]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"budget_tokens": 0}, "budget = 0 tokens"),
        ({"budget_money": 0.0, "prices": (1, 1)}, "budget = 0.0 money"),
        ({"budget_money": 1.0}, "prices of a million"),
        ({"prices": (-1.0, 1.0)}, "prices = "),
        ({"concurrency": 0}, "concurrency = 0"),
        ({"timeout": 0}, "timeout = 0"),
    ],
)
def test_a_useless_budget_is_one_sentence(tmp_path, given, words):
    with pytest.raises(UserError, match=words) as caught:
        make_judge("m@http://127.0.0.1:9/v1", cache=tmp_path, **given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "spec", ["gpt", "", "local:", "m@ftp://h/v1", "@http://h/v1", "m@http://", "m@http://h:x/v1", "scripted:", "m@h"]
)
def test_a_wrong_spec_is_one_sentence(tmp_path, spec):
    with pytest.raises(UserError, match="judge"):
        make_judge(spec, cache=tmp_path)


def test_secrets_in_an_address_are_refused_and_not_repeated(tmp_path):
    for spec in ("m@https://me:hunter2@host/v1", "m@https://host/v1?key=hunter2"):
        with pytest.raises(UserError, match="MONOSEM_API_KEY") as caught:
            make_judge(spec, cache=tmp_path)
        assert "hunter2" not in str(caught.value)


def test_where_keys_go(monkeypatch):
    monkeypatch.delenv("MONOSEM_API_KEY", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "other")
    sent = {url: key_for(endpoint_of(f"m@{url}/v1")).reveal() for url in ("https://h", "http://[::1]:1", "http://h")}
    assert sent == {"https://h": "other", "http://[::1]:1": "other", "http://h": ""}
    monkeypatch.setenv("MONOSEM_API_KEY", "  mine\n")
    assert key_for(endpoint_of("m@http://h/v1")).reveal() == "mine"
    monkeypatch.setenv("MONOSEM_API_KEY", "mi ne")
    with pytest.raises(UserError, match="MONOSEM_API_KEY: holds") as caught:
        key_for(endpoint_of("m@http://h/v1"))
    assert "mi ne" not in str(caught.value)
    assert "hunter2" not in repr(Secret("hunter2")) + str(vars(Secret("x")).keys())


def test_an_endpoint_may_have_an_at_sign_in_the_model():
    assert endpoint_of("a@b@https://h:1/v1/").name == "a@b@https://h:1/v1"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2", 2.0),
        ("1.5", 1.5),
        ("20ms", 0.02),
        ("6m0s", 360.0),
        ("1h2m3.5s", 3723.5),
        ("Thu, 01 Jan 2026 00:00:07 GMT", 7.0),
        ("2026-01-01T00:00:09Z", 9.0),
        ("Wed, 31 Dec 2025 00:00:00 GMT", 0.0),
        ("soon", None),
        ("-3", None),
    ],
)
def test_waiting_times_in_headers(text, seconds):
    assert seconds_until(text, NOW) == seconds


def test_which_header_counts():
    assert asked_wait({"Retry-After": "3", "retry-after-ms": "250"}, NOW) == 0.25
    assert asked_wait({"Retry-After": "3"}, NOW) == 3
    limits = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "4s"}
    tokens = {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "9s"}
    assert asked_wait({**limits, **tokens}, NOW) == 9
    assert spent_wait({**limits, "x-ratelimit-remaining-requests": "1"}, NOW) is None
    assert asked_wait({"Retry-After": "soon"}, NOW) is None


def test_backoff_doubles_with_jitter():
    rng = random.Random(0)
    for attempt, longest in enumerate((0.5, 1.0, 2.0, 4.0)):
        waits = [backoff(attempt, 0.5, rng) for _ in range(50)]
        assert longest / 2 <= min(waits) < max(waits) <= longest
    assert backoff(1000, 0.5, rng) <= 30


def test_tokens_estimated_by_hand():
    assert text_tokens("the cat") == 2
    assert text_tokens("international relations") == 2 + 2  # 13 and 9 letters, a token for each 7 begun
    assert text_tokens("x\t10\n") == 1 + 1 + 2 + 1
    assert text_tokens("日本") == 2
    assert message_tokens([("user", "the cat")]) == 3 + 4 + 2


def test_chances_of_choices_by_hand():
    trie = Trie([(1,), (2,), (1, 3)])  # "1", "2", "10": "10" begins with "1"
    assert trie.nodes == [(), (1,)]
    assert trie.steps == [(0, 1), (0, 2), (0, 1), (1, 3)]
    chances = trie.chances(np.log([[0.5, 0.2, 0.5, 0.25]]))
    np.testing.assert_allclose(chances, [[0.5 - 0.125, 0.2, 0.125]])
    deep = Trie([(7, 1), (7, 1, 0), (7, 1, 0, 0)])
    assert deep.nodes == [(), (7,), (7, 1), (7, 1, 0)]
    steps = np.log([0.8, 0.5, 0.8, 0.5, 0.5, 0.8, 0.5, 0.5, 0.25])
    np.testing.assert_allclose(deep.chances(steps), [0.4 - 0.2, 0.2 - 0.05, 0.05])


def test_a_script(tmp_path: Path):
    path = tmp_path / "script.json"
    rules = [
        {"contains": "cats", "answer": "about cats"},
        {"contains": "fail", "reason": "no luck"},
        {"contains": "slots", "chances": [0.5, 0.25]},
    ]
    path.write_text(json.dumps({"rules": rules, "default": "nothing", "gives_logprobs": True}))
    judge = make_judge(f"scripted:{path}", cache=tmp_path)
    answers = judge.ask(asks("cats?", "fail", "dogs"))
    assert [(a.text, a.reason) for a in answers] == [("about cats", None), (None, "no luck"), ("nothing", None)]
    assert judge.gives_logprobs
    assert judge.reads_slots
    slots = Slots((), ("slots", "a"), ((0, 2), ()), ("0", "1"))
    (chances, none) = judge.chances([slots, Slots((), ("other",), ((0,),), ("0",))])
    np.testing.assert_array_equal(chances, [[0.5, 0.25]] * 2)
    assert none is None
    path.write_text('{"rules": [{"contains": 3}]}')
    with pytest.raises(UserError, match="not a script"):
        make_judge(f"scripted:{path}", cache=tmp_path)


def test_a_function_as_a_judge_and_its_budget():
    judge = ScriptedJudge(lambda r: r.messages[0][1].upper() or None, budget=Budget(tokens=40))
    answers = judge.ask(asks("a b", "", "c", max_tokens=8))
    assert [(a.text, a.reason) for a in answers] == [("A B", None), (None, "scripted"), ("C", None)]
    assert judge.spent.tokens == 9 + 2 + 8 + 1
    assert judge.ask(asks("d", max_tokens=30))[0].reason == "budget"
    assert len(judge.asked) == 3


def test_shapes_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="either"):
        Answer("text", "reason")
    for at in ((3, 1), (1, 1), (9,)):
        with pytest.raises(ValueError, match="offsets"):
            Slots((), ("text",), (at,), ("0",))
    with pytest.raises(ValueError, match="choices"):
        Slots((), ("text",), ((0,),), ("0", "0"))
