"""How many processes a cluster has room for, and what each of them gets."""

from __future__ import annotations

from dataclasses import dataclass

from monosem.types import UserError


@dataclass(frozen=True)
class Slots:
    """Room for processes of one kind on a cluster: how many at a time, what each gets."""

    count: int
    cpus: int
    gpus: int = 0


def slots(nodes: list[dict[str, float]], wanted: int = 0, *, gpu: bool = False) -> Slots:
    """Return how many processes to start on nodes with these resources, and what each gets.

    wanted: how many; 0 for one on each GPU, or one on each node where there is none. Without GPUs, each process gets
    as many cores as leave room for all. Raises UserError when the cluster has no room for so many.
    """
    if gpu:
        gpus = [node for node in nodes if node.get("GPU", 0) >= 1]
        room = sum(int(node["GPU"]) for node in gpus)
        cores = min((int(node.get("CPU", 0) // node["GPU"]) for node in gpus), default=0)
    else:
        cpus = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1]
        room, cores = sum(cpus), min(cpus, default=0)
        if wanted:
            cores = max(
                (c for c in range(1, max(cpus, default=0) + 1) if sum(n // c for n in cpus) >= wanted), default=0
            )
        else:
            wanted = len(cpus)
    if not room or wanted > room:
        what = "GPUs" if gpu else "cores"
        if not room:
            raise UserError(f"the Ray cluster has no {what} that are up; see `ray status`")
        raise UserError(f"--nproc {wanted}: the Ray cluster has {room} {what}; start fewer processes or add nodes")
    return Slots(wanted or room, cores, int(gpu))
