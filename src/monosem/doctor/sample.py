"""Activations of a language model on sample text, at a site and at the sites beside it, read in one pass."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from monosem.harvest import first_not_finite, within_norm
from monosem.heldout import document_groups
from monosem.model import Edit, Model
from monosem.sites import HOOKS, Site
from monosem.text import Rows, documents, pack
from monosem.types import UserError

DOCUMENT_TOKENS = 256  # short documents: many of them, for the bootstrap
OUTLIER = 10.0  # times the median norm: attention sinks in the middle of a text
BATCH_ROWS = 8
CHUNK = 2048  # tokens at once through an SAE


@dataclass(frozen=True)
class Sample:
    """Activations of the same tokens at several sites.

    x: site -> [n, d], in the arithmetic of the forward pass; the site that was asked for is the first. group: document
    group of each token [n], of `groups`; text: bool [n], False at position 0 of rows, at special tokens and at
    outliers; context: tokens a row.
    """

    x: dict[str, Tensor]
    group: Tensor
    groups: int
    text: Tensor
    context: int

    def thin(self, tokens: int) -> Sample:
        """Return about `tokens` tokens: whole rows, evenly spaced, so that nearly all documents stay."""
        step = max(1, len(self.group) // tokens)
        rows = torch.arange(0, len(self.group) // self.context, step)
        at = (rows[:, None] * self.context + torch.arange(self.context)).flatten()
        return replace(self, x={k: v[at] for k, v in self.x.items()}, group=self.group[at], text=self.text[at])

    def at(self, site: str, special: bool) -> tuple[Tensor, Tensor]:
        """Return activations [n, d_in] (float32) and groups [n] at a site, of text alone or with special positions."""
        keep = slice(None) if special else self.text
        return self.x[site][keep].float(), self.group[keep]


class _Enough(Exception):
    """Ends a forward pass once every site has been read."""


def take_sample(
    model: Model,
    site: str,
    *,
    d_in: int,
    source: str = "",
    context: int = 128,
    tokens: int = 20_000,
) -> Sample:
    """Run the model over packed text and return activations at `site` and at the sites beside it of width `d_in`.

    tokens: of text, at least. Raises UserError for a site that the model doesn't have or that has another width, for
    too little text, and for activations that are NaN or infinite.
    """
    rows = pack(
        documents(source),
        model.tokenizer,
        context=context,
        train_tokens=0,
        eval_tokens=tokens,
        max_document_tokens=DOCUMENT_TOKENS,
    ).eval
    asked = model.site(site)
    sites = [asked, *(model.site(name) for name in neighbours(model, asked))]
    pieces: dict[str, list[Tensor]] = {}
    for start in range(0, len(rows.tokens), BATCH_ROWS):
        part = torch.from_numpy(rows.tokens[start : start + BATCH_ROWS].astype(np.int64))
        for name, values in _capture(model, part, sites).items():
            if name == site or values.shape[-1] == d_in:
                pieces.setdefault(name, []).append(values.flatten(0, 1).cpu())
    x = {name: torch.cat(values) for name, values in pieces.items()}
    if x[site].shape[1] != d_in:
        raise UserError(
            f"{site} of {model.name} has width {x[site].shape[1]}, the SAE reads {d_in}: it belongs to another model "
            "or site; name them with --model and --site"
        )
    for name, values in x.items():
        if first_not_finite(values) is not None:
            raise UserError(f"{name}: {model.name} gives NaN or infinite activations; choose another model or text")
    group, groups = document_groups(torch.from_numpy(_document_of(rows)).flatten())
    text = torch.from_numpy(rows.keep).flatten()
    text[text.clone()] = torch.stack([within_norm(values[text], OUTLIER) for values in x.values()]).all(0)
    return Sample({site: x.pop(site), **x}, group, groups, text, context)


def _document_of(rows: Rows) -> np.ndarray:
    """Return the document of every position [rows, context]; special tokens belong to the last document before them."""
    doc = rows.doc.copy()
    doc[:, 0] = np.where(doc[:, 0] < 0, doc.max(axis=1), doc[:, 0])
    place = np.maximum.accumulate(np.where(doc >= 0, np.arange(doc.shape[1]), 0), axis=1)
    return np.take_along_axis(doc, place, axis=1).astype(np.int64)


def _capture(model: Model, tokens: Tensor, sites: list[Site]) -> dict[str, Tensor]:
    """Return the activations [rows, context, d] at every site, by name."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Edit:
        def edit(values: Tensor) -> Tensor:
            found[name] = values
            if len(found) == len(sites):
                raise _Enough
            return values

        return edit

    with suppress(_Enough):
        nothing = torch.zeros(tokens.shape, dtype=torch.bool, device=model.device)
        model.run(tokens, rows=nothing, more=[(site, keep(site.name)) for site in sites])
    return found


def neighbours(model: Model, site: Site) -> list[str]:
    """Return the hook names of the other places in the block of `site` and in the blocks before and after it.

    The residual stream has one name each: as it leaves a block, and as it enters the first one that is looked at.
    """
    layer = site.stop
    layers = range(max(0, layer - 1), min(len(model.blocks), layer + 2))
    names = [f"blocks.{layers[0]}.hook_resid_pre"]
    names += [f"blocks.{at}.{hook}" for at in layers for hook in HOOKS if hook != "hook_resid_pre"]
    out = []
    for name in names:
        with suppress(UserError):  # a block without such a module
            found = model.site(name)
            if not _same(model, found, site):
                out.append(name)
    return out


def _same(model: Model, a: Site, b: Site) -> bool:
    return _place(model, a) == _place(model, b)


def _place(model: Model, site: Site) -> tuple[object, ...]:
    """Return what is equal for two names of one place: what enters a block is what left the one before."""
    index = next((i for i, block in enumerate(model.blocks) if block is site.module), None)
    if index is not None:
        return ("stream", index + (not site.is_input))
    return id(site.module), site.is_input
