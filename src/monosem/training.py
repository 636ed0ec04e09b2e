"""The train stage: the runs that lack an SAE are trained in lockstep, those trained elsewhere are loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from monosem.activations import Activations, open_activations
from monosem.config import Study
from monosem.loading import LoadSpec, Where, load_key, load_run
from monosem.model import resolve_device
from monosem.remote import fetch, fetch_as_helper, keep
from monosem.store import read_json, value_hash
from monosem.tracking import tracking
from monosem.train import TRAIN_VERSION, prepare, train
from monosem.trainer import Plan, RunSpec, Trainer
from monosem.types import UserError
from monosem.work import Work


def plan_of(study: Study, meta: dict[str, Any]) -> tuple[Plan, list[RunSpec]]:
    """Return the training plan and one spec a run; a run's key covers everything that its weights depend on.

    meta: content of activations/meta.json. Raises UserError when there are fewer tokens than one batch.
    """
    file, t = study.file, study.file.train
    tokens = t.tokens or meta["splits"]["train"]["tokens"]
    steps = tokens // t.batch_size
    if steps < 1:
        raise UserError(f"train.tokens = {tokens} makes no batch of train.batch_size = {t.batch_size}; lower that")
    facts = {
        "site": file.model.site,
        "model": _model_name(study),
        "context": file.model.context,
        "activations": meta["hash"],
    }
    plan = Plan(
        t.batch_size,
        steps,
        t.normalise,
        t.shuffle_rows,
        file.text.seed,
        t.dead_after,
        t.log_every,
        t.checkpoint_seconds,
        facts,
    )
    shared = {k: v for k, v in asdict(plan).items() if k not in ("log_every", "checkpoint_seconds")}
    if file.compute.reference:
        shared["reference"] = True
    keys = [value_hash({"version": TRAIN_VERSION, "plan": shared, "run": asdict(run)}) for run in study.runs]
    return plan, [replace(run, key=key) for run, key in zip(study.runs, keys, strict=True)]


def _model_name(study: Study) -> str:
    return study.file.model.name or "SmolLM2-135M-Instruct"


def load_runs(work: Work, meta: dict[str, Any]) -> str | None:
    """Read the SAEs that the study loads, where they changed; return what was done, in words."""
    loads = work.study.loads
    if not loads:
        return None
    t = work.study.file.train
    where = Where(_model_name(work.study), meta["site"], meta["d_in"], meta["hash"], t.normalise)
    keys = {spec.name: _load_key(work, spec, where) for spec in loads}
    todo = [spec for spec in loads if not _has_key(work.sae_folder(spec.name), keys[spec.name])]
    if not todo:
        return None
    plan = Plan(t.batch_size, 1, t.normalise, shuffle_seed=work.study.file.text.seed)
    normaliser = prepare(open_activations(work.activations, "train"), plan).normaliser
    for spec in todo:
        for warning in load_run(spec, where, normaliser, keys[spec.name], work.sae_folder(spec.name)):
            work.say(f"warning: {warning}")
    return f"{len(todo)} SAEs loaded"


def _load_key(work: Work, spec: LoadSpec, where: Where) -> str:
    """Return the key of a run to be loaded; where its files are gone, that of the copy that was made of them."""
    try:
        return load_key(spec, where)
    except UserError as error:
        cfg = work.sae_folder(spec.name) / "cfg.json"
        ours = read_json(cfg)["monosem"] if cfg.exists() else {}
        if ours.get("loaded", {}).get("source") != spec.source:
            raise UserError(f"run {spec.name}: {error}") from error
        work.say(f"warning: {error}; run {spec.name} stays as it was loaded before")
        return ours["train_key"]


Together = Callable[[Work, list[str]], int]


def train_runs(work: Work, meta: dict[str, Any], together: Together | None = None) -> str | None:
    """Train the study's runs that are missing or out of date; return what was done, in words, None for nothing.

    together: trains runs of these names in processes elsewhere, and returns how many there were; by default they are
    trained here, in the processes that were launched with this one.
    """
    if not work.study.runs:
        return None
    plan, specs = plan_of(work.study, meta)
    todo = [spec for spec in specs if not _trained(work.sae_folder(spec.name), spec.key)]
    if not todo:
        return None
    for spec in todo:
        spec.variant.check(meta["d_in"], spec.d_sae)
    if together is None:
        _fetch_checkpoints(work, todo)
    began = any((work.sae_folder(spec.name) / "checkpoint").is_dir() for spec in todo)
    keep(work.folder)
    processes = (together or _train_here)(work, [spec.name for spec in todo])
    fetch(work.folder)
    tokens = meta["splits"]["train"]["tokens"]
    kept = len(specs) - len(todo)
    return ("resumed, " if began else "") + (
        f"{len(todo)} runs, {plan.steps:,} steps of {plan.batch_size:,} tokens, "
        f"{plan.steps * plan.batch_size / tokens:.2f} passes"
        + (f"; {kept} runs reused" if kept else "")
        + (f"; {processes} processes" if processes > 1 else "")
    )


def _train_here(work: Work, names: list[str]) -> int:
    work.world.announce(names)
    join_training(work, names)
    return work.world.size


def join_training(work: Work, names: list[str]) -> None:
    """Take part, as one of several processes that all call this, in training the runs with these names.

    Ends when all of them are trained. Raises the UserError of any of the processes in all.
    """
    if not names:
        return
    file, world = work.study.file, work.world

    def begun() -> tuple[Plan, list[RunSpec], Activations, torch.device]:
        fetch_as_helper(work.folder)
        plan, specs = plan_of(work.study, read_json(work.activations / "meta.json"))
        todo = [spec for spec in specs if spec.name in names]
        _fetch_checkpoints(work, todo)
        return plan, todo, open_activations(work.activations, "train"), resolve_device(file.model.device)

    plan, todo, store, device = world.everyone.agreed(begun)
    mesh, group, groups = world.meshes(file.compute.data_parallel, file.compute.feature_parallel, device.type)
    with (
        work.ticker.bar("train", plan.steps * plan.batch_size, "tokens") as bar,
        tracking(file.train.track if world.rank == 0 else "", file.name, work.folder, work.say) as follow,
    ):

        def report(step: int, trainers: list[Trainer]) -> None:
            bar.to((step + 1) * plan.batch_size)
            bar.table({t.spec.name: t.latest for t in trainers if t.latest})
            follow(trainers)

        def trained() -> None:
            if mine := todo[group::groups]:
                train(mine, plan, store, work.folder / "saes", device=device, mesh=mesh, report=report)

        threads = torch.get_num_threads()
        if world.size > 1 and not file.compute.threads:
            torch.set_num_threads(min(threads, world.threads_each()))
        try:
            world.everyone.agreed(trained)
        finally:
            torch.set_num_threads(threads)


def _fetch_checkpoints(work: Work, specs: list[RunSpec]) -> None:
    for spec in specs:
        fetch(work.sae_folder(spec.name) / "checkpoint")


def _trained(folder: Path, key: str) -> bool:
    return (folder / "log.parquet").exists() and _has_key(folder, key)


def _has_key(folder: Path, key: str) -> bool:
    if not (folder / "cfg.json").exists():
        return False
    return read_json(folder / "cfg.json").get("monosem", {}).get("train_key") == key
