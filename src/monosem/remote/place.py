"""A place in an object store, through fsspec. Whatever its library raises becomes one sentence."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from monosem.types import UserError


class Unreachable(UserError):
    """A store didn't do what it was asked for, now."""


@dataclass(frozen=True)
class Place:
    """What lies under a URL; names are relative to it."""

    url: str

    def connect(self) -> tuple[Any, str]:
        """Return fsspec's file system and the path of this place in it.

        Raises UserError when there is no such kind of store, or what reaches it isn't installed.
        """
        protocol = self.url.partition("://")[0]
        try:
            return _connected(self.url)
        except ImportError as error:
            extra = {"s3": "'monosem[s3]'", "gs": "'monosem[gs]'"}.get(protocol, f"the package for {protocol}")
            raise UserError(f"{self.url}: {error}; pip install {extra}") from error
        except ValueError as error:
            raise UserError(f"{self.url}: no such kind of store ({error}); s3:// and gs:// are among them") from error

    def listed(self, below: str) -> dict[str, tuple[int, str]]:
        """Return size and version of each file under a name."""
        with self._reached("read"):
            fs, root = self.connect()
            try:
                found = fs.find(f"{root}/{below}" if below else root, detail=True)
            except FileNotFoundError:
                found = {}
        names = {path.removeprefix(root).lstrip("/"): info for path, info in found.items()}
        return {  # keys that end in a slash only make a folder be seen
            name: (int(info.get("size") or 0), _version(info))
            for name, info in names.items()
            if name and not name.endswith("/") and info.get("type") != "directory"
        }

    def download(self, name: str, target: Path) -> None:
        """Write a file's content to `target`."""
        with self._reached("read"):
            fs, root = self.connect()
            fs.get_file(f"{root}/{name}", str(target))

    def upload(self, name: str, source: Path) -> str | None:
        """Store a file, and return its version; None when it has vanished meanwhile, as old checkpoints do."""
        with self._reached("written"):
            fs, root = self.connect()
            try:
                fs.put_file(str(source), f"{root}/{name}")
            except FileNotFoundError as error:
                if str(source) not in str(error):  # it isn't the source that is missing
                    raise
                return None
            return _version(fs.info(f"{root}/{name}"))

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with self._reached("written"), contextlib.suppress(FileNotFoundError):
            fs, root = self.connect()
            fs.rm_file(f"{root}/{name}")

    def read_json(self, name: str) -> dict[str, Any]:
        """Return the content of a JSON file, {} when there is none."""
        with self._reached("read"), contextlib.suppress(FileNotFoundError, ValueError):
            fs, root = self.connect()
            return json.loads(fs.cat_file(f"{root}/{name}"))
        return {}

    def write_json(self, name: str, value: dict[str, Any]) -> None:
        """Store a JSON file."""
        with self._reached("written"):
            fs, root = self.connect()
            fs.pipe_file(f"{root}/{name}", json.dumps(value).encode())

    @contextlib.contextmanager
    def _reached(self, how: str) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            reason = (str(error) or type(error).__name__).strip().splitlines()[0]
            raise Unreachable(
                f"{self.url}: can't be {how} ({reason}); see that the place exists and that this machine may use it "
                "(credentials, network). What was finished stays; the same command goes on"
            ) from error


@lru_cache
def _connected(url: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    return url_to_fs(url, use_listings_cache=False)  # which would make another one for each thread


def _version(info: dict[str, Any]) -> str:
    """Return what tells one version of a stored file from another."""
    keys = ("ETag", "etag", "md5Hash", "content_hash", "LastModified", "mtime", "created")
    return f"{info.get('size')} {next((info[key] for key in keys if info.get(key)), '')}"
