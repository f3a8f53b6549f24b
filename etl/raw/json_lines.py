"""Chosen fields of JSON objects, one a line; the rest of an object is passed over without being built."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from etl.raw.bad_rows import BadRow

_EXACT = 2.0**53  # below it no two whole numbers have the same float
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Objects(NamedTuple):
    """What a block of lines holds.

    Attributes:
        columns: of each field that was asked for, its values; None where an object lacks it.
        lines: [n] int64, ordinals of the objects' lines.
        bad: lines that are no objects.
        n_lines: lines in all.
    """

    columns: list[list[Any]]
    lines: np.ndarray
    bad: list[BadRow]
    n_lines: int


@lru_cache
def _decoder(fields: tuple[str, ...]) -> tuple[Callable[[bytes], Any], Callable[..., Any]]:
    """What makes a record of a line, and a record of values."""
    names = [f"field_{ordinal}" for ordinal in range(len(fields))]
    typed = [(name, Any, None) for name in names]
    record = msgspec.defstruct("Record", typed, rename=dict(zip(names, fields, strict=True)), gc=False)
    return msgspec.json.Decoder(record).decode, record


def read_objects(data: bytes, fields: Sequence[str]) -> Objects:
    """Reads chosen fields of a block of lines; blank lines are passed over."""
    decode, record = _decoder(tuple(fields))
    if b"\r" in data and data.count(b"\r") != data.count(b"\r\n"):  # Some end lines by themselves.
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    lines = data.split(b"\n")
    if not lines[-1]:
        lines.pop()
    bad: list[BadRow] = []
    places: Sequence[int] = range(len(lines))
    try:
        records = list(map(decode, lines))
    except _UNREADABLE:
        records, places = _read_one_by_one(lines, fields, decode, record, bad)
    columns = [list(map(attrgetter(f"field_{ordinal}"), records)) for ordinal in range(len(fields))]
    return Objects(columns, np.array(places, np.int64), bad, len(lines))


def _read_one_by_one(
    lines: list[bytes],
    fields: Sequence[str],
    decode: Callable[[bytes], Any],
    record: Callable[..., Any],
    bad: list[BadRow],
) -> tuple[list[Any], list[int]]:
    """Records and their lines' ordinals; adds the lines that are no objects to `bad`."""
    records, places = [], []
    for ordinal, line in enumerate(lines):
        try:
            records.append(decode(line))
        except _UNREADABLE:
            if not line.strip():
                continue
            try:  # Python's own reader lets escapes pass that are no Unicode by themselves.
                loose = json.loads(line)
                records.append(record(*(loose.get(field) for field in fields)))
            except (ValueError, AttributeError, RecursionError):
                bad.append(BadRow.of(ordinal + 1, "is not a JSON object", line))
                continue
        places.append(ordinal)
    return records, places


def as_text(value: Any) -> str | None:
    """A field as text: numbers as they are written, anything else that is no text as None."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def as_id(value: Any) -> str | None:
    """A field as an id: a number has one text, so 7.0 is `7`; None where it is none, or not exact."""
    if not isinstance(value, float):
        return as_text(value)
    if not abs(value) < _EXACT:  # Nor is NaN.
        return None
    return str(int(value)) if value.is_integer() else str(value)


def text_array(texts: Iterable[str | None]) -> pa.Array:
    """Texts as bytes, [n] large_binary; a surrogate without the other makes bytes that are not UTF-8."""
    values = list(texts)
    try:
        return pa.array(values, pa.large_string()).cast(pa.large_binary())
    except UnicodeEncodeError:
        return pa.array([text and text.encode("utf-8", "surrogatepass") for text in values], pa.large_binary())
