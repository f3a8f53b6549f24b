"""Ids as numbers: exact words of their bytes, a 64-bit hash of them, and a table to look them up.

Strings of users and items are compared and sorted hundreds of millions of times, so each is held as a few 64-bit
words (eight bytes each, padded with 0), a column a word.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

Words = list[np.ndarray]

_BYTES_KEPT = np.array([(1 << (8 * n)) - 1 for n in range(9)], np.uint64)
_BUCKETS_AT_A_TIME = 1 << 20
_MULTIPLIERS = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93))


def words_of(ids: pa.Array) -> Words:
    """The bytes of each id as little-endian words: [n] strings -> as many [n] uint64 columns as the longest needs."""
    if ids.type != pa.large_string():
        ids = ids.cast(pa.large_string())
    offsets = np.frombuffer(ids.buffers()[1], np.int64)[ids.offset : ids.offset + len(ids) + 1]
    lengths = np.diff(offsets)
    n_words = max(1, -(-int(lengths.max(initial=1)) // 8))
    data = memoryview(ids.buffers()[2] or b"")[: offsets[-1]]
    padded = bytes(data) + bytes(8 * n_words)
    at_every_byte = np.ndarray(len(padded) - 7, "<u8", padded, strides=(1,))
    words = []
    for word in range(n_words):
        start = offsets[:-1] + 8 * word if word else offsets[:-1]
        held = np.clip(lengths - 8 * word, 0, 8)
        words.append(at_every_byte[np.minimum(start, len(padded) - 8)] & _BYTES_KEPT[held])
    return words


def strings_of(words: Words) -> pa.Array:
    """The ids again: columns of words -> [n] strings."""
    table = np.stack(words, axis=1).astype("<u8", copy=False)
    return pa.array(table.view(f"S{8 * len(words)}").ravel(), pa.binary()).cast(pa.string())


def _mixed(values: np.ndarray) -> np.ndarray:
    """A bijection of the 64-bit numbers whose every output bit depends on every input bit."""
    for multiplier in _MULTIPLIERS:
        values = values * multiplier
        values ^= values >> np.uint64(32)
    return values


def hash_of(words: Words, seed: int = 0) -> np.ndarray:
    """A hash of each id, equal for equal ids however many empty words follow: [n] uint64.

    One to one for ids of up to eight bytes. Among n longer ids two share a hash with a probability of n^2 / 2^65.
    """
    hashed = _mixed(words[0] ^ np.uint64(seed))
    for word in words[1:]:
        used = word != 0
        if used.all():
            hashed = _mixed(hashed + word)
        elif used.any():
            hashed[used] = _mixed(hashed[used] + word[used])
    return hashed


class IdTable(NamedTuple):
    """Rows of ids, looked up by hash; the arrays can be memory maps.

    Attributes:
        hashes: [n] uint64, ascending and distinct.
        rows: [n] int32, the row of each.
        bucket_starts: [2^b + 1] int32; hashes whose top b bits are t lie from bucket_starts[t] to bucket_starts[t + 1].
    """

    hashes: np.ndarray
    rows: np.ndarray
    bucket_starts: np.ndarray

    def find(self, hashes: np.ndarray) -> np.ndarray:
        """The row of each hash, -1 where it is not there: [n] uint64 -> [n] int32."""
        rows = np.full(len(hashes), -1, np.int32)
        if not len(self.hashes) or not len(hashes):
            return rows
        bits = (len(self.bucket_starts) - 1).bit_length() - 1
        buckets = (hashes >> np.uint64(64 - bits)).astype(np.int64) if bits else np.zeros(len(hashes), np.int64)
        place, end = self.bucket_starts[buckets], self.bucket_starts[buckets + 1]
        asked = np.flatnonzero(place < end)
        place, end = place[asked], end[asked]
        while len(asked):
            found = self.hashes[place] == hashes[asked]
            rows[asked[found]] = self.rows[place[found]]
            left = ~found & (place + 1 < end)
            asked, place, end = asked[left], place[left] + 1, end[left]
        return rows

    def find_runs(self, hashes: np.ndarray) -> np.ndarray:
        """As `find`, asking once for each run of equal hashes: for files that are ordered by item."""
        first_of_run = np.concatenate([[True], hashes[1:] != hashes[:-1]]) if len(hashes) else np.zeros(0, bool)
        return self.find(hashes[first_of_run])[np.cumsum(first_of_run) - 1]

    def save(self, folder: Path) -> None:
        """Writes three .npy files into a folder."""
        for name, column in self._asdict().items():
            np.save(folder / f"{name}.npy", column, allow_pickle=False)

    @staticmethod
    def load(folder: Path) -> "IdTable":
        """Opens what `save` wrote by memory map."""
        return IdTable(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in IdTable._fields))


def id_table(hashes: np.ndarray, rows: np.ndarray) -> IdTable:
    """Builds a table of distinct hashes, in any order: [n] uint64, [n] int32."""
    order = np.argsort(hashes)
    return sorted_id_table(hashes[order], rows[order].astype(np.int32))


def sorted_id_table(hashes: np.ndarray, rows: np.ndarray) -> IdTable:
    """Builds a table of distinct hashes in ascending order: [n] uint64, [n] int32."""
    bits = max(1, len(hashes).bit_length())
    starts = np.empty((1 << bits) + 1, np.int32)
    starts[-1] = len(hashes)
    for first in range(0, 1 << bits, _BUCKETS_AT_A_TIME):
        buckets = np.arange(first, min(1 << bits, first + _BUCKETS_AT_A_TIME), dtype=np.uint64)
        starts[first : first + len(buckets)] = np.searchsorted(hashes, buckets << np.uint64(64 - bits))
    return IdTable(hashes, rows, starts)
