"""The dataset folder on disk: file names, schema, manifest, and how one is written. Never imports jax.

A dataset is a folder of `interactions.arrow`, `items.arrow`, `tokenizer.model` and `manifest.json`.
Writers build it under a temporary name beside the target and rename it, so it is whole or absent.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from seqrec_jax.errors import InputError

SCHEMA_VERSION = 1
INTERACTIONS = "interactions.arrow"
ITEMS = "items.arrow"
TOKENIZER = "tokenizer.model"
MANIFEST = "manifest.json"
DATA_FILES = (INTERACTIONS, ITEMS, TOKENIZER)

INTERACTION_FIELDS = {
    "user_id": pa.string(),
    "items": pa.large_list(pa.int32()),
    "timestamps": pa.large_list(pa.int64()),
}


def tokens_column(feature: str) -> str:
    """Name of the column of `items.arrow` that holds a text feature's tokens."""
    return f"{feature}_tokens"


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def replace_folder(partial: Path, final: Path) -> None:
    """Puts the finished folder `partial` at `final`; a folder there before is removed only afterwards."""
    if not final.exists():
        os.replace(partial, final)
        return
    old = final.with_name(f".{final.name}.old-{os.getpid()}")
    os.replace(final, old)
    os.replace(partial, final)
    shutil.rmtree(old)


def check_output(output: Path) -> None:
    """Refuses an output path that holds something other than a dataset or nothing.

    Raises:
        InputError: the path is a file, or a non-empty folder without a manifest.
    """
    if output.is_file():
        raise InputError(f"{output}: is a file; bind OUTPUT to a folder")
    if output.is_dir() and any(output.iterdir()) and not (output / MANIFEST).is_file():
        raise InputError(f"{output}: is not empty and is no dataset; bind OUTPUT to another folder")


def _write_arrow(path: Path, table: pa.Table) -> None:
    """Writes an Arrow IPC file of one record batch, which opens as one contiguous memory map."""
    table = table.combine_chunks()
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def write_dataset(
    output: Path,
    interactions: pa.Table,
    items: pa.Table,
    tokenizer: bytes,
    *,
    features: Mapping[str, int],
    vocab_size: int,
    parameters: Mapping[str, Any],
    inputs: Sequence[Path],
    rejected: Mapping[str, int],
) -> dict[str, Any]:
    """Writes a dataset folder, whole or not at all; the same inputs give the same bytes.

    Args:
        output: the folder to make; an existing dataset there is replaced.
        interactions: a row per user, columns `user_id`, `items`, `timestamps`, optional `ratings`.
        items: a row per item, row 0 padding; `item_id`, `<feature>_tokens` and `<feature>` per feature.
        tokenizer: the serialized SentencePiece model.
        features: text features and the most tokens that each may have.
        vocab_size: token ids lie in [0, vocab_size), 0 being padding.
        parameters: of the pipeline that made it, for the manifest.
        inputs: the raw files, recorded by name, size and SHA-256.
        rejected: rows left out, by reason.

    Returns:
        The manifest.
    """
    check_output(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        _write_arrow(partial / INTERACTIONS, interactions)
        _write_arrow(partial / ITEMS, items)
        (partial / TOKENIZER).write_bytes(tokenizer)
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "counts": {
                "users": interactions.num_rows,
                "items": items.num_rows - 1,
                "interactions": len(interactions["items"].combine_chunks().flatten()),
            },
            "features": [{"name": name, "max_tokens": most} for name, most in features.items()],
            "tokenizer": {"sha256": hashlib.sha256(tokenizer).hexdigest(), "vocab_size": vocab_size},
            "parameters": dict(parameters),
            "inputs": [{"name": path.name, "bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in inputs],
            "rejected": dict(rejected),
            "sizes": {name: (partial / name).stat().st_size for name in DATA_FILES},
            "checksums": {name: sha256_of(partial / name) for name in DATA_FILES},
        }
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")
        replace_folder(partial, output)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """Reads a dataset's manifest and checks that its files are there, with the sizes they were written with.

    Raises:
        InputError: no folder, no manifest, another schema version, a file missing or of another size.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such dataset folder; make one with python -m etl.main")
    path = folder / MANIFEST
    if not path.is_file():
        raise InputError(
            f"{folder}: has no {MANIFEST}, so it is no dataset, or an incomplete one; make it again with etl"
        )
    try:
        manifest = json.loads(path.read_text())
        version, sizes = manifest["schema_version"], manifest["sizes"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: is damaged ({error}); make the dataset again with etl") from error
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{path}: schema version {version}, but this program reads {SCHEMA_VERSION}; make it again with etl"
        )
    for name in DATA_FILES:
        if not (folder / name).is_file():
            raise InputError(f"{folder / name}: is missing; the dataset is incomplete, make it again with etl")
        if (folder / name).stat().st_size != sizes[name]:
            raise InputError(
                f"{folder / name}: {(folder / name).stat().st_size} bytes where the manifest has {sizes[name]}; "
                "the file was altered, make the dataset again with etl"
            )
    return manifest


def verify_checksums(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Reads every data file and compares its SHA-256 with the manifest's.

    Raises:
        InputError: a file was altered since it was written.
    """
    for name in DATA_FILES:
        if sha256_of(folder / name) != manifest["checksums"][name]:
            raise InputError(
                f"{folder / name}: its checksum is not the manifest's; it was altered, make it again with etl"
            )
