"""Chosen columns of CSV, JSON lines and Parquet files, a block of rows at a time, with the rows that cannot be read."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import csv, parquet

from etl.raw.bad_rows import BadRow
from etl.raw.files import kind_of
from etl.raw.json_lines import as_text, read_objects
from etl.raw.text_blocks import TextBlock, text_blocks
from seqrec_jax.errors import InputError

_PARQUET_ROWS = 1 << 19


class ParquetBlock(NamedTuple):
    """Rows first .. first + n - 1 of a Parquet file's row group."""

    path: str
    row_group: int
    first: int
    n: int
    file_bytes: int


Block = TextBlock | ParquetBlock


class RawRows(NamedTuple):
    """A block's rows as they are in the file, but for those that cannot be read.

    Attributes:
        table: [n], a column for each that was asked for.
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


def csv_names(path: Path, header: Sequence[str] | None) -> list[str]:
    """Names of a CSV or TSV file's columns: the given ones, or those in its first line."""
    if header:
        return list(header)
    first = next(text_blocks(path, 1 << 16)).read().split(b"\n", 1)[0]
    return first.decode("utf-8-sig", "replace").rstrip("\r").replace('"', "").split(_delimiter(path))


def _delimiter(path: Path) -> str:
    return "\t" if kind_of(path) == "tsv" else ","


def table_blocks(path: Path, columns: Sequence[str], header: Sequence[str] | None, block_bytes: int) -> Iterator[Block]:
    """Cuts a file into blocks, in its order, after a check that it has the columns.

    Raises:
        InputError: a column is missing, or the file is damaged.
    """
    if kind_of(path) == "parquet":
        yield from _parquet_blocks(path, columns)
        return
    if kind_of(path) != "json":
        names = csv_names(path, header)
        for column in columns:
            if column not in names:
                raise InputError(f"{path}, line 1: column {column!r} is missing; it has {', '.join(names)}")
    yield from text_blocks(path, block_bytes)


def read_block(block: Block, types: Mapping[str, pa.DataType], header: Sequence[str] | None) -> RawRows:
    """Reads a block's columns.

    Args:
        block: of `table_blocks`.
        types: of the columns. Where a number cannot be read, its column comes as text; JSON's always do.
        header: names of a CSV file's columns where its first line is none.
    """
    if isinstance(block, ParquetBlock):
        file = parquet.ParquetFile(block.path)
        table = file.read_row_group(block.row_group, columns=list(types), use_threads=False)
        return RawRows(table.slice(block.first, block.n), None, [], block.n)
    if kind_of(Path(block.path)) == "json":
        return _read_json(block, list(types))
    return _read_csv(block, dict(types), header)


def _parquet_blocks(path: Path, columns: Sequence[str]) -> Iterator[ParquetBlock]:
    try:
        metadata = parquet.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise InputError(f"{path}: is no Parquet file ({error})") from error
    for column in columns:
        if column not in metadata.schema_arrow.names:
            raise InputError(f"{path}: column {column!r} is missing; it has {', '.join(metadata.schema_arrow.names)}")
    for group in range(metadata.num_row_groups):
        rows = metadata.metadata.row_group(group).num_rows
        for first in range(0, rows, _PARQUET_ROWS):
            n = min(_PARQUET_ROWS, rows - first)
            size = metadata.metadata.row_group(group).total_byte_size * n // max(1, rows)
            yield ParquetBlock(str(path), group, first, n, size)


def _read_csv(block: TextBlock, types: dict[str, pa.DataType], header: Sequence[str] | None) -> RawRows:
    path, data = Path(block.path), block.read()
    names = csv_names(path, header)
    n_lines = data.count(b"\n") + (not data.endswith(b"\n") if data else 0)
    skip = int(not header and block.start == 0)
    wrong: list[csv.InvalidRow] = []
    bad: list[BadRow] = []

    def leave_out(row: csv.InvalidRow) -> str:
        wrong.append(row)
        return "skip"

    table = None
    while table is None:
        wrong.clear()
        try:
            table = csv.read_csv(
                pa.BufferReader(data),
                csv.ReadOptions(use_threads=False, block_size=len(data) + 1, column_names=names, skip_rows=skip),
                csv.ParseOptions(delimiter=_delimiter(path), invalid_row_handler=leave_out),
                csv.ConvertOptions(column_types=types, include_columns=list(types), strings_can_be_null=False),
            )
        except pa.ArrowInvalid as error:
            numbers = [name for name, kind in types.items() if kind == pa.float32()]
            if "Empty CSV" in str(error):
                table = pa.table({name: pa.array([], kind) for name, kind in types.items()})
            elif "UTF8" in str(error) and not bad:
                data, bad = _without_broken_text(data)
            elif numbers:
                types |= dict.fromkeys(numbers, pa.string())
            else:
                raise InputError(f"{path}: {' '.join(str(error).split())}") from error
    if not wrong and table.num_rows == n_lines:
        return RawRows(table, None, bad, n_lines)
    counted = _lines_with_text(data)  # The ordinals of wrong rows count these, the header among them.
    for row in wrong:
        reason = f"has {row.actual_columns} columns, not {row.expected_columns}"
        bad.append(BadRow.of(int(counted[row.number - 1]) + 1, reason, row.text))
    kept = np.ones(len(counted), bool)
    kept[:skip] = False
    kept[[row.number - 1 for row in wrong]] = False
    return RawRows(table, counted[kept], bad, n_lines)


def _lines_with_text(data: bytes) -> np.ndarray:
    """Ordinals of the lines that are not blank."""
    text = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(text == ord("\n"))
    if not data.endswith(b"\n"):
        ends = np.append(ends, len(text))
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts
    only_return = (lengths == 1) & (text[np.minimum(starts, len(text) - 1)] == ord("\r"))
    return np.flatnonzero((lengths > 0) & ~only_return)


def _without_broken_text(data: bytes) -> tuple[bytes, list[BadRow]]:
    """The lines, those that are not UTF-8 blanked; and these."""
    lines, bad = data.split(b"\n"), []
    for ordinal, line in enumerate(lines):
        try:
            line.decode()
        except UnicodeDecodeError:
            bad.append(BadRow.of(ordinal + 1, "is not UTF-8", line))
            lines[ordinal] = b""
    return b"\n".join(lines), bad


def _read_json(block: TextBlock, columns: list[str]) -> RawRows:
    objects = read_objects(block.read(), columns)
    texts = [pa.array(map(as_text, column), pa.large_string()) for column in objects.columns]
    return RawRows(pa.table(texts, names=columns), objects.lines, objects.bad, objects.n_lines)
