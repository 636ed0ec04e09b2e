"""Two people rate a whole packet by keyboard, each in a browser of their own, while the server dies and comes back."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from monosem.rating.analysis import analyse
from monosem.rating.draw import draw
from monosem.rating.store import Files, freeze, latest, read_records

from ..rating.study import make_study, packet_of, revealed

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Response

pytestmark = pytest.mark.browser

WIDE, NARROW = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
NOT_STORED = "Not stored yet"


class Server:
    """`monosem serve` as a process of its own, which can be killed and started again on the same port."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "study.toml").touch()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "monosem", "serve", str(self.folder), "--port", str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while True:
            assert self.process.poll() is None, "the server ended by itself"
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            assert time.monotonic() < deadline, "the server doesn't answer"
            time.sleep(0.05)

    def kill(self) -> None:
        if self.process and self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGKILL)
            self.process.wait()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    folder = make_study(tmp_path / "study")
    draw(folder, features=4)
    started = Server(folder)
    yield started
    started.kill()


class Rater:
    """A person with a keyboard, who scores every item by its id."""

    def __init__(self, browser: Browser, server: Server, name: str, viewport: Any = WIDE, scheme: Any = "light"):
        self.name, self.server = name, server
        self.sent: dict[str, tuple[int, int]] = {}
        self.loaded: list[tuple[str, str]] = []
        self.page: Page = browser.new_context(viewport=viewport, color_scheme=scheme).new_page()
        self.page.on("response", self._note)
        self.page.goto(f"http://127.0.0.1:{server.port}/rate/")
        self.page.wait_for_selector("#name-form")
        self.page.keyboard.insert_text(name)  # the field has the focus
        self.page.keyboard.press("Enter")
        self.arrive("")

    def _note(self, response: Response) -> None:
        self.loaded.append((response.url, json.dumps(response.headers) + response.text()))

    @property
    def item(self) -> str:
        return self.page.evaluate("document.body.dataset.item || ''")

    def arrive(self, before: str) -> None:
        from playwright.sync_api import TimeoutError

        try:
            self.page.wait_for_function("before => (document.body.dataset.item || '') !== before", arg=before)
        except TimeoutError as error:
            said = {name: self.page.locator(f"#{name}").inner_text() for name in ("hint", "notice")}
            said["sending"] = str(self.page.evaluate("busy"))
            focus = self.page.evaluate("document.activeElement.outerHTML.slice(0, 200)")
            raise AssertionError(f"the page stays at item {before}: {said}, focus in {focus}") from error

    def submit(self, item: str) -> None:
        """Press Enter until the page has left an item: on a busy machine, the key after a dialog may get lost.

        While a rating is being sent, the page takes no other one.
        """
        from playwright.sync_api import TimeoutError

        for _ in range(5):
            self.press("Enter")
            with contextlib.suppress(TimeoutError):
                self.page.wait_for_function(
                    "before => document.body.dataset.item !== before", arg=item, timeout=5_000, polling=100
                )
                return
        self.arrive(item)

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def enter(self) -> str:
        """Score the item and press Enter, without waiting; return the item."""
        item = self.item
        scores = 1 + int(item[:4], 16) % 5, 1 + int(self.name + item[4:8], 36) % 5
        self.press(str(scores[0]), str(scores[1]), "Enter")
        if self.page.locator("#guess").is_visible():
            self.press("1", "Enter")
        self.sent[item] = scores
        return item

    def rate(self, items: int) -> None:
        for _ in range(items):
            self.arrive(self.enter())


def stored(server: Server) -> dict[tuple[str, str], tuple[int, int]]:
    records = latest(read_records(Files(server.folder).ratings)[0])
    return {key: (r["consistency"], r["complexity"]) for key, r in records.items()}


