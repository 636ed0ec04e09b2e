"""Files that are wrong without malice: each with an error that names the file and what is wrong in it."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import monosem
from monosem.types import FormatWarning, UserError
from tests.formats.archives import npy, zipped
from tests.formats.making import activations, random_sae

WRITTEN = {
    "saelens": ("topk", "sae_weights.safetensors", "cfg.json"),
    "gemma_scope": ("jumprelu", "params.npz", ""),
    "dictionary_learning": ("jumprelu", "ae.pt", "config.json"),
    "sparsify": ("topk", "sae.safetensors", "cfg.json"),
    "openai": ("standard", "autoencoder.pt", ""),
}
"""Format -> a variant that it can say, its file of weights, its configuration."""


@pytest.fixture(params=WRITTEN)
def written(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path, Path]:
    """A format, a folder in it, and the file with the weights."""
    variant, name, _ = WRITTEN[request.param]
    monosem.save_sae(random_sae(variant), tmp_path / "sae", request.param)
    return request.param, tmp_path / "sae", tmp_path / "sae" / name


def refused(folder: Path, words: str) -> str:
    with pytest.raises(UserError, match=words) as caught:
        monosem.load_sae(folder)
    assert str(folder) in str(caught.value)
    assert str(caught.value).isprintable()
    return str(caught.value)


def tensors_of(path: Path) -> dict[str, Any]:
    if path.suffix == ".npz":
        return {name: torch.from_numpy(value) for name, value in np.load(path).items()}
    return torch.load(path, weights_only=True) if path.suffix == ".pt" else load_file(path)


def save(path: Path, tensors: dict[str, Any]) -> None:
    """Write tensors into a file of its kind, and forget what our own configuration says of the file."""
    if path.suffix == ".npz":
        path.write_bytes(zipped({f"{name}.npy": npy(value.numpy()) for name, value in tensors.items()}))
    elif path.suffix == ".pt":
        torch.save(tensors, path)
    else:
        save_file(tensors, path)
    if (path.parent / "cfg.json").exists():
        edit(path.parent / "cfg.json", lambda cfg: cfg.pop("monosem", None))


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def encoder(tensors: dict[str, Any]) -> str:
    return next(name for name in ("W_enc", "encoder.weight") if name in tensors)


def test_a_truncated_file(written: tuple[str, Path, Path]) -> None:
    _, folder, path = written
    data = path.read_bytes()
    for size in (len(data) - 1, len(data) - 8, len(data) // 2, 50, 7, 1, 0):
        path.write_bytes(data[:size])
        refused(folder, re.escape(path.name) + ".*(truncated|before torch 1.6)")


def test_a_file_with_bytes_behind_its_end(written: tuple[str, Path, Path]) -> None:
    _, folder, path = written
    path.write_bytes(path.read_bytes() + b"more")
    refused(folder, re.escape(path.name) + ".*(truncated|before torch 1.6)")


def test_a_tensor_that_is_missing(written: tuple[str, Path, Path]) -> None:
    _, folder, path = written
    tensors = tensors_of(path)
    gone = encoder(tensors)
    del tensors[gone]
    save(path, tensors)
    refused(folder, f'{path.name}: tensor "{gone}" is missing; it holds "')


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_none(written: tuple[str, Path, Path], value: float) -> None:
    _, folder, path = written
    tensors = tensors_of(path)
    tensors[encoder(tensors)][1, 1] = value
    save(path, tensors)
    refused(folder, f"{path.name}: {encoder(tensors)} holds NaN or infinity")


def test_a_wrong_shape(written: tuple[str, Path, Path]) -> None:
    _, folder, path = written
    for shape in ((5, 24), (24, 7), (192,), (1,), (), (2, 4, 24)):
        tensors = tensors_of(path)
        tensors[encoder(tensors)] = torch.zeros(shape)
        save(path, tensors)
        refused(folder, rf"{path.name}: \S+ has shape \(.*\)[,;] ")


def test_encoder_and_decoder_exchanged(written: tuple[str, Path, Path]) -> None:
    form, folder, path = written
    tensors = tensors_of(path)
    other = next(name for name in ("W_dec", "decoder.weight") if name in tensors)
    one = encoder(tensors)
    tensors[one], tensors[other] = tensors[other].clone(), tensors[one].clone()
    save(path, tensors)
    if form == "sparsify":  # both are [d_sae, d_in]: nothing but the doctor can see it
        monosem.load_sae(folder)
    else:
        refused(folder, rf"{path.name}: \S+ has shape")


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.complex64, torch.uint8])
def test_weights_that_are_no_weights(written: tuple[str, Path, Path], dtype: torch.dtype) -> None:
    _, folder, path = written
    tensors = tensors_of(path)
    tensors[encoder(tensors)] = tensors[encoder(tensors)].to(dtype)
    save(path, tensors)
    refused(folder, f"{path.name}: ({encoder(tensors)} has type|can't be read)")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_weights_in_another_precision_are_read(written: tuple[str, Path, Path], dtype: torch.dtype) -> None:
    _, folder, path = written
    tensors = {name: v.to(dtype) if hasattr(v, "to") else v for name, v in tensors_of(path).items()}
    save(path, tensors)
    sae = monosem.load_sae(folder)
    assert all(value.dtype == torch.float32 for value in sae.weights.values())
    assert sae(activations()).isfinite().all()


def test_a_configuration_that_is_missing_or_a_folder(written: tuple[str, Path, Path]) -> None:
    form, folder, path = written
    name = WRITTEN[form][2]
    if name:
        text = (folder / name).read_text()
        (folder / name).unlink()
        refused(folder, rf"{name}: no such file")
        (folder / name).mkdir()
        refused(folder, rf"{name}: no such file")
        (folder / name).rmdir()
        (folder / name).write_text(text)
    path.unlink()
    path.mkdir()
    refused(folder, "no such file|no SAE here")


def test_files_of_two_formats(written: tuple[str, Path, Path]) -> None:
    form, folder, _ = written
    other = "gemma_scope" if form != "gemma_scope" else "dictionary_learning"
    monosem.save_sae(random_sae("jumprelu"), folder, other)
    message = refused(folder, "could be .* or .*; keep one SAE a folder")
    assert form in message
    assert other in message


def test_a_link_out_of_the_folder(written: tuple[str, Path, Path]) -> None:
    form, folder, path = written
    away = folder.parent / "away"
    shutil.move(path, away)
    path.symlink_to(away)
    refused(folder, f"{path.name}: a link to a file outside")
    shutil.move(away, folder / "within")
    path.unlink()
    path.symlink_to(folder / "within")
    monosem.load_sae(folder)
    path.unlink()
    path.symlink_to(path)
    refused(folder, "no such file|no SAE here")
    path.unlink()
    shutil.move(folder / "within", path)
    name = WRITTEN[form][2]
    if name:
        shutil.move(folder / name, away)
        (folder / name).symlink_to(away)
        refused(folder, f"{name}: a link to a file outside")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(written: tuple[str, Path, Path]) -> None:
    _, folder, path = written
    path.chmod(0)
    refused(folder, r"can't be read \(Permission denied\)")


def test_a_file_that_vanishes_or_fails_while_it_is_read(
    written: tuple[str, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from monosem import untrusted

    _, folder, _ = written

    def fail(path: Path) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(untrusted.os.path, "getsize", fail)
    refused(folder, "Permission denied")


VALUES = [None, True, -1, 10**30, 1.5, "\x1b[2J\n", [1], {"a": {"b": [None]}}]


def paths(value: Any, above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = [above] if above else []
    for key in value if isinstance(value, dict) else ():
        found += paths(value[key], (*above, key))
    return found


def refusal(folder: Path) -> str:
    """Return the error of a folder; what has none must work."""
    try:
        sae = monosem.load_sae(folder)
    except UserError as error:
        return str(error)
    assert sae(activations(2)).shape == (2, sae.d_in)
    assert all(isinstance(sae.facts.get(fact), str | None) for fact in ("site", "model"))
    return ""


@pytest.mark.filterwarnings("ignore::monosem.types.FormatWarning")
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("form", [form for form, (*_, cfg) in WRITTEN.items() if cfg])
def test_a_key_of_another_type_is_named_or_does_not_matter(tmp_path: Path, form: str, own: bool) -> None:
    variant, _, name = WRITTEN[form]
    monosem.save_sae(random_sae(variant), tmp_path, form)
    if not own:
        edit(tmp_path / name, lambda cfg: cfg.pop("monosem"))
    good, refusals = json.loads((tmp_path / name).read_text()), set()
    for where in paths(good):
        for value in VALUES:
            changed = json.loads(json.dumps(good))
            inner = changed
            for key in where[:-1]:
                inner = inner[key]
            inner[where[-1]] = value
            (tmp_path / name).write_text(json.dumps(changed))
            if message := refusal(tmp_path):
                assert str(tmp_path) in message
                assert message.isprintable()
                refusals.add(where[-1])
    assert {"saelens": "d_in", "dictionary_learning": "activation_dim", "sparsify": "num_latents"}[form] in refusals


BROKEN = [
    (b"", "not valid JSON"),
    (b"{", "not valid JSON"),
    (b"[]", "a JSON list instead of an object"),
    (b"3", "a JSON int instead of an object"),
    (b"null", "a JSON NoneType instead of an object"),
    (b'{"a": 1, "a": 2}', 'the key "a" comes twice'),
    (b'{"metadata": {"hook_name": "x", "hook_name": "y"}}', 'the key "hook_name" comes twice'),
    (b'{"a": "\xff\xfe"}', "not valid JSON"),
    (b"\xff\xfe\x00", "not valid JSON"),
    (b"PK\3\4", "not valid JSON"),
]


@pytest.mark.parametrize("form", [form for form, (*_, cfg) in WRITTEN.items() if cfg])
def test_a_configuration_that_is_no_json(tmp_path: Path, form: str) -> None:
    variant, _, name = WRITTEN[form]
    monosem.save_sae(random_sae(variant), tmp_path, form)
    for text, words in BROKEN:
        (tmp_path / name).write_bytes(text)
        refused(tmp_path, re.escape(name) + ".*" + words)


@pytest.mark.parametrize(
    ("form", "key", "value", "words"),
    [
        (
            "saelens",
            "architecture",
            "temporal",
            'architecture = "temporal" is not supported; known are standard, gated',
        ),
        ("saelens", "k", 2.5, '"k" is 2.5, no whole number'),
        ("saelens", "k", 25, "k = 25: must be at least 1 and at most d_sae = 24"),
        ("saelens", "k", None, '"k" is missing'),
        ("saelens", "normalize_activations", "covariance_whitening", '"covariance_whitening" is not supported'),
        ("saelens", "activation_fn", "tanh-relu", "activation_fn = \"tanh-relu\": input should be 'relu' or 'topk'"),
        ("sparsify", "activation", "groupmax", 'activation = "groupmax" is not supported; "topk" is'),
        ("sparsify", "transcode", True, "transcode = true is not supported"),
        ("sparsify", "skip_connection", True, "skip_connection = true is not supported"),
        ("sparsify", "num_latents", 25, "says (25, 8)"),
    ],
)
def test_what_is_not_supported_says_so(tmp_path: Path, form: str, key: str, value: Any, words: str) -> None:
    monosem.save_sae(random_sae("topk"), tmp_path, form)
    edit(tmp_path / "cfg.json", lambda cfg: (cfg.pop("monosem"), cfg.update({key: value})))
    refused(tmp_path, re.escape(words))


def test_one_head_of_attention_is_not_supported(tmp_path: Path) -> None:
    monosem.save_sae(random_sae("topk"), tmp_path)
    edit(tmp_path / "cfg.json", lambda cfg: (cfg.pop("monosem"), cfg["metadata"].update({"hook_head_index": 3})))
    refused(tmp_path, "hook_head_index = 3: SAEs of one head are not supported")


def test_dictionaries_of_other_classes_say_so(tmp_path: Path) -> None:
    monosem.save_sae(random_sae("topk"), tmp_path, "dictionary_learning")
    edit(tmp_path / "config.json", lambda config: config["trainer"].pop("k"))
    refused(tmp_path, '"trainer.k" is missing')
    edit(tmp_path / "config.json", lambda config: config["trainer"].update({"dict_class": "IdentityDict"}))
    refused(tmp_path, 'trainer.dict_class = "IdentityDict" is not supported; known are AutoEncoder, AutoEncoderNew')


def test_openai_activations_that_are_not_known(tmp_path: Path) -> None:
    monosem.save_sae(random_sae("topk", normaliser="token_ln"), tmp_path, "openai")
    path = tmp_path / "autoencoder.pt"
    for change, words in (
        ({"activation": "Identity"}, 'activation = "Identity" is not supported; ReLU and TopK are'),
        ({"activation_state_dict": {"postact_fn": "ReLU"}}, 'activation_state_dict: "k" is missing'),
        ({"activation_state_dict": {"k": 3, "postact_fn": "Identity"}}, 'postact_fn = "Identity" is not supported'),
        ({"activation_state_dict": {"k": 25}}, "k = 25: must be at least 1"),
        ({"activation_state_dict": 3}, "activation_state_dict: all of it = 3: input should be"),
    ):
        state = torch.load(path, weights_only=True)
        torch.save({**state, **change}, tmp_path / "changed.pt")
        with pytest.raises(UserError, match=re.escape(words)):
            monosem.load_sae(tmp_path / "changed.pt")


def test_transcoders_of_gemma_scope_2_say_so(tmp_path: Path) -> None:
    tensors = {name.replace("W_", "w_"): value for name, value in random_sae("jumprelu").weights.items()}
    save_file(tensors, tmp_path / "params.safetensors")
    config = {
        "architecture": "jump_relu",
        "hf_hook_point_in": "layers.3.mlp.input",
        "hf_hook_point_out": "layers.3.mlp",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    refused(tmp_path, "a transcoder")
    (tmp_path / "config.json").write_text(json.dumps({**config, "architecture": "topk"}))
    refused(tmp_path, 'architecture = "topk" is not supported; "jump_relu" is')


def test_keys_that_are_not_known_warn(tmp_path: Path) -> None:
    for form in ("saelens", "sparsify", "dictionary_learning"):
        name = WRITTEN[form][2]
        monosem.save_sae(random_sae("topk"), tmp_path / form, form)
        edit(tmp_path / form / name, lambda cfg: cfg.update({"b_dec_twice\n": True}))
        with pytest.warns(FormatWarning, match=rf'{name}: unknown key "b_dec_twice\?" is left out of account'):
            monosem.load_sae(tmp_path / form)


def test_specs_that_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no SAE here; it holds nothing, and known are")
    for spec in (tmp_path / "nothing", "x" * 5000, "a\0b", "~nobody-has-this-name/x", ""):
        with pytest.raises(UserError, match=r"no SAE here"):
            monosem.load_sae(spec)
