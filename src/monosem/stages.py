"""The stages of a study, in order: harvest -> train -> measure -> report.

Each reads files of the stage before and writes files for the next. A stage whose inputs have not changed (its header
on disk equals the one it would write) is reused; one that was cut short goes on where it stopped.
"""

from __future__ import annotations

import fnmatch
import importlib
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from monosem.catalogue import find_study
from monosem.config import Study, load_study, make_study, parse_setting
from monosem.engine import Engine, kernels_of
from monosem.environment import describe
from monosem.evals import evaluation_names, make_evaluation
from monosem.evaluate import incomplete, last_settings, load_results
from monosem.harvest import HARVEST_VERSION, harvest
from monosem.measuring import measure_inputs
from monosem.model import model_identity
from monosem.processes import joined
from monosem.progress import Ticker
from monosem.remote import address, fetch, held, local
from monosem.report import render
from monosem.sources import documents, text_identity
from monosem.store import read_json, write_json, write_text
from monosem.summary import build_summary
from monosem.text import pack
from monosem.tracking import check_tracker, publish
from monosem.training import join_training, load_runs
from monosem.types import UserError
from monosem.work import Work

STAGES = ("harvest", "train", "measure", "report")
EVALS = ("frontier", "density", "logits", "dense", "training")


def compare(
    study: Study | dict[str, Any] | str | Path,
    out: str | Path | None = None,
    *,
    only: str | None = None,
    say: Callable[[str], object] = lambda _line: None,
    ticker: Ticker | None = None,
    engine: str = "local",
    processes: int = 0,
) -> Path:
    """Run the stages of a study (or `only` one of STAGES) and return the report's path.

    study: a Study, the content of a study file as a dict, or as on the command line: a study file, a study folder, the
    name of a study that comes along. out: the study folder, also `s3://` or the like (remote.py), by default
    runs/<study name>. say: called with one line a
    stage; ticker: opens progress bars. Processes that were launched together (torchrun) train together.
    engine: `local`, or `ray` or an address of a Ray cluster; processes: how many train there, 0 for as many as there
    is room for.
    Raises UserError for anything that the user can mend; finished work stays.
    """
    found: Path | None = None
    if isinstance(study, str | Path):
        path, found = find_study(str(study))
        study = load_study(path)
    elif isinstance(study, dict):
        study = make_study(study)
    folder = local(out) if out else found or Path("runs") / study.file.name
    engine = _addressed(engine)
    if only not in ("harvest", "report"):
        check_tracker(study.file.train.track)
    if engine.startswith("ray://"):
        job = partial(compare, study, address(folder), only=only, engine="ray", processes=processes)
        _cluster(engine).led(engine, job, say, ticker or Ticker())
        fetch(folder)
        return folder / "report.html"
    with joined() as world, kernels_of(study):
        if world.rank > 0:
            join_training(Work(study, folder, world=world), world.announced())
        else:
            work = Work(study, folder, say, ticker or Ticker(), world=world)
            with opened(engine, processes) as does:
                _run_stages(work, (only,) if only else STAGES, does)
    return folder / "report.html"


@contextmanager
def opened(engine: str, processes: int = 0) -> Iterator[Engine]:
    """Open an engine by its name, `local` or `ray`.

    Raises UserError for another name, when Ray isn't installed, or when there is no such cluster.
    """
    if engine == "local":
        yield Engine()
    elif engine == "ray":
        cluster = _cluster(engine)
        with cluster.connected():
            yield cluster.RayEngine(processes)
    else:
        raise UserError(f'--engine "{engine}": there is local, ray, or ray://HOST:PORT')


def _addressed(engine: str) -> str:
    """Return an engine by its address, also where RAY_ADDRESS has that of a cluster this machine is no part of."""
    elsewhere = os.environ.get("RAY_ADDRESS", "")
    return elsewhere if engine == "ray" and elsewhere.startswith("ray://") else engine


