"""RecBole's atomic files: tab-separated, with a header of `name:type`, and nothing quoted."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from etl.raw import values
from etl.raw.csv_blocks import csv_blocks, read_csv
from etl.raw.text_blocks import BLOCK_BYTES
from seqrec_jax.errors import InputError

_LONGEST_TIME = 2.0**62


class AtomicRows(NamedTuple):
    """Columns of an atomic file.

    Attributes:
        path: the file.
        table: [n], a column of large_string for each that was asked for and is there; no types in the names.
        lines: [n] int64, the rows' lines, counted from 1.
    """

    path: Path
    table: pa.Table
    lines: np.ndarray

    def refuse(self, row: int, column: str, what: str) -> NoReturn:
        """Raises an InputError that names a value's place."""
        raise InputError(f"{self.path}, line {self.lines[row]}: column {column!r} is {what}; mend or remove the line")


def find(source: Path, suffix: str) -> Path:
    """The one file of a folder with a suffix.

    Raises:
        InputError: no folder, or not exactly one such file.
    """
    if not source.is_dir():
        raise InputError(f"{source}: no such folder; bind SOURCE to a folder of atomic files")
    found = sorted(source.glob(f"*{suffix}"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise InputError(f"{source}: needs exactly one *{suffix} file, has {names}")
    return found[0]


def _columns(path: Path, header: Sequence[str], required: Sequence[str], optional: Sequence[str]) -> dict[str, str]:
    """Names with their types, by those without, of the columns to read."""
    names = [name.rsplit(":", 1)[0] for name in header]
    for name in required:
        if name not in names:
            raise InputError(f"{path}, line 1: column {name!r} is missing; the header has {', '.join(names)}")
    found = {bare: name for bare, name in zip(names, header, strict=True) if bare in (*required, *optional)}
    for bare in found:
        if names.count(bare) > 1:
            raise InputError(f"{path}, line 1: has {names.count(bare)} columns {bare!r}; rename all but one")
    return found


def read(path: Path, required: Sequence[str], optional: Sequence[str] = ()) -> AtomicRows:
    """Reads columns of an atomic file as text.

    Args:
        path: the file.
        required: columns that must be there, ids among them, which must not be empty.
        optional: columns to read where they are there.

    Raises:
        InputError: the file is empty, lacks a column or has one twice, has a row of another width, a value that is not
            UTF-8, or an id that is empty or holds a NUL character.
    """
    tables, lines, before, columns = [], [], 0, None
    for block in csv_blocks(path, b"\t", None, BLOCK_BYTES, quoted=False):
        columns = columns or _columns(path, block.names, required, optional)
        table, ordinals, bad, n_lines = read_csv(block, list(columns.values()))
        if bad:
            raise InputError(f"{path}, line {before + bad[0].line}: {bad[0].reason}: {bad[0].text}; mend the line")
        lines.append(before + 1 + (np.arange(n_lines) if ordinals is None else ordinals))
        tables.append(table.rename_columns(list(columns)))
        before += n_lines
    if not sum(table.num_rows for table in tables):
        raise InputError(f"{path}: has no rows")
    rows = AtomicRows(path, pa.concat_tables(tables), np.concatenate(lines))
    for place, name in enumerate(rows.table.column_names):
        text, wrong = values.utf8(rows.table[name])
        if wrong is not None:
            rows.refuse(int(np.flatnonzero(wrong)[0]), name, "not UTF-8")
        if name.endswith("_id") and (empty := pc.index(text, "").as_py()) >= 0:
            rows.refuse(empty, name, "empty")
        if name.endswith("_id") and (nul := pc.index(pc.match_substring(text, "\0"), True).as_py()) >= 0:
            rows.refuse(nul, name, "an id with a NUL character")
        rows = rows._replace(table=rows.table.set_column(place, name, text))
    return rows


def numbers(rows: AtomicRows, column: str, kind: pa.DataType) -> np.ndarray:
    """A column of finite numbers: [n] of a type of floats.

    Raises:
        InputError: a value is none; the message names its line.
    """
    found, wrong = values.numbers(rows.table[column], f"{rows.path}: column {column!r}", kind)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        rows.refuse(row, column, f"{rows.table[column][row].as_py()!r}, which is no number")
    return found


def times(rows: AtomicRows, column: str) -> tuple[np.ndarray, int]:
    """A column of times, [n] int64, with what the file says of their order; and how many are a second.

    Raises:
        InputError: a value is no number, or too large; the message names its line.
    """
    text = pc.utf8_trim_whitespace(rows.table[column])
    try:
        return values.whole_numbers(text.combine_chunks()).to_numpy(), 1
    except pa.ArrowInvalid:
        seconds = numbers(rows, column, pa.float64())
    largest = float(np.abs(seconds).max())
    if largest > _LONGEST_TIME:
        rows.refuse(int(np.abs(seconds).argmax()), column, "too large for a time")
    digits = max(k for k in range(10) if largest * 10**k <= _LONGEST_TIME)
    whole = np.floor(seconds)
    try:  # Decimals of nine digits tell times apart that are the same in floating point.
        exact = pc.subtract(
            text.cast(pa.decimal128(29, 9)), pa.array(whole.astype(np.int64)).cast(pa.decimal128(19, 0))
        )
        fraction = exact.cast(pa.float64()).to_numpy()
    except pa.ArrowInvalid:
        fraction = seconds - whole
    units = 10**digits
    return whole.astype(np.int64) * units + np.rint(fraction * units).astype(np.int64), units
