"""One command at a time works on a study in an object store: it holds a lease there, and renews it.

No clocks are compared: who finds a lease watches whether it is renewed. Two that come at the same moment both write
theirs, and the one that finds the other's instead stops.
"""

from __future__ import annotations

import contextlib
import os
import platform
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from monosem.remote.place import Place
from monosem.types import UserError

BEAT = 5.0  # seconds between renewals
PATIENCE = 4 * BEAT  # a lease that isn't renewed for so long is taken over
Say = Callable[[str], object]


@contextlib.contextmanager
def leased(place: Place, lease: str, copy: str, say: Say) -> Iterator[Callable[[], None]]:
    """Hold the lease of this name; copy: identity of the working copy, whose lock is held. Yields what raises when it
    is lost.

    Raises UserError when another command renews its lease.
    """
    ours = {"host": platform.node(), "copy": copy, "process": os.getpid(), "name": secrets.token_hex(8)}
    found = place.read_json(lease)
    if found and found.get("copy") != copy:
        _watch(place, lease, found, say)  # one of this working copy is of a dead process
    over, lost = threading.Event(), threading.Event()

    def renew() -> None:
        beat = 0
        while not (over.wait(BEAT) or lost.is_set()):
            with contextlib.suppress(UserError):  # no network; it may come back
                if place.read_json(lease).get("name", ours["name"]) != ours["name"]:
                    lost.set()
                else:
                    beat += 1
                    place.write_json(lease, {**ours, "beat": beat})

    def check() -> None:
        if lost.is_set():
            raise UserError(
                f"{place.url}: another monosem process has taken this study over, as this one didn't answer for a "
                "while; what was made since isn't in the store"
            )

    place.write_json(lease, {**ours, "beat": 0})
    renewing = threading.Thread(target=renew, name="lease", daemon=True)
    renewing.start()
    try:
        yield check
    finally:
        over.set()
        renewing.join()
        if not lost.is_set():
            with contextlib.suppress(UserError):  # it is then found not to be renewed
                place.remove(lease)


def _watch(place: Place, lease: str, found: dict[str, Any], say: Say) -> None:
    """Return once a lease has not been renewed for a while, or is gone. Raises UserError when it is renewed."""
    say(f"{place.url}: a process on {found.get('host')} has worked on it; waiting to see whether it still does")
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        time.sleep(BEAT / 2)
        now = place.read_json(lease)
        if not now:
            return
        if now != found:
            raise UserError(
                f"{place.url}: another monosem process (number {now.get('process')} on {now.get('host')}) is working "
                "on this study; wait until it has ended, or work at another place"
            )
