"""Where an OpenAI-compatible endpoint is, the key for it, and its failures in words. Imports no torch."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from monosem.judges.protocol import Fault, Refusal
from monosem.types import UserError

KEYS = ("MONOSEM_API_KEY", "OPENAI_API_KEY")


@dataclass(frozen=True)
class Endpoint:
    """A model at an address. url: the base, without a slash at the end; it never holds a key."""

    model: str
    url: str

    @property
    def name(self) -> str:
        """The spec."""
        return f"{self.model}@{self.url}"

    @property
    def is_private(self) -> bool:
        """Whether what is sent can't be read on the way: https, or this machine."""
        parts = urlsplit(self.url)
        return parts.scheme == "https" or is_loopback(parts.hostname or "")


class Secret:
    """A key that prints as ***."""

    def __init__(self, value: str):
        """Keep the value."""
        self.__value = value

    def __repr__(self) -> str:
        """Return stars."""
        return "***"

    def __bool__(self) -> bool:
        """Whether there is a key."""
        return bool(self.__value)

    def __reduce__(self) -> str:
        """Refuse to be copied into a file."""
        raise TypeError("a key is not stored")

    def reveal(self) -> str:
        """Return the key, for the header of a request only."""
        return self.__value

    def is_in(self, text: str) -> bool:
        """Whether a text holds the key."""
        return bool(self.__value) and self.__value in text


def is_loopback(host: str) -> bool:
    """Whether a host name means this machine."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def endpoint_of(spec: str) -> Endpoint:
    """Read `MODEL@http(s)://host/v1`; raises UserError for anything else, and for an address that holds a secret."""
    match = re.fullmatch(r"(.+)@(https?://\S+)", spec)
    form = "give MODEL@https://host/v1, such as gpt-4o-mini@https://api.openai.com/v1 or m@http://127.0.0.1:8080/v1"
    if not match:
        raise UserError(f'judge "{spec}": not an endpoint; {form}')
    try:
        parts = urlsplit(match[2])
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise UserError(f'judge "{spec}": the address can\'t be read; {form}') from None
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UserError(
            f"judge {match[1]}@{parts.scheme}://{host}: the address may hold no password and no query; put the key "
            f"into the environment variable {KEYS[0]}"
        )
    if not host:
        raise UserError(f'judge "{spec}": the address has no host; {form}')
    return Endpoint(match[1], match[2].rstrip("/"))


def key_for(endpoint: Endpoint) -> Secret:
    """Return the key from the environment; an empty one where none is set.

    OPENAI_API_KEY isn't sent over plain http to another machine; MONOSEM_API_KEY was set for this, and is. Raises
    UserError for a key that no header can hold.
    """
    for name in KEYS if endpoint.is_private else KEYS[:1]:
        value = os.environ.get(name, "").strip()
        if value and not re.fullmatch(r"[\x21-\x7e]+", value):
            raise UserError(f"{name}: holds blanks, line breaks or other characters that no key has; set it again")
        if value:
            return Secret(value)
    return Secret("")


def refused(endpoint: Endpoint, refusal: Refusal, has_key: bool) -> Fault | None:
    """Return the fault that a status means for every question, None if it may be this one's only."""
    status, where = refusal.status, endpoint.url
    said = f" ({refusal.message})" if refusal.message and status != 401 else ""
    if status in (401, 403):
        mend = f"check {' or '.join(KEYS)}" if has_key else f"set {KEYS[0]}, no key was sent"
        return Fault(f"{where}: the endpoint refused the key with status {status}{said}; {mend}", "endpoint")
    unknown = status == 400 and re.search(r"model.{0,80}(not found|not exist|unknown)", refusal.message)
    if status in (404, 410) or refusal.code == "model_not_found" or unknown:
        return Fault(
            f'{where}: no model "{endpoint.model}" there (status {status}{said and ","}{said}); check the name, and '
            "that the address ends as the endpoint wants it, mostly in /v1",
            "endpoint",
        )
    if 300 <= status < 400:
        return Fault(
            f"{where}: sends questions to another address (status {status}); give that one yourself", "endpoint"
        )
    if status == 405:
        return Fault(f"{where}: not an OpenAI-compatible endpoint (status 405); check the address", "endpoint")
    if status == 402 or refusal.code in ("insufficient_quota", "billing_not_active"):
        return Fault(f"{where}: the account has no credit left (status {status}){said}; top it up", "endpoint")
    return None


def unreachable(endpoint: Endpoint, error: BaseException) -> Fault:
    """Return the fault that a failed connection means."""
    chain = list(_causes(error))
    names = {type(one).__name__ for one in chain}
    host = urlsplit(endpoint.url).hostname
    if any(isinstance(one, socket.gaierror) for one in chain):
        return Fault(f"{endpoint.url}: no host {host} is known; check the address and the network", "absent")
    if any(isinstance(one, ssl.SSLError) for one in chain):
        return Fault(f"{endpoint.url}: no secure connection; check the certificate, or whether it is http", "absent")
    if any(isinstance(one, ConnectionRefusedError) for one in chain) or names & {"ConnectError", "ConnectTimeout"}:
        return Fault(f"{endpoint.url}: nothing answers there; check the address, and that the server runs", "absent")
    if names & {"UnsupportedProtocol", "InvalidURL", "LocalProtocolError"}:
        return Fault(f"{endpoint.url}: the address can't be used; check it", "absent")
    return Fault("the connection broke off", "broken", sent=True)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        yield from getattr(error, "exceptions", ())
        error = error.__cause__ or error.__context__
