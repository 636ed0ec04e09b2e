"""Forward passes of a local model over batches that share a beginning, which is computed once.

Rows of tokens are cut into the beginning that all of them share and a tail each. The keys and values of the beginning
stay for the next batch, which mostly begins in the same way (instructions, demonstrations). Tails are padded at their
right; positions and masks say what is real.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

Rows = Sequence[list[int]]
Next = Callable[[int, Tensor], int | None]
ROW = 96  # tokens of texts that stand in one row, which see each other in vain


@dataclass(frozen=True)
class Places:
    """A prompt and texts that follow it, each for itself, with places in them.

    prompt: its tokens, at least 1; texts: tokens of each, and for each of its places the number of them before it;
    nodes: what is tried at every place, the empty sequence first, each after its parent; of these the last `read` are
    read.
    """

    prompt: list[int]
    texts: list[tuple[list[int], list[int]]]
    nodes: Sequence[tuple[int, ...]]
    read: int

    @property
    def places(self) -> int:
        """Number of places in all texts."""
        return sum(len(at) for _, at in self.texts)

    @property
    def behind(self) -> int:
        """Number of tokens that are read behind the prompt."""
        return sum(self._size(at) for _, at in self.texts)

    def _size(self, at: list[int]) -> int:
        return max(at, default=0) + (len(self.nodes) - 1) * len(at)

    def rows(self) -> Iterator[Places]:
        """Yield parts with some of the texts each, in order, of about ROW tokens: what isn't seen costs time, too."""
        part, size = [], 0
        for text, at in self.texts:
            if part and size + self._size(at) > ROW:
                yield replace(self, texts=part)
                part, size = [], 0
            part, size = [*part, (text, at)], size + self._size(at)
        if any(at for _, at in part):
            yield replace(self, texts=part)


def shared_length(rows: Rows) -> int:
    """Return the number of tokens with which all rows begin."""
    first, last = min(rows), max(rows)  # of sorted rows, these two differ first
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))


