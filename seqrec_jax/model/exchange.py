"""Recommenders to and from safetensors, under the names of the reference's PyTorch model."""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import logging

from seqrec_jax.data.format import TOKENIZER
from seqrec_jax.data.store import Dataset
from seqrec_jax.errors import InputError, in_short
from seqrec_jax.files import JSON_AT_MOST, parse_json, replacing
from seqrec_jax.items.text import TextTokens
from seqrec_jax.model.parameters import check_finite
from seqrec_jax.model.recommender import Recommender
from seqrec_jax.model.spec import Architecture, Spec
from seqrec_jax.model.torch_names import TOKEN_TABLE, from_torch, to_torch

METADATA = "seqrec_jax"
TYPES = ("F32", "F16", "F64")  # of arrays, which all become float32
TRANSITIONS = "terms/transitions/weight"


def export_safetensors(model: Recommender, file: str | Path) -> None:
    """Writes a model's parameters as safetensors, which PyTorch's `load_state_dict` takes.

    The file's metadata say what the model is, so that import_safetensors needs to be told nothing. An InputError where
    the file cannot be written, or the reference has no model of these blocks.
    """
    from safetensors.numpy import save_file

    target, spec = Path(file), model.spec
    if target.is_dir() or not target.parent.is_dir():
        raise InputError(f"{target}: is a folder, or lies in none; name a file such as 'model.safetensors'")
    if target.exists() and not _is_safetensors(target):
        raise InputError(f"{target}: is no safetensors file, and is not replaced; name another")
    if spec.architecture.block != "srt":
        raise InputError(f"Architecture.block = {spec.architecture.block!r} has no counterpart in the reference")
    arrays = {name: np.asarray(array) for name, array in model.params.items()}
    if arrays.pop(TRANSITIONS, None) is not None:
        logging.warning("%s: the model's transitions are no parameters, and are left out", target)
        spec = dataclasses.replace(spec, architecture=dataclasses.replace(spec.architecture, transitions=False))
    torch = to_torch(arrays, [feature.name for feature in spec.texts])
    with replacing(target) as partial:
        save_file(torch, partial.name, {"format": "pt", METADATA: json.dumps(spec.to_json())})
    logging.info("%s: %d arrays, %d numbers", target, len(torch), sum(array.size for array in torch.values()))


def import_safetensors(
    file: str | Path,
    data: Dataset,
    architecture: Architecture | None = None,
    max_tokens: Mapping[str, int] | None = None,
) -> Recommender:
    """Reads a model from safetensors under the reference's names.

    Of a file that export_safetensors wrote, all is known. Of another, shapes tell the sizes. An InputError where it is
    missing, is no recommender, or does not fit the dataset.

    Args:
        file: File to read.
        data: Dataset made with the model's tokenizer.
        architecture: Heads, pooling and dropouts of a model that says nothing of itself; None for the defaults.
        max_tokens: Text features in the order of the model's tables, and the most tokens of each; None for the data's.
    """
    path, data = Path(file), data.checked
    arrays, metadata = read_safetensors(path)
    try:
        if METADATA in metadata:
            spec = Spec.from_json(_parsed(metadata[METADATA]))
            if spec.texts and spec.tokenizer_sha256 != data.tokenizer_sha256:
                raise InputError(f"the dataset {data.folder} was made with another tokenizer than its model")
        else:
            spec = _spec_of(arrays, data, architecture or Architecture(), max_tokens)
        named, unknown = from_torch(arrays, [feature.name for feature in spec.texts])
        if unknown:
            raise InputError(f"{', '.join(unknown[:3])}: not a parameter of the reference's model, or of a feature")
        spec.check(named)
        check_finite(named)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    params = {name: jnp.asarray(named[name]) for name in sorted(named)}
    return Recommender(spec, params, tokenizer=(data.folder / TOKENIZER).read_bytes())


def _parsed(text: str) -> Any:
    """The JSON that a model's file says of it; an InputError where it is none."""
    try:
        return parse_json(text.encode())
    except ValueError as error:
        raise InputError(f"what it says of itself is damaged ({in_short(error)})") from error


def _is_safetensors(path: Path) -> bool:
    """Whether a file begins as one of safetensors does, with the length of a JSON object, and may be one of ours."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        length, first = int.from_bytes(file.read(8), "little"), file.read(1)
    return first == b"{" and length <= min(JSON_AT_MOST, path.stat().st_size - 8)


def read_safetensors(source: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays, in float32, and the metadata of a file; an InputError where it is none."""
    from safetensors import SafetensorError, safe_open

    if not source.is_file():
        raise InputError(f"{source}: no such file; bind SOURCE to a .safetensors file")
    try:
        if not _is_safetensors(source):
            raise ValueError("it has no header")
        with safe_open(source, "np") as file:
            names = list(file.keys())
            if strange := [name for name in names if file.get_slice(name).get_dtype() not in TYPES]:
                raise ValueError(f"{strange[0]} is of {file.get_slice(strange[0]).get_dtype()}")
            return {name: file.get_tensor(name).astype(np.float32, copy=False) for name in names}, file.metadata() or {}
    except (SafetensorError, ValueError, TypeError, OSError) as error:
        raise InputError(
            f"{source}: is no safetensors file that can be read ({in_short(error)}); from PyTorch, write one with "
            "safetensors.torch.save_file(model.state_dict(), path), in float32"
        ) from error


def _spec_of(arrays: Mapping[str, np.ndarray], data: Dataset, rest: Architecture, max_tokens: Any) -> Spec:
    """The spec of a model that says nothing of itself: what shapes tell, and `rest` for the rest."""
    known = {feature["name"]: feature["max_tokens"] for feature in data.manifest["features"]}
    limits = known if max_tokens is None else max_tokens
    if (tables := sum(name.startswith(TOKEN_TABLE) for name in arrays)) != len(limits):
        raise InputError(
            f"has {tables} token tables; bind import_weights.max_tokens to its text features in their order "
            f"(the dataset has {', '.join(known)})"
        )
    try:
        sizes = [arrays[f"{TOKEN_TABLE}.{ordinal}.weight"].shape for ordinal in range(len(limits))]
        max_length, hidden = arrays["position_embedding.weight"].shape
        inner, _ = arrays["trm_encoder.layer.0.feed_forward.dense_1.weight"].shape
        rows = [n_rows for n_rows, _ in sizes]
        texts = tuple(TextTokens(*of) for of in zip(limits, rows, limits.values(), strict=True))
    except KeyError as error:
        raise InputError(f"lacks {error}, which every model of the reference's has") from error
    except ValueError as error:
        raise InputError("has an array that is no matrix where the reference's models have one") from error
    for text in texts:
        if text.rows < data.vocab_size:
            raise InputError(
                f"its table of {text.name} has {text.rows} rows, fewer than the tokenizer's {data.vocab_size} pieces; "
                "make the dataset with the model's own tokenizer"
            )
    blocks = {match[1] for name in arrays if (match := re.match(r"trm_encoder\.layer\.(\d+)\.", name))}
    architecture = dataclasses.replace(
        rest, n_layers=len(blocks), hidden_size=hidden, inner_size=inner,
        embedding_size=sizes[0][1] if sizes else None, max_length=max_length,
    )  # fmt: skip
    return Spec.from_texts(architecture, texts, data, data.tokenizer_sha256)
