"""Logs of who chose what and when: blocks of checked rows."""

import datetime
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import gin
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from etl.raw.bad_rows import BadRow
from etl.raw.files import find_files, kind_of
from etl.raw.table_blocks import Block, read_block, table_blocks
from seqrec_jax.errors import InputError

UNITS_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000}
FIRST_SECOND, END_SECOND = 788_918_400, 2_082_758_400  # 1995-01-01 up to 2036-01-01, UTC
LONGEST_ID = 128
_BYTES_PER_ROW = {
    ("csv", False): 40,
    ("csv", True): 15,
    ("tsv", False): 40,
    ("tsv", True): 15,
    ("json", False): 300,
    ("json", True): 100,
    ("parquet", False): 15,
}


class Rows(NamedTuple):
    """Interactions in the order of their file.

    Attributes:
        users: [n] large_string.
        items: [n] large_string.
        times: [n] int64, in the file's own unit.
        ratings: [n] float32, or None.
    """

    users: pa.Array
    items: pa.Array
    times: np.ndarray
    ratings: np.ndarray | None


@gin.configurable
@dataclass(frozen=True)
class InteractionFiles:
    """Where a log's files are and what their columns mean.

    Attributes:
        files: names or patterns, relative to SOURCE; the suffix tells the format: `.csv`, `.tsv`, `.json`, `.jsonl`
            (each also with `.gz`) or `.parquet`. Several files are read in the order of their names.
        user: column of the user's id.
        item: column of the item's id.
        timestamp: column of the time.
        rating: column of a rating to keep, or None.
        header: names of a CSV file's columns where its first line is none.
        unit: of the timestamps: 's', 'ms' or 'us' since 1970, or 'iso' for dates and times as text.
    """

    files: Sequence[str]
    user: str = "user_id"
    item: str = "item_id"
    timestamp: str = "timestamp"
    rating: str | None = None
    header: Sequence[str] | None = None
    unit: str = "s"

    def __post_init__(self) -> None:
        if self.unit not in (*UNITS_PER_SECOND, "iso"):
            raise InputError(f"Gin binding InteractionFiles.unit = {self.unit!r}: must be 's', 'ms', 'us' or 'iso'")

    @property
    def units_per_second(self) -> int:
        """What the times of `Rows` count in a second."""
        return UNITS_PER_SECOND.get(self.unit, UNITS_PER_SECOND["us"])

    @property
    def columns(self) -> list[str]:
        """Names of the columns to read: user, item, timestamp, and rating where there is one."""
        return [self.user, self.item, self.timestamp, *([self.rating] if self.rating else [])]

    def find(self, source: Path) -> list[Path]:
        """The files, which must be there and not be empty."""
        return find_files(source, self.files, "InteractionFiles.files")

    def expected_rows(self, paths: Sequence[Path]) -> int:
        """About how many rows the files have, judged by their sizes."""
        return sum(path.stat().st_size // _BYTES_PER_ROW[kind_of(path), path.suffix == ".gz"] for path in paths)

    def blocks(self, path: Path, block_bytes: int) -> Iterator[Block]:
        """Cuts one of the files into blocks, after a check that it has the columns."""
        return table_blocks(path, self.columns, self.header, block_bytes)


def read_rows(block: Block, files: InteractionFiles) -> tuple[Rows, list[BadRow], int]:
    """Reads and checks a block.

    Returns:
        The good rows; the bad ones with their line in the block; and how many lines the block has.
    """
    types = {files.user: pa.large_string(), files.item: pa.large_string(), files.timestamp: pa.string()}
    types |= {files.rating: pa.float32()} if files.rating else {}
    raw = read_block(block, types, files.header)
    table = raw.table
    times, no_time = _times(table[files.timestamp], files)
    earliest, end = FIRST_SECOND * files.units_per_second, END_SECOND * files.units_per_second
    faults = {
        "timestamp is no date" if files.unit == "iso" else "timestamp is no number": no_time,
        "timestamp is outside 1995..2035": ~no_time & ((times < earliest) | (times >= end)),
    }
    users = _ids(table[files.user], "user id", faults)
    items = _ids(table[files.item], "item id", faults)
    ratings = None
    if files.rating:
        numbers, faults["rating is no number"] = _numbers(table[files.rating])
        ratings = numbers.astype(np.float32, copy=False)
    rows = Rows(users, items, times, ratings)
    good = np.ones(len(times), bool)
    bad = list(raw.bad)
    for reason, fault in faults.items():
        if not fault.any():
            continue
        for row in np.flatnonzero(fault & good):
            text = ",".join(str(value) for value in table.slice(row, 1).to_pylist()[0].values())
            bad.append(BadRow.of(raw.line_of(int(row)), reason, text))
        good &= ~fault
    return rows if good.all() else _only(rows, good), sorted(bad), raw.n_lines


def _only(rows: Rows, good: np.ndarray) -> Rows:
    mask = pa.array(good)
    ratings = None if rows.ratings is None else rows.ratings[good]
    return Rows(rows.users.filter(mask), rows.items.filter(mask), rows.times[good], ratings)


def _ids(column: pa.ChunkedArray, name: str, faults: dict[str, np.ndarray]) -> pa.Array:
    """A column of ids as one array; notes where it has none."""
    column = column.cast(pa.large_string())
    ids = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if ids.null_count:
        ids = ids.fill_null("")
    lengths = np.diff(np.frombuffer(ids.buffers()[1], np.int64)[ids.offset : ids.offset + len(ids) + 1])
    faults[f"{name} is empty"] = lengths == 0
    faults[f"{name} is longer than {LONGEST_ID} bytes"] = lengths > LONGEST_ID
    return ids


def _numbers(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """A column's numbers, [n] float64 or integers, and which are none."""
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        bad = column.is_null().to_numpy()
        values = (column.fill_null(0) if bad.any() else column).to_numpy()
        return values, (bad | ~np.isfinite(values)) if values.dtype.kind == "f" else bad
    for kind in (pa.int64(), pa.float64()):
        try:
            values = pc.cast(column, kind).to_numpy()
            return values, ~np.isfinite(values)
        except pa.ArrowInvalid:
            continue
    is_integer = pc.and_(pc.ascii_is_decimal(column), pc.less(pc.binary_length(column), 19))
    values = pc.cast(pc.if_else(is_integer, column, "0"), pa.int64()).to_numpy()
    bad = ~is_integer.to_numpy()
    fractions = {row: _float_or_nan(column[row].as_py()) for row in np.flatnonzero(bad)}
    if any(np.isfinite(value) for value in fractions.values()):
        values = values.astype(np.float64)
        values[list(fractions)] = list(fractions.values())
        return np.nan_to_num(values), ~np.isfinite(values)
    return values, bad


def _float_or_nan(text: str | None) -> float:
    try:
        return float(text or "")
    except ValueError:
        return float("nan")


def _times(column: pa.ChunkedArray, files: InteractionFiles) -> tuple[np.ndarray, np.ndarray]:
    """Times in the files' own unit, [n] int64, and which are none."""
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("us", column.type.tz), safe=False).cast(pa.int64())
        values, bad = _numbers(column)
        return values // (UNITS_PER_SECOND["us"] // files.units_per_second), bad
    if files.unit == "iso":
        return _dates(column)
    values, bad = _numbers(column)
    if values.dtype.kind == "f":
        values = np.floor(np.clip(values, -(2**62), 2**62)).astype(np.int64)
    return values.astype(np.int64, copy=False), bad


def _dates(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Microseconds since 1970 of ISO 8601 texts, UTC where they name no zone; and which are none."""
    for kind in (pa.timestamp("us"), pa.timestamp("us", "UTC")):
        try:
            return column.cast(kind).cast(pa.int64()).to_numpy(), np.zeros(len(column), bool)
        except pa.ArrowInvalid:
            continue
    values, bad = np.zeros(len(column), np.int64), np.zeros(len(column), bool)
    for row, text in enumerate(column.to_pylist()):
        try:
            date = datetime.datetime.fromisoformat(text or "")
            values[row] = round((date if date.tzinfo else date.replace(tzinfo=datetime.UTC)).timestamp() * 1e6)
        except ValueError:
            bad[row] = True
    return values, bad