@pytest.mark.slow
def test_no_submitted_rating_is_lost_when_the_server_is_killed(browser: Browser, server: Server) -> None:
    packet = packet_of(server.folder)
    total = len(packet["training"]) + len(packet["items"])
    ann, bob = Rater(browser, server, "ann"), Rater(browser, server, "bob", NARROW, "dark")
    for _ in range(7):  # both at once
        before = ann.enter(), bob.enter()
        ann.arrive(before[0])
        bob.arrive(before[1])
    shown = {(rater.name, item): scores for rater in (ann, bob) for item, scores in rater.sent.items()}
    assert stored(server) == shown  # what the page went on from is on disk

    server.kill()
    with open(Files(server.folder).ratings, "ab") as file:
        file.write(b'{"event": "rating", "submission": "torn')  # a write that the kill cut short
    waiting = ann.enter()
    ann.page.wait_for_function("text => document.getElementById('notice').textContent.includes(text)", arg=NOT_STORED)
    assert ann.item == waiting  # it stays, with its scores
    assert ann.page.locator("#consistency input:checked").input_value() == str(ann.sent[waiting][0])
    server.start()
    ann.arrive(waiting)  # tried again by itself
    assert not ann.page.locator("#notice").is_visible()
    assert stored(server)["ann", waiting] == ann.sent[waiting]

    server.kill()
    late = bob.enter()
    bob.page.wait_for_function("text => document.getElementById('notice').textContent.includes(text)", arg=NOT_STORED)
    server.start()
    bob.page.reload()  # the page is gone, the rating is not
    bob.arrive("")
    assert stored(server)["bob", late] == bob.sent[late]
    assert bob.item not in bob.sent

    for rater in (ann, bob):
        rater.rate(total - len(rater.sent))
        assert rater.item == "end"
        assert rater.page.locator("#end").is_visible()
    assert stored(server) == {(r.name, item): scores for r in (ann, bob) for item, scores in r.sent.items()}
    assert len(stored(server)) == 2 * total
    assert read_records(Files(server.folder).ratings)[1] == 1  # the torn line, which spoilt nothing

    analyse(server.folder, draws=200)
    session = ann.page.evaluate("fetch('session?rater=ann').then((answer) => answer.json())")
    assert session["frozen"] is True
    check_nothing_was_revealed([*ann.loaded, *bob.loaded], server.folder)


def check_nothing_was_revealed(loaded: list[tuple[str, str]], folder: Path) -> None:
    assert {url.partition("/rate/")[2].partition("/")[0].partition("?")[0] for url, _ in loaded} == {
        *("", "assets", "item", "session", "submit")
    }
    families = json.dumps(packet_of(folder)["families"], separators=(",", ":"))
    own_guess = f'"guess":"{packet_of(folder)["families"][0]}"'
    texts = [f"{url}\n{text}".replace(families, "").replace(own_guess, "") for url, text in loaded]
    assert revealed("\n".join(texts), folder) == []


def test_keys_take_back_note_leave_out_and_go_back(browser: Browser, server: Server) -> None:
    ann = Rater(browser, server, "ann")
    page, first = ann.page, ann.item
    ann.press("Enter")
    assert "Both scales need a score" in page.locator("#hint").inner_text()
    ann.press("4", "7", "5")
    assert page.locator("#consistency input:checked").input_value() == "4"
    assert page.locator("#complexity input:checked").input_value() == "5"
    ann.press("Backspace")
    assert page.locator("#complexity input:checked").count() == 0
    ann.press("n")
    page.keyboard.insert_text("1 word? Bob's")
    ann.press("Escape", "2", "?")
    assert page.locator("#help").is_visible()
    ann.press("Escape")
    page.locator("#help").wait_for(state="hidden")
    ann.submit(first)
    second = ann.item
    ann.press("3", "c")
    assert page.locator("#consistency input:checked").count() == 0
    ann.press("Enter")
    ann.arrive(second)
    third = ann.item
    ann.press("b")
    ann.arrive(third)
    assert ann.item == second
    assert page.locator("#cannot-tell").is_checked()
    ann.press("b")
    ann.arrive(second)
    assert page.locator("#note").input_value() == "1 word? Bob's"
    assert page.locator("#complexity input:checked").input_value() == "2"
    ann.press("Backspace", "3", "Enter")
    ann.arrive(first)
    assert ann.item == third  # the first one that is not rated yet
    records, _ = read_records(Files(server.folder).ratings)
    assert [r["event"] for r in records] == ["rating", "rating", "back", "back", "rating"]
    counted = latest(records)
    assert (counted["ann", first]["consistency"], counted["ann", first]["complexity"]) == (4, 3)
    assert counted["ann", first]["note"] == "1 word? Bob's"
    assert (counted["ann", second]["cannot_tell"], counted["ann", second]["consistency"]) == (True, None)
    page.reload()
    ann.arrive("")
    assert ann.item == third
    assert page.locator("#count").inner_text() == "Practice 3 of 5"


