"""Logs of who chose what and when: blocks of checked rows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import gin
import numpy as np
import pyarrow as pa

from etl.raw import values
from etl.raw.bad_rows import BadRow
from etl.raw.files import find_files, kind_of
from etl.raw.table_blocks import Block, leave_out, read_block, table_blocks
from etl.raw.values import UNITS_PER_SECOND
from seqrec_jax.errors import InputError

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
        times: [n] int64, nanoseconds since 1970.
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
        files: names or patterns, relative to SOURCE, of files or of folders of them; the suffix tells the format:
            `.csv`, `.tsv`, `.json`, `.jsonl` (each also with `.gz`) or `.parquet`. They are read in the order of their
            names.
        user: column of the user's id.
        item: column of the item's id.
        timestamp: column of the time.
        rating: column of a rating to keep, or None.
        header: names of a CSV file's columns where its first line is none.
        unit: of timestamps that are numbers: 's', 'ms', 'us' or 'ns' since 1970; or 'iso' for dates and times as text.
            Parquet's own times and dates have their unit with them.
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
            raise InputError(f"Gin binding InteractionFiles.unit = {self.unit!r}: must be one of s, ms, us, ns, iso")

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

    Raises:
        InputError: a column has a type that makes no sense for what it is to hold.
    """
    raw = read_block(block, files.columns, (files.user, files.item))
    table = raw.table

    def where(column: str) -> str:
        return f"{block.path}: column {column!r}"

    times, no_time = values.times(table[files.timestamp], files.unit, where(files.timestamp))
    outside = ~no_time & (times < 0)
    users, no_user = values.ids(table[files.user], "user id", where(files.user))
    items, no_item = values.ids(table[files.item], "item id", where(files.item))
    faults = {
        **values.dates_among(table[files.timestamp], files.unit, no_time),
        "timestamp is no date" if files.unit == "iso" else "timestamp is no number": no_time,
        **values.of_another_unit(table[files.timestamp], files.unit, outside),
        "timestamp is outside 1995..2035": outside,
        **no_user,
        **no_item,
    }
    ratings = None
    if files.rating:
        ratings, faults["rating is no number"] = values.numbers(table[files.rating], where(files.rating))
    good, bad = leave_out(raw, faults)
    rows = Rows(users, items, times, ratings)
    return rows if good.all() else _only(rows, good), sorted(raw.bad + bad), raw.n_lines


def _only(rows: Rows, good: np.ndarray) -> Rows:
    mask = pa.array(good)
    ratings = None if rows.ratings is None else rows.ratings[good]
    return Rows(rows.users.filter(mask), rows.items.filter(mask), rows.times[good], ratings)