def _cluster(engine: str) -> Any:
    if engine == "ray" and not {"RAY_ADDRESS", "RAY_AUTH_MODE"} & set(os.environ) and "ray" not in sys.modules:
        # Ray will be started here, and its servers listen on all interfaces. It reads this when it is imported.
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    try:
        return importlib.import_module("monosem.cluster")
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("ray"):
            raise
        raise UserError("--engine ray: needs Ray; install it with pip install 'monosem[ray]'") from error


def _run_stages(work: Work, names: tuple[str, ...], engine: Engine) -> None:
    folder, study = work.folder, work.study
    with held(folder, work.say):
        work.stages = read_json(folder / "stages.json") if (folder / "stages.json").exists() else {}
        if not (folder / "study.toml").exists():  # an earlier one stays until a stage has succeeded with this study
            write_text(folder / "study.toml", study.toml())
        if "train" in names and not (work.activations / "meta.json").exists():
            engine.check(work)
        for name in names:
            _run_stage(work, name, engine)


def _run_stage(work: Work, name: str, engine: Engine) -> None:
    began = time.perf_counter()
    note = _STAGE[name](work, engine)
    seconds = time.perf_counter() - began
    known = work.stages.get(name, {})
    if note is None:
        work.stages[name] = {**known, "status": "reused"}
        work.say(f"{name}: reused, its inputs have not changed")
    else:
        work.stages[name] = {"seconds": seconds, "status": "resumed" if note.startswith("resumed") else "done"}
        write_json(work.folder / "environment.json", describe())  # of the work that was done last, not of a reuse
        work.say(f"{name}: done in {seconds:.1f} s ({note})")
    write_text(work.folder / "study.toml", work.study.toml())
    write_json(work.folder / "stages.json", work.stages)


def run_evaluation(
    study: Study,
    folder: str | Path,
    name: str,
    runs: str = "*",
    settings: list[str] | None = None,
    *,
    dry_run: bool = False,
    ticker: Ticker | None = None,
    engine: str = "local",
) -> list[str]:
    """Run the evaluation `name` (or `all`) over the runs whose name matches `runs`; return what to say, in lines.

    Without settings those hold with which an evaluation was last run. dry_run: only say what it would cost. engine: as
    for `compare`.

    Raises UserError for an unknown evaluation or setting, or when no run matches.
    """
    engine = _addressed(engine)
    if engine.startswith("ray://") and not dry_run:
        job = partial(_evaluated_by_lead, study, address(local(folder)), name, runs, settings)
        return _cluster(engine).led(engine, job, print, ticker or Ticker())
    values = dict(parse_setting(text, "key=value") for text in settings or [])
    with held(folder) as folder, opened("local" if dry_run else engine) as does:
        work = Work(study, folder, ticker=ticker or Ticker())
        infos = work.infos()
        wanted = [info for info in infos if fnmatch.fnmatch(info.name, runs)]
        if not wanted:
            known = ", ".join(info.name for info in infos)
            raise UserError(f'--runs "{runs}": no run of this study matches; runs are {known}')
        inputs = work.inputs(infos)
        shared = measure_inputs(study, read_json(work.activations / "meta.json"))
        lines = []
        for one in evaluation_names() if name == "all" else [name]:
            evaluation = make_evaluation(one, values)
            if not values:
                evaluation = make_evaluation(one, last_settings(evaluation, one, inputs))
            if dry_run:
                return evaluation.estimate(replace(inputs, runs=wanted))
            done = does.judge(work, evaluation, one, inputs, shared, [info.name for info in wanted])
            lines += [f"{run}: incomplete, {why}; repeat this to go on" for run, why in incomplete(inputs, one).items()]
            lines.append(
                f"{one}: {done} runs judged, {len(wanted) - done} reused, {folder / 'results'}/<run>/{one}/result.json"
            )
    return lines


def _evaluated_by_lead(*arguments: Any, say: Callable[[str], object], ticker: Ticker) -> list[str]:
    return run_evaluation(*arguments, ticker=ticker, engine="ray")


def harvest_header(study: Study) -> dict[str, Any]:
    """Return what a study's activations depend on."""
    m = study.file.model
    return {
        "version": HARVEST_VERSION,
        "model": model_identity(m.name, dtype=m.dtype, device=m.device, revision=m.revision),
        "site": m.site,
        "context": m.context,
        "batch_rows": m.batch_rows,
        "text": {**study.file.text.model_dump(), "files": text_identity(study.file.text.source)},
    }


