"""A language model behind two verbs: activations at a site, and a run with an edit at that site."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from monosem.sites import HOOKS, Site, find_blocks, hook_site, is_inside, path_of
from monosem.spread import Spread
from monosem.store import file_hash
from monosem.types import UserError

Edit = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Prefix:
    """What a run up to a site left behind: the hidden state entering block `resume`, and the site's activations.

    hidden: [rows, context, d_model] or None when resume is 0; activations: [rows, context, d_in]; in_tuples: whether
    this model's blocks return tuples.
    """

    tokens: Tensor
    hidden: Tensor | None
    activations: Tensor
    resume: int
    in_tuples: bool = False


class _Stop(Exception):
    """Ends a forward pass once the wanted activations are there."""


@dataclass
class Model:
    """A causal language model, its tokenizer and its blocks.

    identity: what the activations depend on, for the headers of result files.
    """

    lm: Any
    tokenizer: Any
    name: str
    identity: dict[str, Any]
    blocks: nn.ModuleList = field(init=False)

    def __post_init__(self) -> None:
        """Find the blocks."""
        self.blocks = find_blocks(self.lm)
        self.lm.eval().requires_grad_(False)

    @property
    def dtype(self) -> torch.dtype:
        """The arithmetic of the forward pass."""
        return next(self.lm.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the model lives; of one that is spread, where tokens go in and activations come out."""
        devices = (parameter.device for parameter in self.lm.parameters())
        return next((device for device in devices if device.type != "meta"), torch.device("cpu"))

    def site(self, name: str) -> Site:
        """Return the site called `name`: `blocks.{L}.<hook>` or a module path (its output).

        Raises UserError that lists what there is.
        """
        match = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
        if match and match[2] in HOOKS:
            layer = int(match[1])
            if layer >= len(self.blocks):
                raise UserError(f'site = "{name}": {self.name} has blocks 0 to {len(self.blocks) - 1}')
            return hook_site(name, self.blocks[layer], match[2], layer)
        modules = dict(self.lm.named_modules())
        if name in modules and name:
            layer = next((i for i, block in enumerate(self.blocks) if is_inside(block, modules[name])), None)
            if layer is not None:
                is_block = modules[name] is self.blocks[layer]
                return Site(name, modules[name], False, layer + 1 if is_block else layer, layer)
            return Site(name, modules[name], False, 0, len(self.blocks) - 1)
        raise UserError(
            f'site = "{name}": no such site in {self.name}; use blocks.0 to blocks.{len(self.blocks) - 1} with '
            f"{', '.join(HOOKS)} (for example blocks.{len(self.blocks) // 3}.hook_resid_post), or a module path "
            f"such as {path_of(self.lm, self.blocks[0])}"
        )

    def activations(self, tokens: Tensor, site: Site) -> Tensor:
        """Return the activations [rows, context, d_in] at a site; blocks after it do not run."""
        return self.prefix(tokens, site).activations

    @torch.no_grad()
    def prefix(self, tokens: Tensor, site: Site) -> Prefix:
        """Run `tokens [rows, context]` up to the site and keep what a later run with an edit can start from."""
        kept: dict[str, Tensor] = {}

        def keep_hidden(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            kept["hidden"] = _hidden_in(args, kwargs)

        def keep_site(value: Tensor) -> Tensor:
            kept["activations"] = value.to(self.device)
            raise _Stop

        def see_block(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
            tuples.append(isinstance(output, tuple))

        tuples: list[bool] = []
        with contextlib.ExitStack() as stack:
            stack.callback(self.blocks[0].register_forward_hook(see_block).remove)
            if 0 < site.resume < len(self.blocks):
                hook = self.blocks[site.resume].register_forward_pre_hook(keep_hidden, with_kwargs=True)
                stack.callback(hook.remove)
            stack.enter_context(_edited(site, keep_site))
            with contextlib.suppress(_Stop):
                self._forward(tokens.to(self.device))
        if "activations" not in kept:
            raise UserError(f'site = "{site.name}": the module does not run in a forward pass of {self.name}')
        after_block = site.module is self.blocks[site.stop] and not site.is_input
        hidden = kept["activations"] if after_block else kept.get("hidden")
        return Prefix(tokens, hidden, kept["activations"], site.resume, any(tuples))

    def run(
        self,
        tokens: Tensor,
        site: Site | None = None,
        edit: Edit | None = None,
        prefix: Prefix | None = None,
        rows: Tensor | None = None,
        more: Sequence[tuple[Site, Edit]] = (),
    ) -> Tensor:
        """Return the logits [rows, context, vocabulary], with `edit` applied at `site`.

        edit maps activations [rows, context, d_in] to their replacement; more: edits at other sites. prefix, from
        `prefix(tokens, site)`, saves re-running the blocks before the site. rows: bool [rows, context], the positions
        whose logits are wanted; the result is then [positions, vocabulary], and the others aren't computed.
        """
        with contextlib.ExitStack() as stack:
            if prefix is not None and prefix.hidden is not None:
                stack.enter_context(_skipped(self.blocks[: prefix.resume], prefix))
            if site is not None and edit is not None:
                stack.enter_context(_edited(site, edit))
            for other, its in more:
                stack.enter_context(_edited(other, its))
            if rows is not None:
                stack.enter_context(_only(self.lm.get_output_embeddings(), rows))
            logits = self._forward(tokens.to(self.device)).logits
        return logits if rows is None else logits[0]

    def _forward(self, tokens: Tensor) -> Any:
        return self.lm(input_ids=tokens, use_cache=False)


def load_model(
    name: str = "", *, dtype: str = "auto", device: str = "auto", revision: str = "", spread: Spread | None = None
) -> Model:
    """Load a Hugging Face causal LM (id or local folder), or the embedded model when `name` is empty.

    spread: instead of `device`, over several; arithmetic still is what `dtype` means on that.
    Raises UserError when there is no such model, or it can't be read.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    source = _source(name)
    where = resolve_device(device)
    kind = resolve_dtype(dtype, where)
    options: dict[str, Any] = {"revision": revision} if revision else {}
    spread = spread or Spread()
    places = spread.options()
    try:
        lm: Any = AutoModelForCausalLM.from_pretrained(source, dtype=kind, use_safetensors=True, **options, **places)
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().split("\n")[0]
        raise UserError(
            f'model.name = "{name}": can\'t be loaded ({first}); give a Hugging Face causal LM id, a local folder with '
            "config.json and safetensors weights, or leave it empty for the embedded model"
        ) from error
    identity = {"name": name or "embedded", "dtype": str(kind).removeprefix("torch."), **_fingerprint(source, lm)}
    if places:
        spread.check(lm)
    else:
        lm.to(where)
    return Model(lm, tokenizer, name or "SmolLM2-135M-Instruct (embedded)", identity)


def _source(name: str) -> str:
    if not name:
        from monosem.embedded import model_folder

        return str(model_folder())
    looks_local = name.startswith((".", "/", "~")) or Path(name).is_dir()
    if looks_local and not (Path(name).expanduser() / "config.json").is_file():
        raise UserError(f'model.name = "{name}": no such model folder (no config.json in it)')
    return str(Path(name).expanduser()) if looks_local else name


def model_identity(name: str, *, dtype: str = "auto", device: str = "auto", revision: str = "") -> dict[str, Any]:
    """Return the identity that `load_model` would give for a local or embedded model, without loading it.

    A hub id is identified by its id and revision.
    """
    kind = str(resolve_dtype(dtype, resolve_device(device))).removeprefix("torch.")
    if name and not Path(name).expanduser().is_dir():
        return {"name": name, "dtype": kind, "revision": revision}
    return {"name": name or "embedded", "dtype": kind, **_folder_fingerprint(Path(_source(name)))}


def _fingerprint(source: str, lm: Any) -> dict[str, Any]:
    if Path(source).is_dir():
        return _folder_fingerprint(Path(source))
    return {"commit": getattr(lm.config, "_commit_hash", None)}


def _folder_fingerprint(folder: Path) -> dict[str, Any]:
    """Return hashes of a model folder: by content up to 2 GiB, beyond that by names, sizes and times."""
    files = sorted((*folder.glob("*.safetensors"), *folder.glob("tokenizer*.json")))
    small = sum(file.stat().st_size for file in files) < 2 << 30
    listing = [[f.name, file_hash(f) if small else [f.stat().st_size, f.stat().st_mtime_ns]] for f in files]
    return {
        "config": file_hash(folder / "config.json"),
        "files": hashlib.sha256(json.dumps(listing).encode()).hexdigest(),
    }


def resolve_device(device: str) -> torch.device:
    """Return the device that `auto` (CUDA when there is one), `cpu` or `cuda[:n]` means here."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise UserError(f'model.device = "{device}": not a torch device; use "auto", "cpu" or "cuda"') from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f'model.device = "{device}": this machine (or this build of torch) has no CUDA; use "cpu"')
    return found


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Return the arithmetic that `auto` means: bfloat16 where the machine multiplies it natively, else float32."""
    if dtype != "auto":
        return getattr(torch, dtype)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported", "_is_arm_bf16_supported")
    native = any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)
    return torch.bfloat16 if native else torch.float32


def _hidden_in(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]


@contextlib.contextmanager
def _edited(site: Site, edit: Edit) -> Iterator[None]:
    """Apply `edit` to the site's activations in every forward pass inside the block; results stay on their device."""

    def edited(x: Tensor) -> Tensor:
        return edit(x).to(x.device)

    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (edited(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": edited(kwargs["hidden_states"])}

    def after(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        return (edited(output[0]), *output[1:]) if isinstance(output, tuple) else edited(output)

    if site.is_input:
        hook = site.module.register_forward_pre_hook(before, with_kwargs=True)
    else:
        hook = site.module.register_forward_hook(after)
    try:
        yield
    finally:
        hook.remove()


@contextlib.contextmanager
def _skipped(blocks: nn.ModuleList, prefix: Prefix) -> Iterator[None]:
    """Let `blocks` pass the prefix's hidden state on instead of computing it. Their hooks still run."""
    output = (prefix.hidden,) if prefix.in_tuples else prefix.hidden
    own = [vars(block).get("forward") for block in blocks]  # Accelerate's, which would fetch weights
    for block in blocks:
        object.__setattr__(block, "forward", lambda *_args, **_kwargs: output)
    try:
        yield
    finally:
        for block, forward in zip(blocks, own, strict=True):
            object.__delattr__(block, "forward")
            if forward is not None:
                object.__setattr__(block, "forward", forward)


@contextlib.contextmanager
def _only(unembedding: nn.Module, rows: Tensor) -> Iterator[None]:
    """Let the unembedding see only the positions `rows [rows, context]`, as one row [1, positions, d_model]."""

    def pick(_module: nn.Module, args: tuple[Any, ...]) -> Any:
        return (args[0][rows][None], *args[1:])

    hook = unembedding.register_forward_pre_hook(pick)
    try:
        yield
    finally:
        hook.remove()
