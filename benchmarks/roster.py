"""Which libraries can be timed beside ours, for which variants, and what has to be known of their rows."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from typing import Any

from peers import DictionaryLearning, SaeLens, Sparsify
from workload import VARIANTS, Setting, Start

from monosem.types import UserError

NO_TANH = "has no tanh penalty: its standard SAE is timed"
TOPK = ("topk", "topk-auxk")


@dataclass(frozen=True)
class Peer:
    """A library beside ours. notes: what a reader of its rows has to know, for some variants (`""`: for all)."""

    distribution: str
    module: str
    variants: tuple[str, ...]
    adapter: type
    options: dict[str, Any]
    notes: dict[str, str]

    def build(self, setting: Setting, start: Start) -> Any:
        """Return the adapter, at the start's weights."""
        return self.adapter(setting, start, **self.options)

    def note(self, variant: str) -> str:
        """Return what has to be known of this library's rows for a variant."""
        return "; ".join(text for text in (self.notes.get(""), self.notes.get(variant)) if text)


PEERS = {
    "sae-lens": Peer(
        "sae-lens",
        "sae_lens",
        VARIANTS,
        SaeLens,
        {},
        {
            "tanh": NO_TANH,
            "topk": "its defaults; decoder rows are not held at norm 1",
            "topk-auxk": "its defaults; decoder rows are not held at norm 1; its AuxK has no ReLU",
        },
    ),
    "sae-lens-sparse": Peer(
        "sae-lens",
        "sae_lens",
        TOPK,
        SaeLens,
        {"sparse": True},
        {
            "": "use_sparse_activations; decoder rows are not held at norm 1",
            "topk-auxk": "its AuxK is dense and has no ReLU",
        },
    ),
    "dictionary-learning": Peer(
        "dictionary-learning",
        "dictionary_learning",
        VARIANTS,
        DictionaryLearning,
        {},
        {"tanh": NO_TANH, "gated": "decoder rows held at norm 1, no clipping"},
    ),
    "eai-sparsify": Peer(
        "eai-sparsify",
        "sparsify",
        TOPK,
        Sparsify,
        {},
        {"": "optimizer adam, no clipping", "topk-auxk": "its AuxK gives the encoder no gradient: less work"},
    ),
}


def choose(text: str, variant: str) -> list[str]:
    """Return the peers that `--peers` names: a list with commas, `all` (of those that have the variant) or `none`.

    Raises UserError for a peer that is unknown, doesn't have the variant or is not installed.
    """
    if text == "all":
        names = [name for name, peer in PEERS.items() if variant in peer.variants]
    else:
        names = [] if text == "none" else [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in PEERS:
            raise UserError(f"--peers {name}: unknown peer; known are {', '.join(PEERS)}, all, none")
        if variant not in PEERS[name].variants:
            raise UserError(f"--peers {name}: has no {variant}; it has {', '.join(PEERS[name].variants)}")
        if find_spec(PEERS[name].module) is None:
            raise UserError(
                f"--peers {name}: {PEERS[name].distribution} is not installed here; "
                "run `make oracle` once and use .venv-oracle/bin/python, or choose --peers none"
            )
    return list(dict.fromkeys(names))


def version(name: str) -> str:
    """Return the installed version of a peer."""
    return metadata.version(PEERS[name].distribution)