def _harvest(work: Work, engine: Engine) -> str | None:
    header = harvest_header(work.study)
    meta_path = work.activations / "meta.json"
    if meta_path.exists() and read_json(meta_path)["header"] == header:
        return None
    file = work.study.file
    model = work.get_model()
    site = model.site(file.model.site)
    t = file.text
    with work.ticker.bar("tokenise", t.train_tokens + t.eval_tokens, "tokens") as bar:
        packed = pack(
            documents(t.source, t.text_key, t.seed),
            model.tokenizer,
            context=file.model.context,
            train_tokens=t.train_tokens,
            eval_tokens=t.eval_tokens,
            max_document_tokens=t.max_document_tokens,
            progress=lambda kept, _wanted: bar.to(kept),
        )
    total = packed.eval.tokens.size + packed.train.tokens.size
    partial = work.activations / "partial.json"
    resumed = partial.exists() and read_json(partial).get("header") == header
    if resumed:
        fetch(work.activations)
    with work.ticker.bar("harvest", total, "tokens") as bar:
        meta = harvest(
            model,
            site,
            packed,
            work.activations,
            header,
            batch_rows=file.model.batch_rows,
            max_norm_ratio=t.max_norm_ratio,
            progress=bar.add,
            make=engine.shards(work),
        )
    train_split, eval_split = meta["splits"]["train"], meta["splits"]["eval"]
    return ("resumed, " if resumed else "") + (
        f"{train_split['tokens']:,} training and {eval_split['tokens']:,} held-out tokens of {eval_split['documents']} "
        f"documents at {site.name}, {str(model.dtype).removeprefix('torch.')}"
    )


def _harvested(work: Work) -> dict[str, Any]:
    """Return meta.json's content. Raises UserError when it is missing or was made with other settings."""
    meta, header = read_json(work.activations / "meta.json"), harvest_header(work.study)
    if meta["header"] != header:
        differing = ", ".join(key for key in header if meta["header"].get(key) != header[key])
        raise UserError(
            f"{work.activations}: harvested with other settings ({differing} differ from the study); "
            f"run `monosem harvest {work.folder}` with the same settings first"
        )
    return meta


def _train(work: Work, engine: Engine) -> str | None:
    meta = _harvested(work)
    notes = [note for note in (engine.train(work, meta), load_runs(work, meta)) if note]
    return "; ".join(notes) or None


def _measure(work: Work, engine: Engine) -> str | None:
    meta = _harvested(work)
    infos = work.infos()
    shared = measure_inputs(work.study, meta)
    todo = engine.measure(work, infos, shared)
    file = work.study.file
    inputs = replace(work.inputs(infos), ticker=Ticker())
    judged = 0
    for name in EVALS:
        evaluation = make_evaluation(name)
        if "codes" not in evaluation.needs or file.measure.codes:
            evaluation = make_evaluation(name, last_settings(evaluation, name, inputs))
            judged += engine.judge(work, evaluation, name, inputs, shared)
    if file.train.track:
        results = [*load_results(inputs, "frontier"), *load_results(inputs, "density")]
        publish(file.train.track, file.name, work.folder, results, work.say)
    if not todo and not judged:
        return None
    return f"{todo} runs on {meta['splits']['eval']['tokens']:,} held-out tokens"


def _report(work: Work, _engine: Engine) -> str | None:
    summary_path = work.folder / "summary.json"
    infos = work.infos()
    summary = build_summary(work.study, work.folder, infos, work.stages)
    if summary_path.exists() and (work.folder / "report.html").exists():
        before = read_json(summary_path)
        if before.get("inputs") == summary["inputs"]:
            return None
    write_json(summary_path, summary)
    render(work.folder)
    return f"{work.folder / 'report.html'}"


_STAGE: dict[str, Callable[[Work, Engine], str | None]] = {
    "harvest": _harvest,
    "train": _train,
    "measure": _measure,
    "report": _report,
}
