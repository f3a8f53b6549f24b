"""Files that appear whole or not at all, that outlive a power failure, and that are read with suspicion."""

import json
import math
import os
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from seqrec_jax.errors import InputError, in_short

JSON_AT_MOST = 1 << 24  # bytes of a file: what they become in memory is up to thirty times as much
JSON_DEPTH_AT_MOST = 100
_NAMES_AT_MOST = 10_000  # arrays of an `.npz`
_NPY = re.compile(
    rb"\x93NUMPY\x01\x00(?P<length>..)\{'descr': '(?P<dtype>\|[biu]1|[<>][fiu][248]|<U\d{1,6})', "
    rb"'fortran_order': (?P<fortran_order>True|False), 'shape': \((?P<shape>[\d, ]{0,200})\), \} *\n",
    re.DOTALL,
)


def check_no_pattern(folder: Path) -> None:
    """Refuses, by an InputError, a folder in whose path Orbax would see a pattern and then lose its own files."""
    path = str(folder.resolve())
    if found := [character for character in "*?[" if character in path]:
        raise InputError(f"{path}: holds {found[0]!r}, with which no checkpoint can be read back; bind RUN_DIR to a "
                         "path without *, ? and [")  # fmt: skip


def sync_folder(folder: Path) -> None:
    """Has the names in a folder written to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path, synced: bool = True) -> Iterator[BinaryIO]:
    """A file to write that takes the place of `path` at the end, once its bytes are on the disk.

    Neither a reader nor a power failure ever sees half of it; where an exception comes first, nothing has changed.
    Syncing takes milliseconds: what can be made again, and is checked when it is read, need not be `synced`.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            if synced:
                file.flush()
                os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    if synced:
        sync_folder(path.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all."""
    with replacing(path) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text whole or not at all."""
    write_bytes(path, text.encode())


def _depth(content: bytes) -> int:
    """How deep brackets lie in one another; those in texts count as well."""
    marks = np.frombuffer(content, np.uint8)
    opening, closing = (np.isin(marks, list(kinds)).astype(np.int8) for kinds in (b"[{", b"]}"))
    return int(np.cumsum(opening - closing, dtype=np.int32).max(initial=0))


def parse_json(content: bytes) -> Any:
    """What JSON holds; a ValueError where it is none, or too large or deep to be ours."""
    if len(content) > JSON_AT_MOST or _depth(content) > JSON_DEPTH_AT_MOST:
        raise ValueError("it is too large, or too deep")
    return json.loads(content)


def read_json(path: Path, remedy: str) -> Any:
    """What a file of JSON holds; an InputError with the remedy where it is damaged, or too large or deep to be ours."""
    try:
        if not path.is_file():
            raise ValueError("it is no file")
        with path.open("rb") as file:
            return parse_json(file.read(JSON_AT_MOST + 1))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: is damaged ({in_short(error)}); {remedy}") from error


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Writes named arrays as an `.npz`, whole or not at all."""
    with replacing(path) as file:
        np.savez(file, allow_pickle=False, **{name: np.asarray(array) for name, array in arrays.items()})


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` that write_arrays wrote; it takes no more memory than the file has bytes.

    Raises:
        OSError: It cannot be read.
        ValueError: It is damaged, or of another making: packed, pickled, or of sizes that it does not have.
    """
    if path.exists() and not path.is_file():
        raise ValueError("it is no file")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if len(entries) > _NAMES_AT_MOST or sum(of.file_size for of in entries) > path.stat().st_size:
                raise ValueError("it says that it holds more than its bytes")
            if any(of.compress_type != zipfile.ZIP_STORED for of in entries):
                raise ValueError("it is packed")
            return {of.filename.removesuffix(".npy"): _array(archive.read(of)) for of in entries}
    except (zipfile.BadZipFile, EOFError, RuntimeError, OverflowError, struct.error) as error:
        raise ValueError(str(error)) from error


def _array(content: bytes) -> np.ndarray:
    """An array of the `.npy` format, as NumPy writes it; a ValueError where its bytes are not what its header says.

    NumPy's own reader evaluates the header as Python.
    """
    header = _NPY.match(content)
    if header is None:
        raise ValueError("it holds what is not an array of numbers or texts")
    start = 10 + int.from_bytes(header["length"], "little")
    dtype = np.dtype(header["dtype"].decode())
    shape = [int(size) for size in header["shape"].split(b",") if size.strip()]
    if header.end() != start or not dtype.itemsize or math.prod(shape) * dtype.itemsize != len(content) - start:
        raise ValueError(f"an array of {dtype} {shape} has {len(content) - start} bytes")
    array = np.frombuffer(content, dtype, math.prod(shape), start)
    return array.reshape(shape, order="F" if header["fortran_order"] == b"True" else "C")
