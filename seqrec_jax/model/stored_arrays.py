"""The arrays of a checkpoint as they lie on the disk, looked at before Orbax reads them: shapes, types, what unpacks.

Orbax keeps the arrays of an item in one key-value store (OCDBT, of TensorStore), each as zarr: its shape and type are
JSON under `<name>/.zarray`, its numbers, packed by zstd, under `<name>/0.0` and such. TensorStore unpacks whatever it
is given, so that a file of a few kilobytes may take all memory.
"""

import math
import mmap
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorstore

from seqrec_jax.files import JSON_AT_MOST, parse_json

UNPACKED_AT_MOST, UNPACKED_TIMES = 1 << 30, 16  # bytes that an item may unpack to: so many, or of its files
_FRAME, _SHORTEST_FRAME = b"\x28\xb5\x2f\xfd", 9
_LEAST_WINDOW, _MOST_OF_A_BLOCK = 1 << 10, 1 << 17
_TYPE = re.compile(r"[<|][biuf]\d{1,2}|bfloat16")
_STORE, _TREE = "manifest.ocdbt", "_METADATA"
_OTHER_FORMATS = {".zarray", "zarr.json", "checkpoint"}  # files of what Orbax could write, or wrote once, without OCDBT


def _blocks(content: Any, frame: int) -> Iterator[int]:
    """The most bytes that each block of a zstd frame becomes (RFC 8878, 3.1.1); `frame` is the frame's place."""
    descriptor, at = content[frame + 4], frame + 5
    of_one_segment = descriptor >> 5 & 1
    if not of_one_segment:
        exponent, mantissa = content[at] >> 3, content[at] & 7
        window, at = (8 + mantissa) << exponent + 7, at + 1
    at += (0, 1, 2, 4)[descriptor & 3]
    size = (of_one_segment, 2, 4, 8)[descriptor >> 6]
    if of_one_segment:
        window = int.from_bytes(content[at : at + size], "little") + (256 if size == 2 else 0)
    at, is_last = at + size, 0
    while not is_last and at + 3 <= len(content):
        header = int.from_bytes(content[at : at + 3], "little")
        is_last, kind, size = header & 1, header >> 1 & 3, header >> 3
        if kind == 3:  # There is none.
            return
        yield min(max(window, _LEAST_WINDOW), _MOST_OF_A_BLOCK)
        at += 3 + (1 if kind == 1 else size)


class _Budget:
    """Counts the bytes that things unpack to, and raises a ValueError once they are too many."""

    def __init__(self, most: int):
        self._most, self._left = most, most

    def spend(self, n: int) -> None:
        """Takes so many bytes."""
        self._left -= n
        if self._left < 0:
            raise ValueError(f"it unpacks to more than {self._most:,} bytes, many times what its files have")

    def spend_frames(self, content: Any) -> None:
        """Takes what the zstd frames become that lie anywhere in bytes or a mapped file."""
        frame = content.find(_FRAME)
        while 0 <= frame <= len(content) - _SHORTEST_FRAME:
            for size in _blocks(content, frame):
                self.spend(size)
            frame = content.find(_FRAME, frame + 1)


def _array(record: Any) -> tuple[jax.ShapeDtypeStruct, int]:
    """What a `.zarray` says: an array, and the bytes of a chunk of it."""
    packed = record["compressor"]
    if record["zarr_format"] != 2 or record["filters"] or (packed and packed["id"] != "zstd"):
        raise ValueError("its arrays are packed in another way than by zstd")
    shape, chunks = tuple(record["shape"]), tuple(record["chunks"])
    if not all(isinstance(size, int) and size >= 0 for size in shape + chunks) or not _TYPE.fullmatch(record["dtype"]):
        raise ValueError(f"an array of {record['dtype']} {record['shape']} is no parameter")
    dtype = np.dtype(record["dtype"])
    return jax.ShapeDtypeStruct(shape, dtype), math.prod(chunks) * dtype.itemsize


def shapes_of(item: Path) -> dict[str, jax.ShapeDtypeStruct]:
    """The shape and type of each array of an item of a checkpoint, by its name.

    What Orbax raises, such as a ValueError, where the item is damaged, is of another format, or unpacks to more than
    UNPACKED_AT_MOST and UNPACKED_TIMES allow.
    """
    files = [path for path in item.rglob("*") if path.is_file()]
    if not {item / _STORE, item / _TREE} <= set(files) or any(path.name in _OTHER_FORMATS for path in files):
        raise ValueError("it is not as Orbax writes it")
    most = max(UNPACKED_AT_MOST, UNPACKED_TIMES * sum(path.stat().st_size for path in files))
    unpacked, arrays = _Budget(most), _Budget(most)
    for path in files:
        with path.open("rb") as file:
            if path.parent.name != "d" and path.name != _STORE and path.stat().st_size > JSON_AT_MOST:
                raise ValueError(f"{path.name} has {path.stat().st_size:,} bytes")
            if path.stat().st_size:
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                    unpacked.spend_frames(content)
    base = {"driver": "file", "path": f"{item.resolve()}/"}
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
    found = {}
    for key in store.list().result():
        name, _, part = key.decode().rpartition("/")
        value = store.read(key).result().value
        if part != ".zarray":
            unpacked.spend_frames(value)
            continue
        found[name], chunk = _array(parse_json(value))
        arrays.spend(max(chunk, found[name].size * found[name].dtype.itemsize))
    return found
