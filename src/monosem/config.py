"""A study file (TOML) -> dataclasses, with every key checked before any work starts."""

from __future__ import annotations

import itertools
import re
import tomllib
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from monosem.loading import LoadSpec, load_specs, run_label
from monosem.normaliser import Kind
from monosem.tracking import Kind as TrackerKind
from monosem.trainer import RunSpec
from monosem.types import UserError
from monosem.variants import Recipe, make_variant, variant_class

RECIPE_KEYS = tuple(f.name for f in fields(Recipe))


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelConfig(_Section):
    """`[model]`: which language model, and where its activations are read.

    name: Hugging Face id or local folder; empty for the embedded SmolLM2-135M-Instruct.
    site: hook name (`blocks.10.hook_resid_post`, see docs/sites.md) or a module path.
    dtype: arithmetic of the forward pass; `auto` is bfloat16 where the machine computes it natively.
    device_map, max_memory: for a model that doesn't fit on one device, Accelerate's way to spread it.
    context: tokens a row; batch_rows: rows a forward pass.
    """

    name: str = ""
    revision: str = ""
    site: str = "blocks.10.hook_resid_post"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"
    device_map: Literal["", "auto", "balanced", "balanced_low_0", "sequential"] = ""
    max_memory: dict[str, str] = Field(default_factory=dict)
    context: int = Field(default=128, ge=8)
    batch_rows: int = Field(default=8, ge=1)

    @field_validator("max_memory")
    @classmethod
    def _limits(cls, limits: dict[str, str], others: ValidationInfo) -> dict[str, str]:
        sizes = (re.fullmatch(r"\d+(\.\d+)?[KMG]i?B", size) for size in limits.values())
        if not all(sizes) or not all(re.fullmatch(r"cpu|\d+", device) for device in limits):
            wanted = 'Give each GPU\'s number or cpu a size, as { "0" = "20GiB", cpu = "60GB" }'
            raise PydanticCustomError("limits", wanted)
        if limits and not others.data.get("device_map", "unknown"):
            raise PydanticCustomError("limits", 'It needs model.device_map, as "auto"')
        return limits


class TextConfig(_Section):
    """`[text]`: the corpus and how many kept tokens each split gets. Splits are disjoint by document.

    source: empty for the embedded corpus; a file, folder or glob of .txt, .jsonl or .parquet; or a `datasets` name.
    max_document_tokens: longer documents are cut there, 0 for no cut.
    max_norm_ratio: activations longer than this many times the median norm (attention sinks) are left out; 0 keeps all.
    """

    source: str = ""
    text_key: str = "text"
    train_tokens: int = Field(default=1_000_000, ge=1)
    eval_tokens: int = Field(default=100_000, ge=1)
    max_document_tokens: int = Field(default=0, ge=0)
    max_norm_ratio: float = Field(default=0.0, ge=0)
    seed: int = 0


class TrainConfig(_Section):
    """`[train]`: what all runs share. Optimiser settings left out follow each variant's published recipe.

    tokens: training tokens a run, 0 for one pass over the stored activations; more than stored means several passes.
    shuffle_rows: capacity of the mixing buffer, 0 for max(2^19, 64 batches).
    dead_after: tokens without firing after which a feature counts as dead.
    normalise: scalar or per-token normaliser of the activations.
    track: where logs and held-out numbers are copied, `tensorboard` or `wandb`. Results don't depend on it.
    """

    d_sae: int = 16_384
    batch_size: int = Field(default=4096, ge=1)
    tokens: int = Field(default=0, ge=0)
    seeds: list[int] = Field(default=[0], min_length=1)
    normalise: Kind = "mean_norm"
    shuffle_rows: int = Field(default=0, ge=0)
    dead_after: int = Field(default=10_000_000, ge=1)
    log_every: int = Field(default=0, ge=0)
    checkpoint_seconds: float = Field(default=60.0, ge=0)
    track: TrackerKind = ""
    lr: float | None = Field(default=None, gt=0)
    beta1: float | None = Field(default=None, ge=0, lt=1)
    beta2: float | None = Field(default=None, ge=0, lt=1)
    eps: float | None = Field(default=None, gt=0)
    lr_warmup: int | None = Field(default=None, ge=0)
    lr_decay: float | None = Field(default=None, ge=0, le=1)
    clip: float | None = Field(default=None, ge=0)


