"""What keeps other sites out of a server on this machine, and scripts out of its pages.

A page of another site can make the browser send requests here. It can't read the answers, unless its name is made to
resolve to this machine (DNS rebinding): therefore the Host header must be one that was meant. It can write without
reading: therefore whatever changes something needs an Origin header that names this very server.
"""

from __future__ import annotations

import ipaddress

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("127.0.0.1", "localhost", "::1")
WILDCARDS = ("0.0.0.0", "::", "")
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
# The report is one file with its scripts inside; it names their hashes itself, in a policy of its own.
REPORT_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}


class Guard:
    """ASGI middleware: refuses foreign hosts and cross-site writes, and sets headers that a response hasn't set.

    host: what the server is bound to. A server bound to all addresses also answers to any address written as numbers;
    a rebinding site needs a name.
    """

    def __init__(self, app: ASGIApp, host: str = "127.0.0.1"):
        """Wrap an application."""
        self.app, self.host = app, host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    answer.setdefault(name, value)
            await send(message)

        refusal = self._refusal(scope["method"], scope["scheme"], headers)
        answer = self.app if refusal is None else PlainTextResponse(refusal, 403)
        await answer(scope, receive, send_with_headers)

    def _refusal(self, method: str, scheme: str, headers: Headers) -> str | None:
        host = headers.get("host", "")
        if not allowed_host(host, self.host):
            return "This server does not go by the name in the Host header.\n"
        if method not in SAFE_METHODS and headers.get("origin") != f"{scheme}://{host}":
            return "Refused: only a page of this server may change something here.\n"
        return None


def allowed_host(header: str, bound: str) -> bool:
    """Return whether a Host header names this server, which is bound to `bound`."""
    name = _without_port(header).lower()
    if name in LOOPBACK or (name and name == bound.lower()):
        return True
    return bound in WILDCARDS and _is_address(name)


def _without_port(header: str) -> str:
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0]


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