def batched(rows: Rows, extra: Sequence[int], tokens: int, most: int) -> list[list[int]]:
    """Return batches of row numbers: rows that begin alike are together, and of similar length.

    extra: tokens that come to each row; tokens: room for the tails of a batch; most: rows of a batch.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault(tuple(row[:64]), []).append(i)
    batches: list[list[int]] = []
    for group in groups.values():
        shared = shared_length([rows[i] for i in group])
        batch: list[int] = []
        for i in sorted(group, key=lambda i: len(rows[i]) + extra[i]):
            longest = len(rows[i]) + extra[i] - shared
            if batch and (len(batch) >= most or (len(batch) + 1) * longest > tokens):
                batches.append(batch)
                batch = []
            batch.append(i)
        batches.append(batch)
    return batches


class Batches:
    """A causal language model with the keys and values of the last shared beginning."""

    def __init__(self, lm: Any):
        """Start with nothing kept. lm: a model of transformers."""
        self.lm = lm
        self._tokens: list[int] = []
        self._kept: Any = None

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return next(self.lm.parameters()).device

    @torch.inference_mode()
    def generate(self, rows: Rows, choose: Next) -> None:
        """Let every row go on until `choose(row number, logits [vocabulary])` says None instead of a token."""
        shared, cache = self._begin(rows, min(len(row) for row in rows) - 1)
        tails = [list(row[shared:]) for row in rows]
        width = max(map(len, tails))
        lengths = torch.tensor([len(tail) for tail in tails], device=self.device)
        real = torch.arange(width, device=self.device) < lengths[:, None]
        mask = torch.cat([real.new_ones(len(rows), shared), real], 1)[:, None]  # [rows, 1, keys]
        earlier = torch.ones(width, shared + width, dtype=torch.bool, device=self.device).tril(shared)
        places = shared + torch.arange(width, device=self.device).expand(len(rows), -1)
        last = torch.zeros_like(real)
        last[torch.arange(len(rows)), lengths - 1] = True
        logits = self._run(_padded(tails, width, self.device), mask & earlier, places, cache, last)
        active, position = list(range(len(rows))), shared + lengths
        while True:
            chosen = [choose(row, logits[i]) for i, row in enumerate(active)]
            going = [i for i, token in enumerate(chosen) if token is not None]
            if not going:
                return
            if len(going) < len(active):
                index = torch.tensor(going, device=self.device)
                cache.batch_select_indices(index)
                mask, position = mask[index], position[index]
                active, chosen = [active[i] for i in going], [chosen[i] for i in going]
            mask = torch.cat([mask, mask.new_ones(len(active), 1, 1)], 2)
            tokens = torch.tensor(chosen, device=self.device)[:, None]
            logits = self._run(tokens, mask, position[:, None], cache, torch.ones_like(tokens, dtype=torch.bool))
            position = position + 1

    @torch.inference_mode()
    def read(self, asked: Places, most: int) -> Iterator[Tensor]:
        """Yield the log probabilities [places, nodes read, vocabulary] of some texts after others, in order.

        Texts stand one behind the other in rows, and the nodes behind their text, but each token has the position that
        it would have alone, and sees what would be before it. A pass takes rows with at most about `most` places and
        nodes.
        """
        rows = list(asked.rows())
        while rows:
            size = 1
            while size < len(rows) and sum(row.places for row in rows[: size + 1]) * asked.read <= most:
                size += 1
            yield self._read(rows[:size])
            rows = rows[size:]

    def _read(self, rows: Sequence[Places]) -> Tensor:
        shared, cache = self._begin([row.prompt for row in rows], len(rows[0].prompt) - 1)
        laid = [_laid(row, shared) for row in rows]
        width = max(len(tokens) for tokens, _, _, _ in laid)
        mask = torch.zeros(len(rows), width, shared + width, dtype=torch.bool)
        mask[..., :shared] = True
        own = torch.arange(width)
        mask[:, own, shared + own] = True  # padding sees itself: no empty softmax
        places = torch.full((len(rows), width), shared)
        wanted = torch.zeros(len(rows), width, dtype=torch.bool)
        for i, (tokens, position, seen, read) in enumerate(laid):
            n = len(tokens)
            mask[i, :n, shared : shared + n] = torch.from_numpy(seen)
            places[i, :n] = torch.tensor(position)
            wanted[i, read] = True
        ids = _padded([tokens for tokens, _, _, _ in laid], width, self.device)
        logits = self._run(ids, mask.to(self.device), places.to(self.device), cache, wanted.to(self.device))
        order = torch.cumsum(wanted.flatten(), 0).reshape(wanted.shape) - 1
        index = torch.cat([order[i, read] for i, (_, _, _, read) in enumerate(laid)]).to(self.device)
        return logits.float().log_softmax(-1)[index].unflatten(0, (-1, rows[0].read))

    def _begin(self, rows: Rows, most: int) -> tuple[int, Any]:
        """Return the length of the shared beginning, at most `most`, and a cache that holds it for every row."""
        from transformers import DynamicCache

        shared = min(shared_length(rows), most)
        if shared < 16:
            return 0, DynamicCache()
        tokens = list(rows[0][:shared])
        known = min(shared_length([self._tokens, tokens]), shared) if self._kept is not None else 0
        cache = _copied(self._kept, known, 1) if known else DynamicCache()
        if known < shared:
            ids = torch.tensor([tokens[known:]], device=self.device)
            places = torch.arange(known, shared, device=self.device)[None]
            nothing = torch.zeros_like(ids, dtype=torch.bool)
            nothing[:, -1] = True
            self._run(ids, None, places, cache, nothing)
            self._tokens, self._kept = tokens, cache
        return shared, _copied(cache, shared, len(rows))

    def _run(self, ids: Tensor, mask: Tensor | None, places: Tensor, cache: Any, rows: Tensor) -> Tensor:
        """Run the model and return the logits [positions, vocabulary] of the positions `rows`, bool like `ids`.

        mask: what each token sees, bool [rows, ids, keys]; None: all before it.
        """
        if mask is not None:  # added to the scores: with a mask of bools, attention on CPUs is far slower
            kind = next(self.lm.parameters()).dtype
            mask = torch.zeros_like(mask, dtype=kind).masked_fill_(~mask, torch.finfo(kind).min)[:, None]
        with _only(self.lm.get_output_embeddings(), rows):
            output = self.lm(
                input_ids=ids, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True
            )
        return output.logits[0]


def _laid(row: Places, shared: int) -> tuple[list[int], list[int], np.ndarray, list[int]]:
    """Lay a row out behind its beginning: tokens, positions, what each sees [n, n], and where each node is read."""
    rest = len(row.prompt) - shared
    tokens, position = row.prompt[shared:], list(range(shared, len(row.prompt)))
    seen = np.zeros((rest + row.behind, rest + row.behind), dtype=bool)
    seen[:rest, :rest] = np.tri(rest, dtype=bool)
    read = []

    def add(token: int, parent: int) -> int:
        here = len(tokens)
        seen[here] = seen[parent]
        seen[here, here] = True
        position.append(position[parent] + 1)
        tokens.append(token)
        return here

    for text, at in row.texts:
        spots = [rest - 1]
        for token in text[: max(at, default=0)]:
            spots.append(add(token, spots[-1]))
        for place in at:
            spot: dict[tuple[int, ...], int] = {(): spots[place]}
            for node in row.nodes[1:]:
                spot[node] = add(node[-1], spot[node[:-1]])
            read += [spot[node] for node in row.nodes[-row.read :]]
    return tokens, position, seen, read


def _padded(rows: Rows, width: int, device: torch.device) -> Tensor:
    return torch.tensor([[*row, *[row[-1]] * (width - len(row))] for row in rows], device=device)


def _copied(cache: Any, length: int, rows: int) -> Any:
    """Return a cache with the first `length` positions of a cache of one row, for `rows` rows."""
    from transformers import DynamicCache

    copy = DynamicCache()
    for i, layer in enumerate(cache.layers):
        copy.update(
            layer.keys[:, :, :length].expand(rows, -1, -1, -1), layer.values[:, :, :length].expand(rows, -1, -1, -1), i
        )
    return copy


@contextlib.contextmanager
def _only(unembedding: torch.nn.Module, rows: Tensor) -> Iterator[None]:
    """Let the unembedding see only the positions `rows`, as one row: a vocabulary is wide."""
    hook = unembedding.register_forward_pre_hook(lambda _module, args: (args[0][rows][None], *args[1:]))
    try:
        yield
    finally:
        hook.remove()