class ComputeConfig(_Section):
    """`[compute]`: how the work is done. Beyond rounding, results don't depend on it.

    threads: 0 for as many as there are cores; chunk: tokens that an encoder looks at together.
    first_look: precision in which an encoder finds candidates; what is kept is computed in float32 in any case.
    reference: use the slow, readable references instead of the kernels (`--reference`).
    data_parallel, feature_parallel: over how many processes the tokens of a batch, and the features of an SAE, are
        split in training; what remains of the processes that were launched (`--nproc`, torchrun) trains other runs.
    """

    threads: int = Field(default=0, ge=0, le=1024)
    chunk: int = Field(default=256, ge=1)
    first_look: Literal["auto", "int8", "float32"] = "auto"
    reference: bool = False
    data_parallel: int = Field(default=1, ge=1)
    feature_parallel: int = Field(default=1, ge=1)


class MeasureConfig(_Section):
    """`[measure]`: held-out measurement.

    ce_tokens: held-out tokens on which the model is re-run with each SAE spliced in, 0 for all.
    bootstrap: document resamples behind each interval.
    codes: write where each feature fires (`codes/`): about 5 bytes a firing, tokens times L0 of them a run.
    """

    ce_tokens: int = Field(default=0, ge=0)
    bootstrap: int = Field(default=1000, ge=100)
    codes: bool = True
    batch_size: int = Field(default=2048, ge=1)


class StudyFile(_Section):
    """A whole study as read from TOML; `run` entries are checked by `Study`."""

    name: str = "study"
    description: str = ""
    model: ModelConfig = ModelConfig()
    text: TextConfig = TextConfig()
    train: TrainConfig = TrainConfig()
    measure: MeasureConfig = MeasureConfig()
    compute: ComputeConfig = ComputeConfig()
    run: list[dict[str, Any]] = Field(min_length=1)


@dataclass(frozen=True)
class Study:
    """A checked study: the sections, the runs that its `[[run]]` families fan out to, and those to be loaded."""

    file: StudyFile
    runs: list[RunSpec]
    loads: list[LoadSpec] = field(default_factory=list)

    def toml(self) -> str:
        """Return the resolved study as TOML."""
        return tomli_w.dumps(_without_none(self.file.model_dump()))


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_without_none(v) for v in value]
    return value


