"""Files that appear whole or not at all, that outlive a power failure, and that are read with suspicion."""

import io
import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from seqrec_jax.errors import InputError

_NAMES_AT_MOST = 1000  # arrays of an `.npz`


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
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes the place of `path` at the end, once its bytes are on the disk.

    Neither a reader nor a power failure ever sees half of it; where an exception comes first, nothing has changed.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all."""
    with replacing(path) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text whole or not at all."""
    write_bytes(path, text.encode())


def read_json(path: Path, remedy: str) -> Any:
    """What a file of JSON holds; an InputError with the remedy where it is damaged."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is damaged ({error}); {remedy}") from error


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
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if len(entries) > _NAMES_AT_MOST or sum(of.file_size for of in entries) > path.stat().st_size:
                raise ValueError("it says that it holds more than its bytes")
            if any(of.compress_type != zipfile.ZIP_STORED for of in entries):
                raise ValueError("it is packed")
            return {of.filename.removesuffix(".npy"): _array(archive.read(of)) for of in entries}
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(str(error)) from error


def _array(content: bytes) -> np.ndarray:
    """An array of the `.npy` format; a ValueError where it says that it holds more or less than its bytes."""
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in read_header:
        raise ValueError(f"an array is of version {version}")
    shape, fortran_order, dtype = read_header[version](file)
    count = int(np.prod(shape, dtype=object)) if shape else 1
    if dtype.hasobject or count < 0 or count * dtype.itemsize != len(content) - file.tell():
        raise ValueError(f"an array of {dtype} {list(shape)} has {len(content) - file.tell()} bytes")
    array = np.frombuffer(content, dtype, count, file.tell())
    return array.reshape(shape, order="F" if fortran_order else "C")
