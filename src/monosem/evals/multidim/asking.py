"""The model on cyclic tasks: activations at the word, and answers when these are replaced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from monosem.evals.multidim.tasks import Task
from monosem.model import Edit, Model, Site
from monosem.resumed import Suffix
from monosem.types import UserError

TOKENS = 512  # that run together
Progress = Callable[[int], object]


@dataclass(frozen=True, eq=False)
class Group:
    """Prompts of one length whose word ends at one position. rows: their numbers, int64 [r]; tokens: [r, length]."""

    rows: Tensor
    tokens: Tensor
    at: int


@dataclass(frozen=True, eq=False)
class Asked:
    """A task as one model sees it. alpha, gamma: numbers of the word and of the right answer, int64 [n]; answers: the
    token of each word as it follows the prompt, int64 [m].
    """

    model: Model
    task: Task
    groups: list[Group]
    alpha: Tensor
    beta: Tensor
    answers: Tensor

    @property
    def m(self) -> int:
        """Words in the cycle."""
        return len(self.answers)

    @property
    def gamma(self) -> Tensor:
        """The right answer of each prompt."""
        return (self.alpha + self.beta) % self.m


def ask(model: Model, task: Task) -> Asked:
    """Return a task with its tokens. Raises UserError where two words begin with the same token behind a space."""
    tokenizer = model.tokenizer

    def ids(text: str) -> list[int]:
        return list(tokenizer.encode(text))

    answers = [list(tokenizer.encode(f" {word}", add_special_tokens=False)) for word in task.words]
    first = [tokens[0] if tokens else -1 for tokens in answers]
    if len(set(first)) < len(first) or -1 in first:
        twice = [word for word, token in zip(task.words, first, strict=True) if first.count(token) > 1]
        raise UserError(
            f"{task.cycle}: {', '.join(twice)} begin with the same token in {model.name}: answers can't be told apart; "
            "use a model whose tokenizer has the words as tokens, or leave the task out of `tasks`"
        )
    groups: dict[tuple[int, int], list[tuple[int, list[int]]]] = {}
    for number, prompt in enumerate(task.prompts):
        tokens, begin = ids(prompt.text), ids(prompt.begin)
        if tokens[: len(begin)] != begin:
            raise UserError(f'{model.name}: "{prompt.text}" has no token that ends with {task.words[prompt.alpha]}')
        groups.setdefault((len(tokens), len(begin) - 1), []).append((number, tokens))
    found = [
        Group(torch.tensor([n for n, _ in own]), torch.tensor([t for _, t in own]), at)
        for (_, at), own in groups.items()
    ]
    alpha, beta = (torch.tensor([getattr(prompt, name) for prompt in task.prompts]) for name in ("alpha", "beta"))
    return Asked(model, task, found, alpha, beta, torch.tensor(first))


@torch.no_grad()
def unedited(asked: Asked) -> Tensor:
    """Return the logits of the words as answers, float32 [n, m]."""
    out = torch.zeros(len(asked.alpha), asked.m)
    for group in asked.groups:
        for part in torch.arange(len(group.rows)).split(max(1, TOKENS // group.tokens.shape[1])):
            rows = torch.zeros(group.tokens[part].shape, dtype=torch.bool)
            rows[:, -1] = True
            logits = asked.model.run(group.tokens[part], rows=rows.to(asked.model.device))
            out[group.rows[part]] = logits[:, asked.answers.to(logits.device)].float().cpu()
    return out


@torch.no_grad()
def activations(asked: Asked, sites: list[Site], last: bool = False) -> dict[str, Tensor]:
    """Return the activations at the word's last token, float32 [n, d] by site; last: at the prompt's last one."""
    found: dict[str, Tensor] = {}
    for group in asked.groups:
        at = group.tokens.shape[1] - 1 if last else group.at

        def keep(name: str, rows: Tensor, at: int) -> Edit:
            def edit(values: Tensor) -> Tensor:
                mine = found.setdefault(name, torch.zeros(len(asked.alpha), values.shape[-1]))
                mine[rows] = values[:, at].float().cpu()
                return values

            return edit

        seen = [(site, keep(site.name, group.rows, at)) for site in sites]
        asked.model.run(group.tokens, rows=torch.zeros(group.tokens.shape, dtype=torch.bool), more=seen)
    return found


@torch.no_grad()
def patched(asked: Asked, site: Site, new: Tensor, last: bool = False, progress: Progress = lambda _n: None) -> Tensor:
    """Return the logits of the words with the activation at the word (last: at the prompt's last token) replaced.

    new: [n, c, d], c replacements of each prompt; result: float32 [n, c, m].
    """
    n, copies, _ = new.shape
    out = torch.zeros(n, copies, asked.m)
    for group in asked.groups:
        run = Suffix(asked.model, group.tokens, site, group.tokens.shape[1] - 1 if last else group.at)
        together = max(1, TOKENS // run.tokens.numel())
        for part in torch.arange(copies).split(together):
            values = new[group.rows][:, part].transpose(0, 1).flatten(0, 1)
            logits = run.logits([(site, _put(values))], len(part))[..., asked.answers.to(asked.model.device)]
            out[group.rows[:, None], part] = logits.float().cpu().transpose(0, 1)
            progress(len(group.rows) * len(part))
    return out


def _put(values: Tensor) -> Edit:
    def edit(activations: Tensor) -> Tensor:
        out = activations.clone()
        out[:, 0] = values.to(out)
        return out

    return edit
