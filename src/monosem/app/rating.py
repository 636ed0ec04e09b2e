"""The rating pages: items one by one, two scales, stored before the next one comes (section J.3).

They read `ratings/packet.json` and the ratings, never the key, codes or results, and share no page, style or script
with the rest of the app, so that nothing they load can tell what an item shows.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from monosem.rating.rubric import SCALES
from monosem.rating.shapes import read_packet
from monosem.rating.store import Conflict, Files, Frozen, add, latest, one_spelling, read_records
from monosem.store import value_hash
from monosem.types import UserError

UI_VERSION = 1
ASSETS = Path(__file__).parent / "assets"
ASSET_NAMES = ("rate.css", "rate.js")
BODY_BYTES, NOTE_LETTERS, NAME_LETTERS, TIME_LETTERS = 65_536, 2_000, 60, 40
ANSWER = ("consistency", "complexity", "cannot_tell", "note", "guess")
FRESH = {"cache-control": "no-store"}


class Refused(Exception):
    """A submission that is not stored: status and the reason, in words that tell nothing about the study."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status, self.reason = status, reason


@dataclass
class Desk:
    """The packet of a study, read anew when the file changes, and where its ratings go."""

    files: Files
    _read: tuple[int, dict[str, Any]] | None = field(default=None, repr=False)

    def packet(self) -> dict[str, Any] | None:
        """Return what raters see, None when nothing is drawn or the packet is damaged."""
        try:
            changed = self.files.packet.stat().st_mtime_ns
            if self._read is None or self._read[0] != changed:
                self._read = changed, read_packet(self.files.packet)
        except (OSError, UserError):
            return None
        return self._read[1]

    def session(self, rater: str) -> dict[str, Any]:
        """Return the order of the items and this rater's answers so far. Raises Refused without a packet."""
        packet = self._packet()
        counted = latest(read_records(self.files.ratings)[0])
        answers = {item: {name: r[name] for name in ANSWER} for (who, item), r in counted.items() if who == rater}
        order = [{"id": item["id"], "training": item in packet["training"]} for item in _items(packet)]
        return {
            "study": packet["study_id"],
            "frozen": self.files.frozen.exists(),
            "families": packet["families"],
            "order": order,
            "answers": answers,
        }

    def item(self, index: int) -> dict[str, Any]:
        """Return one item by its place in the order. Raises Refused when there is none."""
        packet = self._packet()
        items = _items(packet)
        if index >= len(items):
            raise Refused(404, "There is no such item.")
        groups = [
            {"name": name, "windows": windows}
            for name, windows in zip(packet["groups"], items[index]["groups"], strict=True)
        ]
        one = items[index]
        return {"id": one["id"], "guess": bool(one.get("guess")), "groups": groups, "view": _view_hash(packet, one)}

    def store(self, payload: Any, event: str) -> None:
        """Check a submission and return once it is on disk. Raises Refused when it can't be stored."""
        self._packet()  # where nothing is drawn, no folder is made
        try:
            with self.files.locked():  # nothing can be drawn anew or frozen in between
                add(self.files, checked(payload, self._packet(), event))
        except Frozen:
            raise Refused(409, "The ratings are frozen: nothing more is stored.") from None
        except Conflict:
            raise Refused(409, "Another rating was stored as this submission; submit it anew.") from None
        except (OSError, UserError) as error:
            cause = error if isinstance(error, OSError) else error.__cause__
            raise Refused(503, f"The rating could not be written ({getattr(cause, 'strerror', None)}).") from error

    def _packet(self) -> dict[str, Any]:
        packet = self.packet()
        if packet is None:
            raise Refused(404, "Nothing is drawn for rating yet.")
        return packet


def _items(packet: dict[str, Any]) -> list[dict[str, Any]]:
    return [*packet["training"], *packet["items"]]


def _view_hash(packet: dict[str, Any], item: dict[str, Any]) -> str:
    return value_hash([packet["groups"], packet["steps"], item["groups"]])