def load_study(path: Path, overrides: list[str] | None = None) -> Study:
    """Read and check a study file; `overrides` are `section.key=value` strings as given to `--set`.

    Raises UserError naming the file and the key for anything that is wrong.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UserError(f"{path}: no such study file; `monosem list studies` names those that come along") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid TOML: {error}") from error
    data.setdefault("name", path.stem if path.stem != "study" else path.parent.name)
    for text in overrides or []:
        _override(data, text)
    return make_study(data, where=str(path))


def make_study(data: dict[str, Any], where: str = "study") -> Study:
    """Check a study given as nested dicts (the content of the TOML file). Raises UserError."""
    try:
        file = StudyFile.model_validate(data)
    except ValidationError as error:
        raise UserError(f"{where}: {_sentence(error)}") from error
    if not re.fullmatch(r"[\w.-]+", file.name):
        raise UserError(f'{where}: name = "{file.name}": use letters, digits, ".", "_" and "-" only')
    runs: list[RunSpec] = []
    loads: list[LoadSpec] = []
    for index, family in enumerate(file.run):
        try:
            if "load" in family:
                loads += load_specs(family)
            else:
                runs += _fan_out(family, file.train)
        except UserError as error:
            raise UserError(f"{where}: [[run]] number {index + 1}: {error}") from error
    names = [run.name for run in (*runs, *loads)]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f'{where}: two runs are called "{name}"; give one [[run]] another name')
    return Study(file, runs, loads)


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        section: Any = StudyFile
        for part in first["loc"][:-1]:
            section = section.model_fields[part].annotation
        return f"{where}: unknown key; known are {', '.join(section.model_fields)}"
    if first["type"] == "missing":
        return f"{where}: missing; add it to the study file"
    return f"{where} = {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}"


def parse_setting(text: str, example: str) -> tuple[str, Any]:
    """Return key and value of a `key=value` text as given to `--set`; the value is read as TOML, else as it stands.

    Raises UserError, showing `example`, when there is no key or no equals sign.
    """
    key, equals, raw = text.partition("=")
    if not equals or not key.strip():
        raise UserError(f'--set "{text}": write {example}')
    try:
        return key.strip(), tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), raw


def _override(data: dict[str, Any], text: str) -> None:
    key, value = parse_setting(text, "section.key=value, for example --set train.d_sae=1024")
    target: Any = data
    *path, last = key.split(".")
    for part in path:
        target = _child(target, part, text)
    if isinstance(target, list):
        raise UserError(f'--set "{text}": name one of the {len(target)} runs by number, for example run.0.{last}')
    target[last] = value


def _child(target: Any, part: str, text: str) -> Any:
    if isinstance(target, list):
        if not part.isdigit() or int(part) >= len(target):
            raise UserError(f'--set "{text}": there is no run number "{part}" (0 to {len(target) - 1})')
        return target[int(part)]
    child = target.setdefault(part, {})
    if not isinstance(child, dict | list):
        raise UserError(f'--set "{text}": "{part}" is a value, not a section')
    return child


def _fan_out(family: dict[str, Any], train: TrainConfig) -> list[RunSpec]:
    """Return the runs of one `[[run]]` table: list values multiply out, seeds included."""
    settings = dict(family)
    variant_name = settings.pop("variant", None)
    if not isinstance(variant_name, str):
        raise UserError(
            'variant: missing; write for example variant = "topk", or load = "folder" for an SAE that exists'
        )
    label = run_label(settings.pop("name", variant_name))
    known = [f.name for f in fields(variant_class(variant_name))]
    shared = ("d_sae", "seeds", *RECIPE_KEYS)
    for key in settings:
        if key not in known and key not in shared:
            hint = "; it is equal for all runs, set it in [train]" if key in TrainConfig.model_fields else ""
            raise UserError(
                f'{key}: unknown key for variant "{variant_name}"{hint}; known are {", ".join((*known, *shared))}'
            )
    seeds = settings.pop("seeds", train.seeds)
    seeds = seeds if isinstance(seeds, list) else [seeds]
    lists = {k: v if isinstance(v, list) else [v] for k, v in settings.items()}
    for key, values in lists.items():
        if not values:
            raise UserError(f"{key} = []: give at least one value")
    combinations = [dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())]
    return [_run(variant_name, label, c, seed, train, len(seeds) > 1) for c in combinations for seed in seeds]


def _run(
    variant_name: str, label: str, settings: dict[str, Any], seed: Any, train: TrainConfig, show_seed: bool
) -> RunSpec:
    known = {f.name for f in fields(variant_class(variant_name))}
    shared = {key: settings[key] for key in ("d_sae", *RECIPE_KEYS) if key in settings}
    try:
        merged = TrainConfig.model_validate({**train.model_dump(), **shared, "seeds": [seed]})
    except ValidationError as error:
        raise UserError(_sentence(error)) from error
    variant = make_variant(variant_name, {k: v for k, v in settings.items() if k in known})
    variant.check(1, merged.d_sae)
    preset = asdict(variant.recipe(merged.d_sae))
    recipe = Recipe(**{key: preset[key] if (v := getattr(merged, key)) is None else v for key in RECIPE_KEYS})
    words = [label, *(_word(k, v) for k, v in settings.items())]
    if show_seed:
        words.append(f"seed{merged.seeds[0]}")
    return RunSpec("-".join(words), variant_name, variant, merged.d_sae, merged.seeds[0], recipe)


def _word(key: str, value: Any) -> str:
    short = {"l1_coefficient": "l1_", "tanh_scale": "scale_"}.get(key, key if len(key) == 1 else f"{key}_")
    return re.sub(r"[^\w.]", "", f"{short}{value:g}" if isinstance(value, float) else f"{short}{value}")
