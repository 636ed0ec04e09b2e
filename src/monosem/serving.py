"""Serves the browser of features, with a search that runs the language model; exports features as files."""

from __future__ import annotations

import socket
import threading
import webbrowser
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from monosem.app import make_app
from monosem.app.search import Search
from monosem.app.security import LOOPBACK
from monosem.types import UserError

if TYPE_CHECKING:
    from monosem.model import Model
    from monosem.sae import Sae

KEPT_SAES = 4


def serve(
    folder: Path, *, host: str = "127.0.0.1", port: int = 8137, show: bool = False, say: Callable[[str], object] = print
) -> None:
    """Serve a study folder until interrupted. show: open a browser; say: called with what the user should know.

    Raises UserError when the folder is no study or the address can't be bound.
    """
    import uvicorn

    if not (folder / "study.toml").exists():
        raise UserError(
            f"{folder}: not a study folder (no study.toml in it); run `monosem compare --out {folder}` first"
        )
    listening = _bind(host, port)
    port = listening.getsockname()[1]
    named = "127.0.0.1" if host in ("0.0.0.0", "") else host
    address = f"http://[{named}]:{port}/" if ":" in named else f"http://{named}:{port}/"
    if host not in LOOPBACK:
        say(f"warning: bound to {host}, so that whoever reaches this machine can read this study and write ratings")
    say(f"{folder} at {address} (Ctrl-C stops it)")
    if show:
        threading.Timer(0.5, webbrowser.open, [address]).start()
    app = make_app(folder, search=make_search(folder), host=host)
    config = uvicorn.Config(app, log_level="warning", server_header=False, lifespan="off")
    uvicorn.Server(config).run(sockets=[listening])


def _bind(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host or "0.0.0.0", port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(found[0], socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(found[4])
        listening.listen()  # who comes before the app is ready waits
    except (OSError, OverflowError, UnicodeError) as error:
        raise UserError(f"{host}:{port} can't be used ({error}); choose another with --host or --port") from error
    return listening


def make_search(folder: Path, load: Callable[[], Model] | None = None) -> Search:
    """Return the search of the app: for each token of a text, the features of a run that fire on it.

    The language model and the SAEs are loaded when they are first needed, and kept; one search runs at a time. The
    text follows what starts a row in training, as the first position of a row is left out everywhere.
    load: returns the language model; by default that of study.toml.
    """
    lock = threading.Lock()

    @lru_cache(maxsize=1)
    def model() -> tuple[Model, str, int]:
        from monosem.config import load_study
        from monosem.work import Work

        study = load_study(folder / "study.toml")
        loaded = load() if load else Work(study, folder).get_model()
        return loaded, study.file.model.site, study.file.model.context

    @lru_cache(maxsize=KEPT_SAES)
    def sae(run: str, _changed: int) -> Sae:
        from monosem.formats.saelens import load_sae

        return load_sae(folder / "saes" / run).to(model()[0].device)

    def changed(run: str) -> int:
        written = folder / "saes" / run / "cfg.json"  # after the weights
        return written.stat().st_mtime_ns if written.exists() else 0

    def search(run: str, text: str) -> list[tuple[str, list[tuple[int, float]]]]:
        with lock:
            language_model, site, context = model()
            return features_of(language_model, site, sae(run, changed(run)), text, context)

    return search


def features_of(
    model: Model, site: str, sae: Sae, text: str, context: int
) -> list[tuple[str, list[tuple[int, float]]]]:
    """Return, for each token of a text, its text and the features that fire on it with f_i |w_i|, strongest first.

    Raises UserError when the text has more tokens than `context` - 1, or none.
    """
    import torch

    from monosem.heldout import active_entries
    from monosem.passages import token_texts
    from monosem.text import row_start_id, separator_id

    tokens = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    if not tokens:
        raise UserError("the text has no tokens; type a word at least")
    if len(tokens) >= context:
        raise UserError(f"the text has {len(tokens)} tokens; the model was read on {context - 1} at once, shorten it")
    start = row_start_id(model.tokenizer)
    first = separator_id(model.tokenizer) if start is None else start
    with torch.no_grad():
        x = model.activations(torch.tensor([[first, *tokens]]), model.site(site))[0, 1:].float()
        token, feature, value = active_entries(sae.codes(x))
        effective = value * sae.weights["W_dec"].norm(dim=1)[feature]
    names = _texts(model.tokenizer, token_texts)
    found: list[tuple[str, list[tuple[int, float]]]] = [(names[i], []) for i in tokens]
    for at, i, f in zip(token.tolist(), feature.tolist(), effective.tolist(), strict=True):
        found[at][1].append((i, f))
    return [(name, sorted(features, key=lambda pair: -pair[1])) for name, features in found]


@lru_cache(maxsize=2)
def _texts(tokenizer: object, read: Callable[[object], list[str]]) -> list[str]:
    return read(tokenizer)