def checked(payload: Any, packet: dict[str, Any], event: str) -> dict[str, Any]:
    """Return the record to be stored (section J.4). event: `rating` or `back`. Raises Refused naming what is wrong."""
    if not isinstance(payload, dict):
        raise Refused(400, "Not a JSON object.")
    if payload.get("study_id") != packet["study_id"]:
        raise Refused(409, "The items were drawn anew; reload the page.")
    places = {item["id"]: place for place, item in enumerate(_items(packet))}
    place = places.get(_text(payload, "item_id", 40))
    if place is None:
        raise Refused(400, "There is no such item.")
    item = _items(packet)[place]
    record = {
        "event": event,
        "submission": _text(payload, "submission", 80),
        "study_id": packet["study_id"],
        "item_id": item["id"],
        "rater_id": rater_name(_text(payload, "rater_id", NAME_LETTERS)),
        "order_index": place,
        "ui_version": payload.get("ui_version") if isinstance(payload.get("ui_version"), int) else None,
    }
    if event == "back":
        return {**record, "t_submit": _text(payload, "t_submit", TIME_LETTERS)}
    if payload.get("view_hash") != _view_hash(packet, item):
        raise Refused(409, "The item has changed since it was shown; reload the page.")
    times = {name: _text(payload, name, TIME_LETTERS) for name in ("t_open", "t_submit")}
    return {**record, **times, **_answer(payload, item, packet["families"]), "view_hash": payload["view_hash"]}


def _answer(payload: dict[str, Any], item: dict[str, Any], families: list[str]) -> dict[str, Any]:
    """Return the scores: both from 1 to 5, or none of them with "cannot tell"; the guess only where it is asked for."""
    cannot_tell = payload.get("cannot_tell") is True
    scores = {}
    for scale in SCALES:
        value = None if cannot_tell else payload.get(scale.field)
        if not cannot_tell and (type(value) is not int or not 1 <= value <= 5):
            raise Refused(400, f"{scale.name} needs a score from 1 to 5.")
        scores[scale.field] = value
    guess = payload.get("guess") if item.get("guess") else None
    if item.get("guess") and guess not in families:
        raise Refused(400, "This item needs a guess.")
    return {**scores, "cannot_tell": cannot_tell, "note": _text(payload, "note", NOTE_LETTERS), "guess": guess}


def _text(payload: dict[str, Any], name: str, most: int) -> str:
    value = payload.get(name)
    if not isinstance(value, str) or len(value) > most:
        raise Refused(400, f"`{name}` must be text of at most {most} characters.")
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise Refused(400, f"`{name}` has half a character in it (a lone surrogate); remove it.")
    return value


def rater_name(text: str) -> str:
    """Return a rater's name as it is stored. Raises Refused for an empty or unprintable one."""
    name = one_spelling(" ".join(text.split()))
    if not name or len(name) > NAME_LETTERS or not name.isprintable():
        raise Refused(400, f"A name needs 1 to {NAME_LETTERS} printable characters.")
    return name


def rating_routes(folder: Path) -> list[BaseRoute]:
    """Return the routes of the rating pages of a study folder, to be mounted under /rate."""
    desk = Desk(Files(folder))

    def page(_request: Request) -> Response:
        from monosem.app.rendering import environment

        text = environment().get_template("rate.html.j2").render(
            scales=SCALES, version=UI_VERSION, name_letters=NAME_LETTERS, note_letters=NOTE_LETTERS,
            drawn=desk.packet() is not None,
        )  # fmt: skip
        return HTMLResponse(text, headers=FRESH)

    def session(request: Request) -> Response:
        return _answered(lambda: desk.session(rater_name(request.query_params.get("rater", ""))))

    def item(request: Request) -> Response:
        return _answered(lambda: desk.item(request.path_params["index"]))

    def asset(request: Request) -> Response:
        name = request.path_params["name"]
        return FileResponse(ASSETS / name) if name in ASSET_NAMES else PlainTextResponse("Not found\n", 404)

    def write(event: str) -> Any:
        async def endpoint(request: Request) -> Response:
            try:
                payload = await _payload(request)
            except Refused as refused:
                return _refusal(refused)
            return await run_in_threadpool(_answered, lambda: desk.store(payload, event) or {"stored": True})

        return endpoint

    return [
        Route("/", page),
        Route("/session", session),
        Route("/item/{index:number}", item),
        Route("/submit", write("rating"), methods=["POST"]),
        Route("/back", write("back"), methods=["POST"]),
        Route("/assets/{name}", asset),
    ]


def _answered(work: Any) -> Response:
    try:
        return JSONResponse(work(), headers=FRESH)
    except Refused as refused:
        return _refusal(refused)


def _refusal(refused: Refused) -> Response:
    return JSONResponse({"reason": refused.reason}, refused.status, headers=FRESH)


async def _payload(request: Request) -> Any:
    """Return the JSON of a request. A form of another site can't send this type of content."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise Refused(415, "Send JSON.")
    data = b""
    async for piece in request.stream():
        data += piece
        if len(data) > BODY_BYTES:
            raise Refused(413, "Too long.")
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise Refused(400, "Not valid JSON.") from None
