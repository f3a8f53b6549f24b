"""Chosen columns of CSV, JSON lines and Parquet files, a block of rows at a time, with the rows that cannot be read."""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from etl.raw.bad_rows import BadRow
from etl.raw.csv_blocks import CsvBlock, csv_blocks, read_csv
from etl.raw.files import kind_of
from etl.raw.json_lines import as_id, as_text, read_objects, text_array
from etl.raw.parquet_blocks import ParquetBlock, parquet_blocks
from etl.raw.text_blocks import TextBlock, text_blocks
from etl.raw.values import Faults, shown
from seqrec_jax.errors import InputError

Block = TextBlock | CsvBlock | ParquetBlock
_DELIMITERS = {"csv": b",", "tsv": b"\t"}


class RawRows(NamedTuple):
    """A block's rows as they are in the file, but for those that cannot be read.

    Attributes:
        table: [n], a column for each that was asked for: of Parquet's type, or text as bytes.
        lines: [n] int64, ordinals of the rows' lines in the block; None where row i is line i.
        bad: rows that were left out.
        n_lines: lines of the block.
    """

    table: pa.Table
    lines: np.ndarray | None
    bad: list[BadRow]
    n_lines: int

    def line_of(self, row: int) -> int:
        """A row's line in the block, counted from 1."""
        return 1 + int(row if self.lines is None else self.lines[row])


def leave_out(raw: RawRows, faults: Faults) -> tuple[np.ndarray, list[BadRow]]:
    """Which rows are good, [n] bool, and the others, each with the first of its faults."""
    good, bad = np.ones(raw.table.num_rows, bool), []
    for reason, fault in faults.items():
        if fault.any():
            for row in map(int, np.flatnonzero(fault & good)):
                text = ",".join(shown(column, row) for column in raw.table.columns)
                bad.append(BadRow.of(raw.line_of(row), reason, text))
            good &= ~fault
    return good, bad


def table_blocks(path: Path, columns: Sequence[str], header: Sequence[str] | None, block_bytes: int) -> Iterator[Block]:
    """Cuts a file into blocks, in its order, after a check that it has the columns.

    Args:
        path: the file; its name tells the format.
        columns: that will be read.
        header: names of a CSV file's columns where its first line is none.
        block_bytes: of text in a block.

    Raises:
        InputError: a column is missing or not the only one of its name, or the file is damaged.
    """
    kind = kind_of(path)
    if kind == "parquet":
        yield from parquet_blocks(path, columns)
        return
    if kind == "json":
        yield from text_blocks(path, block_bytes)
        return
    for ordinal, block in enumerate(csv_blocks(path, _DELIMITERS[kind], header, block_bytes)):
        for column in columns if ordinal == 0 else ():
            if column not in block.names:
                raise InputError(f"{path}, line 1: column {column!r} is missing; it has {', '.join(block.names)}")
            if (times := block.names.count(column)) > 1:
                raise InputError(f"{path}, line 1: has {times} columns {column!r}; rename all but one")
        yield block


def read_block(block: Block, columns: Sequence[str], ids: Collection[str] = ()) -> RawRows:
    """Reads a block's columns.

    Args:
        block: of `table_blocks`.
        columns: which.
        ids: those whose numbers are ids, in JSON.
    """
    columns = list(dict.fromkeys(columns))
    if isinstance(block, ParquetBlock):
        return RawRows(block.read(columns), None, [], block.n)
    if isinstance(block, CsvBlock):
        return RawRows(*read_csv(block, columns))
    objects = read_objects(block.read(), columns)
    texts = [
        text_array(map(as_id if name in ids else as_text, column))
        for name, column in zip(columns, objects.columns, strict=True)
    ]
    return RawRows(pa.table(texts, names=columns), objects.lines, objects.bad, objects.n_lines)
