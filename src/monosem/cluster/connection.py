"""The connection of this process to a Ray cluster."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
from collections.abc import Iterator
from typing import Any

import ray
import ray.data
from ray.exceptions import RayError, RayTaskError

from monosem.types import UserError


@contextlib.contextmanager
def connected(address: str = "") -> Iterator[None]:
    """Connect to a Ray cluster for as long as the context lasts; a process of a cluster is connected already.

    address: `ray://HOST:PORT` of a Ray Client server, or HOST:PORT of a head node, or empty for what RAY_ADDRESS names
    (`auto`: the cluster of this machine); without it Ray is started here. Raises UserError when there is no cluster.
    """
    if ray.is_initialized():
        with _losses_named():
            yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    address = address or os.environ.get("RAY_ADDRESS", "")
    if address.startswith("ray://") and not re.fullmatch(r"ray://.+:\d+", address):
        raise UserError(f'--engine "{address}": write ray://HOST:PORT, of a head node\'s Ray Client server')
    try:
        if ":" in address:  # Ray itself would try for minutes
            host, _, port = address.removeprefix("ray://").rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        ray.init(address or "local", **quiet)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"--engine ray: no Ray cluster at {address or 'this machine'} ({reason}); see `ray status`"
        ) from error
    for name in ("ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        with _losses_named():
            yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _losses_named() -> Iterator[None]:
    """Turn what Ray raises when processes and nodes are lost for good into one sentence."""
    try:
        yield
    except RayTaskError:
        raise  # a mistake of ours, with its traceback
    except RayError as error:
        reason = str(error).strip().rpartition("\n")[2]
        raise UserError(f"--engine ray: {reason}; what was finished is kept, and the same command goes on") from error
