"""A judge behind an OpenAI-compatible HTTP endpoint: the official client, many questions at once. Imports no torch."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from monosem.judges import Answer, Budget, Deliver, Judge, Request
from monosem.judges.cache import AnswerLog
from monosem.judges.endpoint import Endpoint, endpoint_of, is_loopback, key_for, refused, unreachable
from monosem.judges.pacing import Pace, asked_wait, backoff, spent_wait
from monosem.judges.protocol import Fault, Refusal, read_answer, request_body
from monosem.types import UserError

__all__ = ["HttpJudge", "endpoint_of"]

PROBE = Request((("user", "Answer with the one word: yes"),), max_tokens=16, top_logprobs=5)
PATIENCE = 600.0  # seconds that an endpoint may ask to wait; beyond that the run stops
ATTEMPTS = {"endpoint": 1, "absent": 6, "server": 6, "rate": 20, "broken": 3, "answer": 1}


class HttpJudge(Judge):
    """Asks an endpoint, `concurrency` questions at a time.

    The first question ever is a small probe: is the endpoint there, and does it give log probabilities? Its outcome is
    kept in the cache. Refusals that pass (429, 5xx, time-outs, broken answers) are asked again after the time that the
    endpoint names, or after `first_wait` seconds, doubled each time. Ctrl-C ends it at once; what was answered is kept.
    timeout: seconds for one attempt, all in all.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        cache: Path,
        budget: Budget,
        seed: int = 0,
        dry: bool = False,
        concurrency: int = 8,
        timeout: float = 60.0,
        first_wait: float = 0.5,
    ):
        """Read the key from the environment; nothing is sent yet."""
        identity = {"model": endpoint.model, "url": endpoint.url}
        super().__init__(endpoint.name, identity, AnswerLog(cache, endpoint.name, identity), budget, seed, dry)
        self.endpoint, self.concurrency, self.timeout, self.first_wait = endpoint, concurrency, timeout, first_wait
        self._secret = key_for(endpoint)
        self._rng = random.Random()
        self._dropped: list[str] = []  # parameters that the endpoint doesn't take
        self._logprobs: bool | None = None
        self._reached = False  # whether anything was answered in this process
        self._stopped: str | None = None  # why nothing more is sent
        self._failures = 0  # questions in a row that failed after all attempts
        self._flying = 0

    @property
    def gives_logprobs(self) -> bool:
        """Whether the endpoint gives log probabilities; asks it once where the cache doesn't know.

        Raises UserError when the endpoint can't be reached. False in a dry run that doesn't know.
        """
        if self._known() is None and not self.dry:
            _run(self._session([], lambda i, answer: None))
        return bool(self._logprobs)

    def _known(self) -> bool | None:
        if self._logprobs is None and self.log:
            kept = self.log.get(self._key(PROBE))
            if isinstance(kept, dict) and isinstance(kept.get("logprobs"), bool):
                self._logprobs = kept["logprobs"]
                self._dropped = [str(name) for name in kept.get("dropped", [])]
        return self._logprobs

    def _answer(self, requests: list[Request], deliver: Deliver) -> None:
        _run(self._session(requests, deliver))

    async def _session(self, requests: list[Request], deliver: Deliver) -> None:
        self._pace, self._settled, self._flying = Pace(), asyncio.Condition(), 0
        async with self._client() as client:
            if self._known() is None:
                await self._probe(client)
            todo = iter(enumerate(requests))

            async def work() -> None:
                for i, request in todo:
                    answer = await self._one(client, request)
                    deliver(i, answer)

            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(self.concurrency, len(requests))):
                        group.create_task(work())
            except BaseExceptionGroup as several:
                raise several.exceptions[0] from None

    def _client(self) -> Any:
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient, Timeout

        limits = Timeout(self.timeout, connect=min(10.0, self.timeout))
        # No proxy leads to this machine, and no redirect sends questions to another one.
        wire: dict[str, Any] = {
            "trust_env": not is_loopback(urlsplit(self.endpoint.url).hostname or ""),
            "follow_redirects": False,
        }
        return AsyncOpenAI(
            api_key=self._secret.reveal() or "none",
            base_url=self.endpoint.url,
            max_retries=0,  # `_one` asks again, so that all questions share one pace
            timeout=limits,
            http_client=DefaultAsyncHttpxClient(timeout=limits, **wire),
        )

    async def _probe(self, client: Any) -> None:
        answer = await self._one(client, PROBE, store=False)
        if not self._reached:  # no answer, but for a reason that may pass: find out another time
            return
        self._logprobs = bool(answer.tokens)
        if self.log:
            kept = {"logprobs": self._logprobs, "dropped": self._dropped}
            await asyncio.to_thread(self.log.put, self._key(PROBE), dataclasses.asdict(PROBE), kept)

    async def _one(self, client: Any, request: Request, store: bool = True) -> Answer:
        """Return the answer to a question after as many attempts as it takes. Raises UserError if there is no point."""
        attempt = 0
        while True:
            if not await self._afford(request):
                return Answer.failed(self._stopped or "budget")
            try:
                answer = await self._attempt(client, request)
            except Fault as fault:
                attempt += 1
                if fault.kind in ("endpoint", "absent") and not self._reached:
                    raise UserError(fault.reason) from None
                if not self._again(fault, attempt):
                    return Answer.failed(fault.reason)
                wait = backoff(attempt - 1, self.first_wait, self._rng) if fault.wait is None else fault.wait
                if fault.kind == "rate":
                    self._pace.hold_off(wait)
                else:
                    await asyncio.sleep(wait)
                continue
            self._reached, self._failures = True, 0
            # A thread writes it, so that a slow disk holds no other answer up; it ends even if this task is cancelled.
            return await asyncio.to_thread(self.keep, request, answer) if store else answer

    def _again(self, fault: Fault, attempt: int) -> bool:
        """Decide whether to ask once more, and whether to ask anything more at all."""
        if fault.kind == "endpoint" or (fault.wait or 0) > PATIENCE:
            self._stopped = f"stopped: {fault.reason}"
            return False
        if self._stopped is None and attempt < ATTEMPTS[fault.kind]:
            return True
        if fault.kind != "answer":
            self._failures += 1
            if self._failures >= max(20, 2 * self.concurrency):
                self._stopped = f"stopped: {self._failures} questions in a row failed, the last one: {fault.reason}"
        return False

    async def _afford(self, request: Request) -> bool:
        """Hold the question's cost, when need be after those under way are settled; False if it isn't to be sent."""
        await self._pace.ready(self._rng)
        async with self._settled:
            while self._stopped is None:
                if self.budget.hold(self.prompt_tokens(request), request.max_tokens):
                    self._flying += 1
                    return True
                if not self._flying:
                    return False
                await self._settled.wait()
        return False

    async def _attempt(self, client: Any, request: Request) -> Answer:
        """Send a question once. Raises Fault."""
        prompt = self.prompt_tokens(request)
        used = self.budget.cost(0, 0)
        try:
            answer = await self._send(client, request)
            if not answer.prompt_tokens:
                answer = dataclasses.replace(answer, prompt_tokens=prompt)
            used = dataclasses.replace(self.budget.cost(answer.prompt_tokens, answer.completion_tokens), requests=1)
            return answer
        except Fault as fault:
            if fault.sent:  # it may have been charged for: better to stop early than to overdraw
                used = dataclasses.replace(self.budget.cost(prompt, 0), requests=1)
            raise
        finally:
            self.budget.settle(prompt, request.max_tokens, used)
            self._flying -= 1
            async with self._settled:
                self._settled.notify_all()

    async def _send(self, client: Any, request: Request) -> Answer:
        from openai import APIConnectionError, APIStatusError, APITimeoutError

        while True:
            body = request_body(self.endpoint.model, request, self._dropped)
            try:
                async with asyncio.timeout(self.timeout):
                    raw = await client.chat.completions.with_raw_response.create(**body)
            except (TimeoutError, APITimeoutError) as error:
                fault = unreachable(self.endpoint, error)
                late = Fault(f"no answer within {self.timeout:g} s", "broken", sent=True)
                raise (fault if fault.kind == "absent" else late) from None
            except APIConnectionError as error:
                raise unreachable(self.endpoint, error) from None
            except APIStatusError as error:
                refusal = Refusal.read(error.status_code, error.response.text)
                if name := refusal.unsupported(set(body)):
                    if name not in self._dropped:
                        self._dropped.append(name)
                    continue
                raise self._refusal(refusal, dict(error.response.headers)) from None
            if (wait := spent_wait(dict(raw.headers))) is not None:
                self._pace.hold_off(min(wait, PATIENCE))
            return self._read(raw)

    def _read(self, raw: Any) -> Answer:
        try:
            text = raw.text
        except UnicodeDecodeError:
            raise Fault("the answer is not valid UTF-8", "broken", sent=True) from None
        answer = read_answer(text)
        if self._secret.is_in(text) or self._secret.is_in(answer.text or ""):
            raise Fault("the answer repeats the key", "answer", sent=True)
        return answer

    def _refusal(self, refusal: Refusal, headers: dict[str, str]) -> Fault:
        if self._secret.is_in(refusal.message):
            refusal = dataclasses.replace(refusal, message="")
        fault = refused(self.endpoint, refusal, bool(self._secret))
        if fault is not None and not (refusal.status == 403 and self._reached):
            return fault
        said = f"status {refusal.status}" + (f": {refusal.message}" if refusal.message else "")
        if refusal.status == 429:
            return Fault(said, "rate", wait=asked_wait(headers))
        if refusal.status in (408, 409, 425) or refusal.status >= 500:
            return Fault(said, "server", wait=asked_wait(headers))
        return Fault(said, "answer")


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine to its end, in a thread of its own where a loop is running already (a notebook)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(work)
        return
    failure: list[BaseException] = []

    def alone() -> None:
        try:
            asyncio.run(work)
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=alone)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
