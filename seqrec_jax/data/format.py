"""The dataset folder on disk: file names, schema, manifest, and the checks of those. `etl` writes it."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from seqrec_jax.describe import shown
from seqrec_jax.errors import InputError
from seqrec_jax.files import read_json

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


def digest_of(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest but for its own, under "sha256", which those of early datasets lack."""
    content = {name: value for name, value in manifest.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


REMEDY = "make the dataset again with etl"
_KINDS: dict[str, Any] = {  # what a manifest holds that is read again
    "sizes": dict.fromkeys(DATA_FILES, int),
    "checksums": dict.fromkeys(DATA_FILES, str),
    "counts": dict.fromkeys(("users", "items", "interactions"), int),
    "tokenizer": {"sha256": str, "vocab_size": int},
    "ties": {"order": str, "neighbours": int, "of": int},
    "features": list,
}


def _misfit(value: Any, kind: Any, place: str) -> str | None:
    """The first place of a manifest that is not of its kind; None where all are."""
    if isinstance(kind, dict):
        if not isinstance(value, dict):
            return place
        found = (_misfit(value.get(name), inner, f"{place}.{name}".strip(".")) for name, inner in kind.items())
        return next((wrong for wrong in found if wrong is not None), None)
    fits = isinstance(value, kind) and not isinstance(value, bool) and (kind is not int or value >= 0)
    return None if fits else place


def read_versioned(path: Path) -> dict[str, Any]:
    """Reads a manifest; an InputError where it is damaged, or of another schema version than this program's."""
    manifest = read_json(path, REMEDY)
    version = manifest.get("schema_version") if isinstance(manifest, dict) else None
    if version is not None and version != SCHEMA_VERSION:
        raise InputError(f"{path}: schema version {shown(repr(version), 40)}, but this program reads {SCHEMA_VERSION}; "
                         f"make it again with etl, after removing {path.parent}")  # fmt: skip
    wrong = "schema_version" if version is None else _misfit(manifest, _KINDS, "")
    for feature in [] if wrong else manifest["features"]:
        wrong = wrong or _misfit(feature, {"name": str, "max_tokens": int}, "features")
    if not wrong and len({feature["name"] for feature in manifest["features"]}) < len(manifest["features"]):
        wrong = "features"
    if not wrong and manifest.get("sha256") not in (None, digest_of(manifest)):
        wrong = "sha256"
    if wrong:
        raise InputError(f"{path}: is damaged ({wrong} is missing, or is not what it has to be); {REMEDY}")
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


def wrong_files(folder: Path, manifest: Mapping[str, Any]) -> Iterator[str]:
    """A line for each data file whose SHA-256 is not the manifest's."""
    for file in (folder / name for name in DATA_FILES):
        if sha256_of(file) != manifest["checksums"][file.name]:
            yield f"{file}: its checksum is not the manifest's; it was altered, make it again with etl"


def verify_checksums(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Compares every data file's SHA-256 with the manifest's; an InputError names a file that was altered."""
    for wrong in wrong_files(folder, manifest):
        raise InputError(wrong)
