"""Tasks: a checkpoint to and from safetensors, under the names of the reference's PyTorch model."""

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gin
import jax.numpy as jnp
import numpy as np
from absl import logging

from seqrec_jax.data import format
from seqrec_jax.errors import InputError
from seqrec_jax.files import copy_file
from seqrec_jax.model import parameters
from seqrec_jax.model.recommender import Architecture, build
from seqrec_jax.model.torch_names import TOKEN_TABLE, from_torch, to_torch
from seqrec_jax.training.checkpoint import CHECKPOINTS, restore, write_model
from seqrec_jax.training.model_record import ModelRecord

RECORD = "seqrec_jax"


@gin.configurable
def export_weights(checkpoint: str = gin.REQUIRED, output: str = gin.REQUIRED) -> None:
    """Writes a checkpoint's best parameters as safetensors, which PyTorch's `load_state_dict` takes.

    What the model is stands in the file's metadata, so that import_weights needs to be told nothing.

    Args:
        checkpoint: the RUN_DIR of a training run.
        output: file to write.

    Raises:
        InputError: there is no checkpoint, or the file cannot be written.
    """
    from safetensors.numpy import save_file

    restored, target = restore(checkpoint), Path(output)
    if target.is_dir() or not target.parent.is_dir():
        raise InputError(f"{target}: is a folder, or lies in none; bind OUTPUT to a file such as 'model.safetensors'")
    arrays = {name: np.asarray(array) for name, array in parameters.named(restored.params).items()}
    record = restored.record
    if record.architecture.transitions:
        logging.warning("%s: its transitions are no parameters, and are left out", checkpoint)
        record = record._replace(architecture=dataclasses.replace(record.architecture, transitions=False))
        del arrays["transitions"]
    torch = to_torch(arrays, list(record.max_tokens))
    partial = target.with_name(f".{target.name}.partial")
    save_file(torch, partial, {"format": "pt", RECORD: json.dumps(record.to_json())})
    os.replace(partial, target)
    logging.info("%s: %d arrays, %d numbers", target, len(torch), sum(array.size for array in torch.values()))


def _read(source: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    if not source.is_file():
        raise InputError(f"{source}: no such file; bind SOURCE to a .safetensors file")
    try:
        with safe_open(source, "np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, TypeError) as error:
        raise InputError(
            f"{source}: is no safetensors file that can be read ({error}); from PyTorch, write one with "
            "safetensors.torch.save_file(model.state_dict(), path), in float32"
        ) from error


def _architecture_of(source: Path, arrays: Mapping[str, np.ndarray], told: Architecture) -> Architecture:
    """What shapes tell, and what is bound for the rest: heads, pooling and dropout."""
    try:
        blocks = [int(match[1]) for name in arrays if (match := re.match(r"trm_encoder\.layer\.(\d+)\.", name))]
        max_length, hidden = arrays["position_embedding.weight"].shape
        inner = arrays["trm_encoder.layer.0.feed_forward.dense_1.weight"].shape[0]
        embedding = arrays[f"{TOKEN_TABLE}.0.weight"].shape[1]
    except KeyError as error:
        raise InputError(f"{source}: lacks {error}, which every model of the reference's has") from error
    return Architecture(
        max(blocks) + 1, told.n_heads, hidden, inner, embedding, max_length, told.pooling, told.hidden_dropout,
        told.attention_dropout,
    )  # fmt: skip


@gin.configurable
def import_weights(
    source: str = gin.REQUIRED,
    dataset: str = gin.REQUIRED,
    run_dir: str = gin.REQUIRED,
    max_tokens: Mapping[str, int] | None = None,
) -> None:
    """Makes a checkpoint of safetensors under the reference's names; to evaluate, recommend with, or fine-tune.

    Of a file that export_weights wrote, all is known. Of another, shapes tell the sizes; bind Architecture.n_heads,
    Architecture.pooling and the dropouts to what the model was trained with.

    Args:
        source: the file.
        dataset: dataset folder made with the model's tokenizer.
        run_dir: folder of the checkpoint to make.
        max_tokens: text features in the order of the model's tables, and the most tokens of each; None takes the
            dataset's.

    Raises:
        InputError: a file is missing or does not fit; nothing is written.
    """
    path, place = Path(source), Path(run_dir)
    data = format.read_manifest(Path(dataset))
    arrays, metadata = _read(path)
    if RECORD in metadata:
        record = ModelRecord.from_json(json.loads(metadata[RECORD]))
        if record.tokenizer_sha256 != data["tokenizer"]["sha256"]:
            raise InputError(f"{dataset}: was made with another tokenizer than the model of {path} was trained with")
    else:
        record = _record_of(path, arrays, data, max_tokens)
    if (place / CHECKPOINTS).exists():
        raise InputError(f"{place}: holds a checkpoint; bind RUN_DIR to another folder")
    named, unknown = from_torch(arrays, list(record.max_tokens))
    if unknown:
        raise InputError(f"{path}: {', '.join(unknown[:3])}: not a parameter of the reference's model, or of a feature")
    _, like = build(record.architecture, record.vocab_sizes, seed=0)
    if record.architecture.item_encoder == "text_and_id":
        named = {_in_both(name): array for name, array in named.items()}
    try:
        params = parameters.from_named(like, {name: jnp.asarray(array) for name, array in named.items()})
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    place.mkdir(parents=True, exist_ok=True)
    copy_file(Path(dataset) / format.TOKENIZER, place / format.TOKENIZER)
    write_model(place, record, params, step=1)
    logging.info("%s: %d parameters from %s", place, parameters.count(params), path)


def _in_both(name: str) -> str:
    """A name of a model of texts or of rows in one of both."""
    if name == "item_encoder/tables/item_id":
        return "item_encoder/item_id/tables/item_id"
    return re.sub(r"^item_encoder/", "item_encoder/text/", name)


def _record_of(
    source: Path, arrays: Mapping[str, np.ndarray], manifest: Mapping[str, Any], max_tokens: Mapping[str, int] | None
) -> ModelRecord:
    """What a model is that says nothing of itself."""
    known = {feature["name"]: feature["max_tokens"] for feature in manifest["features"]}
    features = dict(known if max_tokens is None else max_tokens)
    tables = sum(name.startswith(TOKEN_TABLE) for name in arrays)
    if tables != len(features):
        raise InputError(
            f"{source}: has {tables} token tables; bind import_weights.max_tokens to its text features in their order "
            f"(the dataset has {', '.join(known)})"
        )
    sizes = {name: len(arrays[f"{TOKEN_TABLE}.{ordinal}.weight"]) for ordinal, name in enumerate(features)}
    for name, size in sizes.items():
        if size < manifest["tokenizer"]["vocab_size"]:
            raise InputError(
                f"{source}: its table of {name} has {size} rows, fewer than the tokenizer's "
                f"{manifest['tokenizer']['vocab_size']} pieces; make the dataset with the model's own tokenizer"
            )
    architecture = _architecture_of(source, arrays, Architecture())
    return ModelRecord(architecture, sizes, features, manifest["tokenizer"]["sha256"])
