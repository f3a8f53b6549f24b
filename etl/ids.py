"""Ids as numbers: exact words of their bytes, a 64-bit hash of them, and a table to look them up.

Strings of users and items are compared and sorted hundreds of millions of times, so each is held as a few 64-bit
words (eight bytes each, padded with 0; no id holds a NUL character), a column a word. The hash is not a secret, so
whoever chooses an id can choose one of the same hash: it orders users and finds candidates, and the ids decide.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from etl.arrow_files import write_batches

Words = list[np.ndarray]

_BYTES_KEPT = np.array([(1 << (8 * n)) - 1 for n in range(9)], np.uint64)
_BUCKETS_AT_A_TIME = 1 << 20
_IDS_AT_A_TIME = 1 << 20
_NEIGHBOURS_TRIED = 16
_MULTIPLIERS = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93))


def words_of(ids: pa.Array) -> Words:
    """The bytes of each id as little-endian words: [n] strings -> as many [n] uint64 columns as the longest needs."""
    if ids.type != pa.large_string():
        ids = ids.cast(pa.large_string())
    offsets = np.frombuffer(ids.buffers()[1], np.int64)[ids.offset : ids.offset + len(ids) + 1]
    lengths = np.diff(offsets)
    n_words = max(1, -(-int(lengths.max(initial=1)) // 8))
    data = memoryview(ids.buffers()[2] or b"")[offsets[0] : offsets[-1]]
    padded = bytes(data) + bytes(8 * n_words)
    at_every_byte = np.ndarray(len(padded) - 7, "<u8", padded, strides=(1,))
    starts, words = offsets[:-1] - offsets[0], []
    for word in range(n_words):
        start = starts + 8 * word if word else starts
        held = np.clip(lengths - 8 * word, 0, 8)
        words.append(at_every_byte[np.minimum(start, len(padded) - 8)] & _BYTES_KEPT[held])
    return words


def strings_of(words: Words) -> pa.Array:
    """The ids again: columns of words -> [n] strings."""
    table = np.stack(words, axis=1).astype("<u8", copy=False)
    return pa.array(table.view(f"S{8 * len(words)}").ravel(), pa.binary()).cast(pa.string())


def changes(words: Words) -> np.ndarray:
    """Where an id differs from the one before: [n - 1] bool."""
    changed = words[0][1:] != words[0][:-1]
    for word in words[1:]:
        changed |= word[1:] != word[:-1]
    return changed


def run_starts(words: Words) -> np.ndarray:
    """Where a run of equal ids begins: [runs] int64."""
    return np.flatnonzero(np.concatenate([np.ones(min(1, len(words[0])), bool), changes(words)]))


def _mixed(values: np.ndarray) -> np.ndarray:
    """A bijection of the 64-bit numbers whose every output bit depends on every input bit."""
    for multiplier in _MULTIPLIERS:
        values = values * multiplier
        values ^= values >> np.uint64(32)
    return values


def hash_of(words: Words, seed: int = 0) -> np.ndarray:
    """A hash of each id, equal for equal ids however many empty words follow: [n] uint64.

    One to one for ids of up to eight bytes. Longer ones can be made to share a hash.
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
    """Rows of ids, found by hash, then compared byte by byte; the columns can be memory maps.

    Attributes:
        hashes: [n] uint64, ascending and distinct.
        rows: [n] int32, the first row that has each.
        bucket_starts: [2^b + 1] int32; hashes whose top b bits are t lie from bucket_starts[t] to bucket_starts[t + 1].
        others: [m] int32, first rows of the ids whose hash belongs to another id of `rows`.
        ids: [all rows] large_string, the id of every row.
    """

    hashes: np.ndarray
    rows: np.ndarray
    bucket_starts: np.ndarray
    others: np.ndarray
    ids: pa.Array

    @property
    def first_rows(self) -> np.ndarray:
        """The first row of each id, ascending: [n + m] int32."""
        return np.sort(np.concatenate([self.rows, self.others]))

    def find(self, hashes: np.ndarray, ids: Callable[[np.ndarray], pa.Array]) -> np.ndarray:
        """The first row of each id, -1 where it is not there: [n] int32.

        Args:
            hashes: [n] uint64, of the ids.
            ids: gives those at some of the n places, [k] int64 -> [k] strings.
        """
        rows = self._rows_of_hashes(hashes)
        found = np.flatnonzero(rows >= 0)
        if len(found):
            asked = ids(found).cast(pa.large_string())
            same = pc.equal(self.ids.take(pa.array(rows[found])), asked)
            wrong = np.flatnonzero(~same.to_numpy(zero_copy_only=False))
            if len(wrong):
                place = pc.index_in(asked.take(pa.array(wrong)), value_set=self.ids.take(pa.array(self.others)))
                rows[found[wrong]] = np.append(self.others, -1)[place.fill_null(-1).to_numpy()]
        return rows

    def find_runs(self, words: Words, hashes: np.ndarray, ids: pa.Array) -> np.ndarray:
        """As `find`, asking once for each run of equal ids: for files that are ordered by item."""
        starts = run_starts(words)
        rows = self.find(hashes[starts], lambda places: ids.take(pa.array(starts[places])))
        return np.repeat(rows, np.diff(np.append(starts, len(hashes))))

    def _rows_of_hashes(self, hashes: np.ndarray) -> np.ndarray:
        """The row of each hash, -1 where it is not there: [n] uint64 -> [n] int32."""
        rows = np.full(len(hashes), -1, np.int32)
        if not len(self.hashes) or not len(hashes):
            return rows
        bits = (len(self.bucket_starts) - 1).bit_length() - 1
        buckets = (hashes >> np.uint64(64 - bits)).astype(np.int64) if bits else np.zeros(len(hashes), np.int64)
        place, end = self.bucket_starts[buckets], self.bucket_starts[buckets + 1]
        asked = np.flatnonzero(place < end)
        place, end = place[asked], end[asked]
        for _ in range(_NEIGHBOURS_TRIED):
            if not len(asked):
                return rows
            found = self.hashes[place] == hashes[asked]
            rows[asked[found]] = self.rows[place[found]]
            left = ~found & (place + 1 < end)
            asked, place, end = asked[left], place[left] + 1, end[left]
        place = np.searchsorted(self.hashes, hashes[asked])  # A bucket that was crowded on purpose.
        place[place == len(self.hashes)] = 0
        found = self.hashes[place] == hashes[asked]
        rows[asked[found]] = self.rows[place[found]]
        return rows

    def save(self, folder: Path) -> None:
        """Writes four .npy files and an Arrow file into a folder."""
        for name in self._fields[:-1]:
            np.save(folder / f"{name}.npy", getattr(self, name), allow_pickle=False)
        batch = pa.record_batch([self.ids], ["ids"])
        write_batches(folder / "ids.arrow", batch.schema, [batch])

    @staticmethod
    def load(folder: Path) -> "IdTable":
        """Opens what `save` wrote by memory map."""
        columns = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in IdTable._fields[:-1]}
        ids = pa.ipc.open_file(pa.memory_map(str(folder / "ids.arrow"))).get_batch(0).column(0)
        return IdTable(**columns, ids=ids)


