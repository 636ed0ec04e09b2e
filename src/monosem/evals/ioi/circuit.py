"""Places in the model whose activations are read and replaced: a site at a position of the prompt, or several heads.

The circuit of GPT-2 small: Wang et al. 2022 (arXiv 2211.00593); its nodes and cross-sections as in Makelov et al. 2024
(arXiv 2405.08366), section 4.1. Queries, keys and values are what the projections put out.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from monosem.model import Model, Site
from monosem.sites import path_of
from monosem.types import UserError

NAME_MOVERS = ((9, 9), (9, 6), (10, 0))
BACKUP_MOVERS = ((9, 0), (9, 7), (10, 1), (10, 2), (10, 10), (11, 2), (11, 9))
MOVERS = (*NAME_MOVERS, *BACKUP_MOVERS)
S_INHIBITION = ((7, 3), (7, 9), (8, 6), (8, 10))
INDUCTION = ((5, 5), (6, 9), (5, 8), (5, 9))
DUPLICATES = ((0, 1), (3, 0), (0, 10))
GPT2_SMALL = {  # cross-section -> (kind of activation, position, heads)
    "(B)NM out": [("z", "END", MOVERS)],
    "(B)NM q": [("q", "END", MOVERS)],
    "(B)NM qk": [("q", "END", MOVERS), ("k", "IO", MOVERS), ("k", "S1", MOVERS)],
    "S-I out": [("z", "END", S_INHIBITION)],
    "S-I v": [("v", "S2", S_INHIBITION)],
    "Ind+DT out": [("z", "S2", (*INDUCTION, *DUPLICATES))],
}
FUSED = "c_attn"  # GPT-2's projection to queries, keys and values in one


@dataclass(frozen=True)
class Node:
    """Some columns of a site's activations at one position of the prompt; width: how many."""

    site: Site
    first: int
    width: int
    position: str


@dataclass(frozen=True)
class Place:
    """Nodes that are edited together; its activations are [n, d], those of the nodes side by side."""

    name: str
    nodes: tuple[Node, ...]

    @property
    def position(self) -> str:
        """The nodes' positions."""
        return "+".join(dict.fromkeys(node.position for node in self.nodes))

    @property
    def resume(self) -> int:
        """The first block whose output depends on an edit here."""
        return min(node.site.resume for node in self.nodes)

    @property
    def slices(self) -> list[slice]:
        """Where each node's activations stand among the place's."""
        ends = [0]
        for node in self.nodes:
            ends.append(ends[-1] + node.width)
        return [slice(a, b) for a, b in pairwise(ends)]


def residual(model: Model, site: str, position: str, d_in: int) -> Place:
    """Return a whole site at one position."""
    return Place(f"{site}@{position}", (Node(model.site(site), 0, d_in, position),))


def heads(model: Model, name: str, kind: str, chosen: list[tuple[int, int]], position: str) -> Place:
    """Return heads, given as (layer, head). kind: z, q, k or v. Raises UserError where the model has no such thing."""
    return Place(name, tuple(head_node(model, kind, layer, head, position) for layer, head in chosen))


def head_node(model: Model, kind: str, layer: int, head: int, position: str) -> Node:
    """Return one head's z (input of the output projection), q, k or v (outputs of theirs)."""
    config = model.lm.config
    count, groups = config.num_attention_heads, getattr(config, "num_key_value_heads", config.num_attention_heads)
    if not 0 <= layer < len(model.blocks) or not 0 <= head < count:
        raise UserError(
            f"head L{layer}H{head}: {model.name} has layers 0 to {len(model.blocks) - 1} with heads 0 to {count - 1}"
        )
    width = getattr(config, "head_dim", None) or config.hidden_size // count
    if kind == "z":
        return Node(model.site(f"blocks.{layer}.attn.hook_z"), head * width, width, position)
    path = path_of(model.lm, model.blocks[layer])
    names = [name for name, _ in model.blocks[layer].named_modules()]
    own = next((name for name in names if name.endswith(f"{kind}_proj")), None)
    if own is not None:
        number = head if kind == "q" else head * groups // count
        return Node(model.site(f"{path}.{own}"), number * width, width, position)
    fused = next((name for name in names if name.endswith(FUSED)), None)
    if fused is None:
        raise UserError(
            f"head L{layer}H{head}: {model.name} has no module {kind}_proj or {FUSED} to take its {kind} from"
        )
    return Node(model.site(f"{path}.{fused}"), ("qkv".index(kind) * count + head) * width, width, position)


def is_gpt2_small(model: Model) -> bool:
    """Return whether the published circuit is this model's."""
    config = model.lm.config
    return (config.model_type, config.num_hidden_layers, config.num_attention_heads) == ("gpt2", 12, 12)


def gpt2_small(model: Model) -> list[Place]:
    """Return the six cross-sections of the published circuit, 55 nodes in all."""
    return [
        Place(
            name,
            tuple(
                head_node(model, kind, layer, head, position)
                for kind, position, chosen in parts
                for layer, head in chosen
            ),
        )
        for name, parts in GPT2_SMALL.items()
    ]
