"""What a workspace remembers: records and files, believed only as they were written."""

import json
from pathlib import Path
from typing import Any

from isal import isal_zlib

from seqrec_jax.errors import InputError
from seqrec_jax.files import read_json, replacing

_CHUNK_BYTES = 1 << 20

Checksum = list[int]
"""Bytes of a file, and their CRC-32, which is taken ten times as fast as the file was made."""


def checksum(path: Path) -> Checksum:
    """The checksum of a file."""
    size = crc = 0
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK_BYTES):
            size, crc = size + len(chunk), isal_zlib.crc32(chunk, crc)
    return [size, crc]


def is_whole(path: Path, expected: Checksum) -> bool:
    """Whether a file is there, and no link, and as it was written."""
    return path.is_file() and not path.is_symlink() and checksum(path) == expected


def _seal(content: Any) -> int:
    return isal_zlib.crc32(json.dumps(content, sort_keys=True).encode())


def write_record(path: Path, content: Any, synced: bool = True) -> None:
    """Writes what JSON can hold, with texts as keys, and a checksum of it; see `replacing` for `synced`."""
    with replacing(path, synced) as file:
        file.write(json.dumps({"crc32": _seal(content), "content": content}, sort_keys=True).encode() + b"\n")


def read_record(path: Path, remedy: str) -> Any:
    """What `write_record` wrote, or None where no file is; an InputError with the remedy where it is not as written."""
    if not path.exists() and not path.is_symlink():
        return None
    record = read_json(path, remedy)
    if not isinstance(record, dict) or record.get("crc32") != _seal(record.get("content")):
        raise InputError(f"{path}: is damaged, as its checksum tells; {remedy}")
    return record["content"]
