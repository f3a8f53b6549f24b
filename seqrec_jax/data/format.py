"""The dataset folder on disk: file names, schema, manifest, and the checks of those. `etl` writes it."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from seqrec_jax.errors import InputError

SCHEMA_VERSION = 3
INTERACTIONS, ITEMS, TOKENIZER, MANIFEST = "interactions.arrow", "items.arrow", "tokenizer.model", "manifest.json"
DATA_FILES = (INTERACTIONS, ITEMS, TOKENIZER)
INTERACTION_FIELDS = {
    "user_id": pa.string(), "items": pa.large_list(pa.int32()), "timestamps": pa.large_list(pa.int64()),
}  # fmt: skip


def tokens_column(feature: str) -> str:
    """Name of the column of `items.arrow` that holds a text feature's tokens."""
    return f"{feature}_tokens"


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_versioned(path: Path) -> dict[str, Any]:
    """Reads a manifest; an InputError where it is damaged, or of another schema version than this program's."""
    try:
        manifest = json.loads(path.read_text())
        version, _ = manifest["schema_version"], manifest["sizes"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: is damaged ({error}); make the dataset again with etl") from error
    if version != SCHEMA_VERSION:
        raise InputError(f"{path}: schema version {version}, but this program reads {SCHEMA_VERSION}; make it again "
                         f"with etl, after removing {path.parent}")  # fmt: skip
    return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """Reads a dataset's manifest; an InputError unless all files are there with the sizes they were written with."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such dataset folder; make one with python -m etl.main")
    path = folder / MANIFEST
    if not path.is_file():
        raise InputError(f"{folder}: has no {MANIFEST}, so it is no dataset, or an incomplete one; "
                         "make it again with etl")  # fmt: skip
    manifest = read_versioned(path)
    for file in (folder / name for name in DATA_FILES):
        if not file.is_file():
            raise InputError(f"{file}: is missing; the dataset is incomplete, make it again with etl")
        if file.stat().st_size != (size := manifest["sizes"][file.name]):
            raise InputError(f"{file}: {file.stat().st_size} bytes where the manifest has {size}; the file was altered"
                             ", make the dataset again with etl")  # fmt: skip
    return manifest


def verify_checksums(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Compares every data file's SHA-256 with the manifest's; an InputError names a file that was altered."""
    for file in (folder / name for name in DATA_FILES):
        if sha256_of(file) != manifest["checksums"][file.name]:
            raise InputError(f"{file}: its checksum is not the manifest's; it was altered, make it again with etl")
