"""Addresses: of the pages of a server, or of files beside each other."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from urllib.parse import quote

from starlette.convertors import Convertor, register_url_convertor


class Number(Convertor[int]):
    """A whole number below 10^9 in a route, `{feature:number}`; with any number of digits an address is not found."""

    regex = "[0-9]{1,9}"

    def convert(self, value: str) -> int:
        """Return the number."""
        return int(value)

    def to_string(self, value: int) -> str:
        """Return its digits."""
        return str(value)


register_url_convertor("number", Number())


@dataclass(frozen=True)
class Links:
    """Where pages lie. root: what leads to the home page; query: what feature pages carry along (order and filters)."""

    root: str = "/"
    query: str = ""
    live = True

    def home(self) -> str:
        """Return the address of the home page."""
        return self.root

    def asset(self, name: str) -> str:
        """Return the address of a style or script."""
        return f"{self.root}assets/{name}"

    def run(self, run: str, query: str | None = None) -> str:
        """Return the address of a run's table."""
        asked = self.query if query is None else query
        return f"{self.root}run/{quote(run)}" + (f"?{asked}" if asked else "")

    def feature(self, run: str, feature: int, query: str | None = "") -> str | None:
        """Return the address of a feature's page; query: None to carry on what this page was asked."""
        asked = self.query if query is None else query
        return f"{self.root}run/{quote(run)}/feature/{feature}" + (f"?{asked}" if asked else "")


@dataclass(frozen=True)
class FileLinks(Links):
    """Links between files. pages: the (run, feature) that have a page; others have no link."""

    pages: Container[tuple[str, int]] = ()
    live = False

    def home(self) -> str:
        """Return the address of the home page."""
        return f"{self.root}index.html"

    def run(self, run: str, query: str | None = None) -> str:
        """Return the address of a run's table."""
        return f"{self.root}{quote(run)}/index.html"

    def feature(self, run: str, feature: int, query: str | None = "") -> str | None:
        """Return the address of a feature's page, None where it has none."""
        return f"{self.root}{quote(run)}/{feature}.html" if (run, feature) in self.pages else None
