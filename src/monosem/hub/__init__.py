"""SAEs on the Hugging Face hub: fetched by a spec, published as one commit. Imports no torch.

Specs: `hf:owner/name[/sub/folder][@revision]`, and `saelens:release/id` for SAELens' table of releases.
"""

from __future__ import annotations

from monosem.hub.download import Fetched, fetch
from monosem.hub.specs import Address, parse, parse_repository
from monosem.hub.upload import push

__all__ = ["Address", "Fetched", "fetch", "parse", "parse_repository", "push"]
