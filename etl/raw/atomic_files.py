"""RecBole's atomic files: tab-separated, with a header of `name:type`."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from seqrec_jax.errors import InputError


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


def _columns(path: Path) -> list[str]:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        header = file.readline().rstrip("\r\n")
    return [column.rsplit(":", 1)[0] for column in header.split("\t")]


def _first_bad_row(path: Path, is_bad: Callable[[list[str]], bool]) -> tuple[int, list[str]]:
    """Line number, counted from 1, and fields of the first row for which is_bad holds."""
    with path.open(encoding="utf-8", errors="replace") as file:
        next(file)
        for number, line in enumerate(file, 2):
            fields = line.rstrip("\r\n").split("\t")
            if line.strip("\r\n") and is_bad(fields):
                return number, fields
    raise AssertionError(f"{path}: no bad row found")


def read(path: Path, required: Sequence[str]) -> pa.Table:
    """Reads an atomic file, every column as text, the types dropped from the names.

    Raises:
        InputError: the file is empty, lacks a column, has a row of another width, or is not UTF-8.
    """
    names = _columns(path)
    for name in required:
        if name not in names:
            raise InputError(f"{path}, line 1: column {name!r} is missing; the header has {', '.join(names)}")
    try:
        table = csv.read_csv(
            path,
            read_options=csv.ReadOptions(column_names=names, skip_rows=1),
            parse_options=csv.ParseOptions(delimiter="\t", quote_char=False, double_quote=False),
            convert_options=csv.ConvertOptions(
                column_types={name: pa.string() for name in names}, strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid as error:
        text = " ".join(str(error).split())
        if "Expected" in text and "columns" in text:
            number, fields = _first_bad_row(path, lambda fields: len(fields) != len(names))
            raise InputError(f"{path}, line {number}: has {len(fields)} columns, the header {len(names)}") from error
        if "Empty CSV" in text:  # nothing at all after the header
            raise InputError(f"{path}: has no rows") from error
        if "UTF8" in text:
            raise InputError(f"{path}: is not UTF-8 ({text})") from error
        raise InputError(f"{path}: {text}") from error
    if not table.num_rows:
        raise InputError(f"{path}: has no rows")
    return table


def numbers(path: Path, table: pa.Table, column: str) -> np.ndarray:
    """A column of finite numbers: [rows] float64.

    Raises:
        InputError: a value is none; the message names its line.
    """

    def is_number(text: str) -> bool:
        try:
            return bool(np.isfinite(float(text)))
        except ValueError:
            return False

    try:
        values = pc.cast(pc.utf8_trim_whitespace(table[column]), pa.float64()).to_numpy()
        if np.isfinite(values).all():
            return values
        cause = None
    except pa.ArrowInvalid as error:
        cause = error
    place = table.schema.get_field_index(column)
    number, fields = _first_bad_row(path, lambda fields: not is_number(fields[place]))
    raise InputError(f"{path}, line {number}: column {column!r} is {fields[place]!r}, which is no number") from cause