def id_table(ids: pa.Array) -> IdTable:
    """Builds a table of the ids of rows 0, 1, 2 ..., [n] large_string, some of which can come again."""
    hashes = np.empty(len(ids), np.uint64)
    for first in range(0, len(ids), _IDS_AT_A_TIME):
        some = ids.slice(first, _IDS_AT_A_TIME)
        hashes[first : first + len(some)] = hash_of(words_of(some))
    rows = np.argsort(hashes, kind="stable").astype(np.int32)
    hashes = hashes[rows]
    is_first, others = np.ones(len(ids), bool), np.zeros(0, np.int32)
    is_first[1:] = hashes[1:] != hashes[:-1]
    if not is_first.all():
        again, first_of = rows[~is_first], rows[is_first][np.cumsum(is_first)[~is_first] - 1]
        differ = ~pc.equal(ids.take(pa.array(again)), ids.take(pa.array(first_of))).to_numpy(zero_copy_only=False)
        others = np.sort(again[differ])
        distinct = ids.take(pa.array(others)).dictionary_encode().indices.to_numpy()
        others = others[np.unique(distinct, return_index=True)[1]]
        hashes, rows = hashes[is_first], rows[is_first]
    bits = max(1, len(hashes).bit_length())
    starts = np.empty((1 << bits) + 1, np.int32)
    starts[-1] = len(hashes)
    for first in range(0, 1 << bits, _BUCKETS_AT_A_TIME):
        buckets = np.arange(first, min(1 << bits, first + _BUCKETS_AT_A_TIME), dtype=np.uint64)
        starts[first : first + len(buckets)] = np.searchsorted(hashes, buckets << np.uint64(64 - bits))
    return IdTable(hashes, rows, starts, others, ids)
