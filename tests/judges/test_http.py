"""The HTTP judge against a loopback server that answers, refuses, stalls and breaks off."""

from __future__ import annotations

import logging
import math
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from monosem.judges import Request, make_judge
from monosem.types import UserError
from tests.judges.server import INJECTION, Reply, chat, refusal, serve

KEY = "sk-test-4f7d1c9a8b"
LOGPROBS = {"content": [{"token": "yes", "logprob": -0.1, "top_logprobs": [{"token": "no", "logprob": -2.5}]}]}


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch):
    for name in ("MONOSEM_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def asks(number: int, **more) -> list[Request]:
    return [Request((("system", "Be short."), ("user", f"question {i}")), **more) for i in range(number)]


def judge_at(server, folder: Path, **more):
    judge = make_judge(f"m@{server.url}", cache=folder, **more)
    judge.first_wait = 0.01
    return judge


def echo(body):
    return chat("answer to " + body["messages"][-1]["content"])


def test_answers_come_in_order_and_equal_requests_are_asked_once(tmp_path):
    done = []
    with serve(echo) as server:
        judge = judge_at(server, tmp_path)
        requests = [*asks(20), *asks(3)]
        answers = judge.ask(requests, done.append)
    assert [a.text for a in answers] == [f"answer to {r.messages[-1][1]}" for r in requests]
    assert len(server.seen) == 20
    assert sum(done) == 23
    assert (answers[0].prompt_tokens, answers[0].completion_tokens, answers[0].cached) == (10, 5, False)
    assert judge.spent.tokens == 21 * 15  # the probe, too
    assert server.seen[0]["temperature"] == 0
    assert "logprobs" not in server.seen[0]


def test_a_second_run_sends_nothing_not_even_the_probe(tmp_path):
    with serve(echo) as server:
        judge_at(server, tmp_path).ask(asks(5))
        again = judge_at(server, tmp_path)
        answers = again.ask(asks(5))
        assert again.estimate(asks(6)).requests == 1
    assert [a.cached for a in answers] == [True] * 5
    assert (len(server.seen), server.probes, again.spent.tokens) == (5, 1, 0)


def test_another_seed_or_question_is_another_request(tmp_path):
    with serve(echo) as server:
        judge_at(server, tmp_path).ask(asks(1))
        judge_at(server, tmp_path, seed=1).ask(asks(1))
        judge_at(server, tmp_path).ask(asks(1, temperature=0.5))
    assert [body["seed"] for body in server.seen] == [0, 1, 0]


@pytest.mark.parametrize("style", ["chat", "legacy"])
def test_logprobs_of_both_styles(tmp_path, style):
    legacy = {"tokens": ["yes"], "token_logprobs": [-0.1], "top_logprobs": [{"no": -2.5, "yes": -0.1}]}
    given = LOGPROBS if style == "chat" else legacy
    with serve(lambda body: chat("yes", given), lambda body: chat("yes", given)) as server:
        judge = judge_at(server, tmp_path)
        assert judge.gives_logprobs
        assert server.seen == []
        (answer,) = judge.ask(asks(1, top_logprobs=5))
        (kept,) = judge_at(server, tmp_path).ask(asks(1, top_logprobs=5))
    assert answer.tokens == (("yes", {"no": -2.5, "yes": -0.1}),)
    assert kept.tokens == answer.tokens
    assert server.seen[0]["top_logprobs"] == 5


def test_an_endpoint_without_logprobs_is_found_out(tmp_path):
    def probe(body):
        return refusal(400, "logprobs are not supported with this model") if "logprobs" in body else chat("yes")

    with serve(echo, probe) as server:
        judge = judge_at(server, tmp_path)
        assert not judge.gives_logprobs
        assert judge.ask(asks(1, top_logprobs=5))[0].text
        assert "logprobs" not in server.seen[0]
        assert not judge_at(server, tmp_path, dry_run=True).gives_logprobs
    assert server.probes == 2


def test_parameters_that_an_endpoint_does_not_take_are_left_out(tmp_path):
    def picky(body):
        if "max_tokens" in body:
            return refusal(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
        return refusal(422, "Extra inputs are not permitted: seed") if "seed" in body else echo(body)

    with serve(picky, picky) as server:
        answers = judge_at(server, tmp_path).ask(asks(3))
    assert all(a.text for a in answers)
    assert all(body["max_completion_tokens"] == 256 and "seed" not in body for body in server.seen)


BROKEN = {
    "malformed": (lambda body: Reply(b'{"choices": [{"mess'), "not valid JSON"),
    "truncated": (lambda body: Reply(echo(body).body, cut=20), "broke off"),
    "no choices": (lambda body: Reply(b'{"choices": []}'), "no choices"),
    "a list": (lambda body: Reply(b"[1]"), "no choices"),
    "empty": (lambda body: chat(""), "empty answer"),
    "null": (lambda body: chat(None, finish_reason="length"), "empty answer (cut off at max_tokens)"),
    "filtered": (lambda body: chat("half", finish_reason="content_filter"), "content filter"),
    "500": (lambda body: refusal(500, "boom"), "status 500: boom"),
    "html": (lambda body: Reply(b"<html>Bad gateway</html>", 502), "status 502"),
    "too long": (lambda body: refusal(400, "maximum context length is 100, reduce max_tokens"), "maximum context"),
    "not utf-8": (lambda body: Reply(b'{"choices": [{"message": {"content": "\xff\xfe"}}]}'), None),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_answer_is_a_reason_and_hits_no_other(tmp_path, name):
    reply, reason = BROKEN[name]
    with serve(lambda body: reply(body) if body["messages"][-1]["content"] == "question 1" else echo(body)) as server:
        judge = judge_at(server, tmp_path)
        answers = judge.ask(asks(3))
        assert [a.text is None for a in answers] == [False, reason is not None, False]
        if reason is not None:
            assert reason in str(answers[1].reason)
        before = len(server.seen)
        judge_at(server, tmp_path).ask(asks(3))  # a failure is not kept: asked again; the others are
        assert (len(server.seen) > before) == (reason is not None)


def test_a_passing_fault_is_asked_again(tmp_path):
    faults = iter([refusal(500), Reply(b"{"), refusal(503), chat("fine")])
    with serve(lambda body: next(faults)) as server:
        assert judge_at(server, tmp_path).ask(asks(1))[0].text == "fine"
    assert len(server.seen) == 4


def test_retry_after_is_honoured_by_all_questions(tmp_path):
    times, refused = [], []

    def reply(body):
        times.append(time.monotonic())
        if not refused:
            refused.append(times[-1])
            return refusal(429, "slow down", {"retry-after-ms": "250"})
        return echo(body)

    with serve(reply) as server:
        answers = judge_at(server, tmp_path, concurrency=1).ask(asks(3))
    assert all(a.text for a in answers)
    assert times[1] - times[0] >= 0.25


def test_a_wait_that_is_too_long_stops_the_run(tmp_path):
    with serve(lambda body: refusal(429, "quota", {"Retry-After": "86400"})) as server:
        answers = judge_at(server, tmp_path, concurrency=1).ask(asks(4))
    assert all(a.text is None for a in answers)
    assert "status 429" in str(answers[0].reason)
    assert "stopped" in str(answers[3].reason)
    assert len(server.seen) == 1


def test_a_timeout_is_a_reason(tmp_path):
    def reply(body):
        return Reply(echo(body).body, delay=0.3 if body["messages"][-1]["content"] == "question 0" else 0)

    with serve(reply) as server:
        answers = judge_at(server, tmp_path, timeout=0.15).ask(asks(2))
    assert answers[0].reason == "no answer within 0.15 s"
    assert answers[1].text == "answer to question 1"


def test_a_server_that_only_fails_is_left_alone(tmp_path):
    with serve(lambda body: Reply(b"{"), lambda body: Reply(b"{")) as server:
        judge = judge_at(server, tmp_path, concurrency=2)
        answers = judge.ask(asks(60))
    assert all(a.text is None for a in answers)
    assert "questions in a row failed" in str(answers[-1].reason)
    assert len(server.seen) < 3 * 30


def test_injected_text_stays_in_its_answer(tmp_path):
    def reply(body):
        return chat(INJECTION) if body["messages"][-1]["content"] == "question 1" else echo(body)

    with serve(reply) as server:
        for _ in range(2):
            answers = judge_at(server, tmp_path).ask(asks(3))
            assert [a.text for a in answers] == ["answer to question 0", INJECTION, "answer to question 2"]
    assert len(server.seen) == 3


FATAL = {
    "key": (refusal(401, f"Incorrect API key provided: {KEY}"), "refused the key with status 401; check MONOSEM"),
    "model": (refusal(404, "The model `m` does not exist"), 'no model "m" there'),
    "model, 400": (refusal(400, "model m not found"), 'no model "m" there'),
    "credit": (refusal(429, "no quota", code="insufficient_quota"), "no credit left"),
    "redirect": (refusal(307, "", {"Location": "http://localhost:9/v1/chat/completions"}), "to another address"),
}


@pytest.mark.parametrize("name", FATAL)
def test_a_lasting_failure_is_one_sentence(tmp_path, monkeypatch, name, caplog, capfd):
    monkeypatch.setenv("MONOSEM_API_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    reply, words = FATAL[name]
    with serve(echo, lambda body: reply) as server:
        judge = judge_at(server, tmp_path)
        with pytest.raises(UserError) as caught:
            judge.ask(asks(3))
    assert server.url in str(caught.value)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (server.probes, server.seen) == (1, [])
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    import traceback

    shown = "".join(traceback.format_exception(caught.value)) + caplog.text + "".join(capfd.readouterr())
    shown += repr(judge) + repr(vars(judge)) + "".join(p.read_text() for p in tmp_path.rglob("*") if p.is_file())
    assert KEY not in shown


def test_the_key_reaches_no_file_not_even_by_an_answer_that_repeats_it(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    with serve(lambda body: chat(f"your key is {KEY}") if "1" in body["messages"][-1]["content"] else echo(body)) as s:
        judge = judge_at(s, tmp_path)
        answers = judge.ask(asks(2))
    assert answers[1].reason == "the answer repeats the key"
    assert s.headers[-1]["authorization"] == f"Bearer {KEY}"
    files = [p.read_text() for p in tmp_path.rglob("*") if p.is_file()]
    assert len(files) == 1
    assert KEY not in "".join(files) + caplog.text + repr(judge) + repr(vars(judge)) + repr(answers)


@pytest.mark.parametrize(
    ("url", "words"),
    [("http://127.0.0.1:9/v1", "nothing answers there"), ("http://no-such-host.invalid/v1", "is known")],
)
def test_no_server_is_one_sentence(tmp_path, url, words):
    with pytest.raises(UserError, match=words) as caught:
        make_judge(f"m@{url}", cache=tmp_path, timeout=5).ask(asks(2))
    assert url in str(caught.value)


def test_a_key_refused_midway_stops_the_rest(tmp_path):
    count = iter(range(100))
    with serve(lambda body: echo(body) if next(count) < 2 else refusal(401)) as server:
        answers = judge_at(server, tmp_path, concurrency=1).ask(asks(5))
    assert [a.text is not None for a in answers] == [True, True, False, False, False]
    assert "refused the key" in str(answers[4].reason)
    assert len(server.seen) == 3


def test_the_budget_is_never_overdrawn_and_stops_cleanly(tmp_path):
    with serve(echo) as server:
        judge = judge_at(server, tmp_path, budget_tokens=400, concurrency=16)
        answers = judge.ask(asks(50, max_tokens=100))
    texts = [a for a in answers if a.text]
    assert {a.reason for a in answers} == {None, "budget"}
    assert len(texts) == len(server.seen)
    assert 15 <= len(texts) < 50  # each took 15 tokens: more were sent than 400 / 100 at their largest
    assert judge.spent.tokens <= 400


def test_a_dry_run_sends_nothing(tmp_path):
    with serve(echo) as server:
        judge = judge_at(server, tmp_path, dry_run=True, prices=(1.0, 10.0))
        assert [a.reason for a in judge.ask(asks(2))] == ["dry run"] * 2
        cost = judge.estimate(asks(2, max_tokens=50))
        assert not judge.gives_logprobs
    assert (server.seen, server.probes) == ([], 0)
    assert (cost.requests, cost.completion_tokens) == (2, 100)
    assert cost.money == pytest.approx((cost.prompt_tokens + 10 * 100) / 1e6)


def test_inside_a_running_loop(tmp_path):
    import asyncio

    async def notebook(server):
        return judge_at(server, tmp_path).ask(asks(2))

    with serve(echo) as server:
        assert all(a.text for a in asyncio.run(notebook(server)))


def test_sixteen_at_a_time_overlap_at_the_server(tmp_path):
    """Replies of a wave leave only when all its sixteen requests are at the server: fewer at a time would time out."""
    wave = threading.Barrier(16)

    def together(body):
        wave.wait(timeout=60)
        return echo(body)

    with serve(echo) as server:
        judge = judge_at(server, tmp_path, concurrency=16)
        assert not judge.gives_logprobs  # the probe comes alone
        server.reply = together
        answers = judge.ask(asks(96))
    assert all(a.text and not a.cached for a in answers)
    assert server.most == 16


SCRIPT = """
import sys
from pathlib import Path
from monosem.judges import Request, make_judge
judge = make_judge(f"m@{sys.argv[1]}", cache=Path(sys.argv[2]), concurrency=4)
judge.ask([Request((("system", "Be short."), ("user", f"question {i}"))) for i in range(24)])
"""


def test_killed_midway_no_answered_request_is_sent_again(tmp_path):
    """At the kill up to 4 questions are under way; whatever was stored before is never asked again."""
    hold, reached = threading.Event(), threading.Event()

    def reply(body):
        number = int(body["messages"][-1]["content"].split()[1])
        if number >= 12:
            reached.set()
            hold.wait(20)
        return echo(body)

    with serve(reply) as server:
        script = [sys.executable, "-c", textwrap.dedent(SCRIPT), server.url, str(tmp_path)]
        with subprocess.Popen(script) as process:
            assert reached.wait(60)
            while len(server.seen) < 16:
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            process.wait()
        first = [body["messages"][-1]["content"] for body in server.seen]
        hold.set()
        server.reply = echo
        answers = judge_at(server, tmp_path).ask(asks(24))
        second = [body["messages"][-1]["content"] for body in server.seen[len(first) :]]
    assert all(a.text for a in answers)
    assert sorted(first) == sorted(f"question {i}" for i in range(16))
    assert sorted(second) == sorted(f"question {i}" for i in range(12, 24))  # 4 were never answered, 8 never sent
    assert server.probes == 1


def test_logprobs_that_are_nonsense_are_no_logprobs():
    from monosem.judges.protocol import read_logprobs

    for value in (None, 3, {"content": [{"token": 5, "logprob": -1}]}, {"tokens": ["a"], "token_logprobs": []}):
        assert read_logprobs(value) == ()
    twice = {
        "content": [
            {"token": "a", "logprob": -1.0, "top_logprobs": [{"token": "\ufffd", "logprob": math.log(0.25)}] * 2}
        ]
    }
    assert read_logprobs(twice)[0][1]["\ufffd"] == pytest.approx(math.log(0.5))
