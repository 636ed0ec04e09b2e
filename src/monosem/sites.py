"""Where activations are read: sites in the module tree of a language model.

Found from the tree and not from a list of model names: the blocks are the module list that is as long as the
configuration says, attention and MLP are its children, and a block with norms *after* them (Gemma 2 and 3) has its
`hook_attn_out` and `hook_mlp_out` behind those norms, as in the notation that the field shares.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from monosem.types import UserError

HOOKS = ("hook_resid_pre", "hook_resid_post", "hook_mlp_out", "hook_attn_out", "attn.hook_z")
ATTENTION = ("self_attn", "attn", "attention", "self_attention")
MLP = ("mlp", "feed_forward", "ffn")
PROJECTION = ("o_proj", "c_proj", "dense", "out_proj", "wo")


@dataclass(frozen=True)
class Site:
    """A place in the model: the input or the output of a module.

    resume: index of the first block whose output depends on an edit here, so that earlier blocks need not run again.
    stop: index of the last block that has to run to reach the site.
    """

    name: str
    module: nn.Module
    is_input: bool
    resume: int
    stop: int


def find_blocks(lm: nn.Module) -> nn.ModuleList:
    """Return the list of transformer blocks. Raises UserError when the module tree has none."""
    config: Any = lm.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    depth = text.num_hidden_layers
    for module in lm.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth and _child(module[0], ATTENTION) is not None:
            return module
    raise UserError(
        f"{type(lm).__name__}: no list of {depth} transformer blocks with an attention child "
        f"({', '.join(ATTENTION)}) in its module tree; this architecture is not supported yet"
    )


def _child(block: nn.Module, names: tuple[str, ...]) -> nn.Module | None:
    children = dict(block.named_children())
    return next((children[name] for name in names if name in children), None)


def hook_site(name: str, block: nn.Module, hook: str, layer: int) -> Site:
    """Return the site of `hook` in a block. Raises UserError when the block has no such module."""
    if hook == "hook_resid_pre":
        return Site(name, block, True, layer, layer)
    if hook == "hook_resid_post":
        return Site(name, block, False, layer + 1, layer)
    children = dict(block.named_children())
    sandwich = "post_feedforward_layernorm" in children and "post_attention_layernorm" in children
    if hook == "hook_attn_out" and sandwich:
        return Site(name, children["post_attention_layernorm"], False, layer, layer)
    if hook == "hook_mlp_out" and sandwich:
        return Site(name, children["post_feedforward_layernorm"], False, layer, layer)
    found = _child(block, MLP if hook == "hook_mlp_out" else ATTENTION)
    if found is not None and hook == "attn.hook_z":
        inner = found
        found = _child(inner, PROJECTION)
        if found is None:  # GPT-Neo nests its attention once more
            nested = _child(inner, ATTENTION)
            found = _child(nested, PROJECTION) if nested is not None else None
    if found is None:
        raise UserError(f'site = "{name}": {type(block).__name__} has no module for {hook}; use a module path instead')
    return Site(name, found, hook == "attn.hook_z", layer, layer)


def is_inside(block: nn.Module, module: nn.Module) -> bool:
    """Return whether `module` is `block` or in it."""
    return any(child is module for child in block.modules())


def path_of(lm: nn.Module, module: nn.Module) -> str:
    """Return the path of a module in the tree."""
    return next(path for path, found in lm.named_modules() if found is module)