def test_a_rating_that_is_refused_is_kept_and_its_item_comes_again(browser: Browser, server: Server) -> None:
    packet = packet_of(server.folder)
    total = len(packet["training"]) + len(packet["items"])
    ann = Rater(browser, server, "ann")
    page, refused = ann.page, ann.item
    page.evaluate("document.getElementById('note').value = 'half \\ud83d'")
    ann.arrive(ann.enter())  # on to the next one
    assert "Not stored: `note` has half a character in it" in page.locator("#notice").inner_text()
    assert stored(server) == {}
    ann.rate(1)
    assert not page.locator("#notice").is_visible()
    page.reload()
    ann.arrive("")
    assert "Not stored: `note`" in page.locator("#notice").inner_text()  # sent again, refused again
    assert ann.item not in ann.sent
    ann.rate(total - 2)
    assert ann.item == refused
    assert page.locator("#note").input_value().startswith("half ")
    assert page.locator("#consistency input:checked").input_value() == str(ann.sent[refused][0])
    page.locator("#note").fill("whole")
    page.locator("#note").press("Escape")
    ann.press("Enter")
    ann.arrive(refused)
    assert ann.item == "end"
    assert stored(server)["ann", refused] == ann.sent[refused]
    assert len(stored(server)) == total
    assert page.evaluate("Object.keys(localStorage)") == ["last-rater"]


def test_nothing_goes_on_once_the_ratings_are_frozen(browser: Browser, server: Server) -> None:
    ann = Rater(browser, server, "ann")
    ann.rate(6)  # five of them practice
    freeze(Files(server.folder))
    item = ann.enter()
    ann.page.wait_for_function("() => document.getElementById('notice').textContent.includes('The ratings are frozen')")
    assert ann.item == item
    assert ann.page.locator("#consistency input:checked").input_value() == str(ann.sent[item][0])


@pytest.mark.parametrize("viewport", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_and_shows_text_as_text(browser: Browser, server: Server, viewport: Any, scheme: str) -> None:
    ann = Rater(browser, server, "ann", viewport, scheme)
    complaints: list[str] = []
    ann.page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
    ann.page.on("pageerror", lambda error: complaints.append(str(error)))
    ann.page.on("dialog", lambda dialog: complaints.append("a script in a text ran"))
    ann.rate(1)
    assert ann.page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    assert ann.page.locator(".group").count() == 8
    shown = packet_of(server.folder)["items"][0]["groups"]
    assert ann.page.locator(".group li").count() == sum(map(len, shown))
    for item in ("#consistency", "#complexity", "#submit"):
        box = ann.page.locator(item).bounding_box()
        assert box
        assert box["x"] + box["width"] <= viewport["width"]
    texts = "".join(ann.page.locator(".group li").all_text_contents())
    packet = json.dumps(packet_of(server.folder)["training"][1])
    assert ("<script>" in texts) == ("<script>" in packet)
    assert ann.page.locator("#examples script").count() == 0
    assert complaints == []
