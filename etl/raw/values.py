"""What the values of a column mean, whatever its type: ids, texts, times, numbers, and which are none.

Text comes as bytes, as it is in the file. A function that a column's type makes no sense for raises an InputError.
"""

import datetime
import math
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from etl.raw.json_lines import as_text
from seqrec_jax.errors import InputError

UNITS_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
NANOSECONDS = UNITS_PER_SECOND["ns"]
FIRST_SECOND, END_SECOND = 788_918_400, 2_082_758_400  # 1995-01-01 up to 2036-01-01, UTC
LONGEST_ID = 128
_OUTSIDE = -1
_SINGLE = pa.float32()
_NUMBER = r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"
_IS_NUMBER = re.compile(_NUMBER, re.ASCII)
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)

Faults = dict[str, np.ndarray]
"""Which rows are wrong, [n] bool, by reason."""


def shown(column: pa.ChunkedArray, row: int) -> str:
    """A value as it is shown where it is wrong."""
    value = column[row]
    try:
        value = (value.cast(pa.string()) if pt.is_temporal(column.type) else value).as_py()
    except (ValueError, pa.ArrowException):  # a time beyond the calendar has no text
        return "?"
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


def _is_text(kind: pa.DataType) -> bool:
    views = kind in (pa.string_view(), pa.binary_view())
    return views or pt.is_string(kind) or pt.is_large_string(kind) or pt.is_binary(kind) or pt.is_large_binary(kind)


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column without a dictionary; one without a type as text."""
    if pt.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.cast(pa.large_string()) if pt.is_null(column.type) else column


def utf8(column: pa.ChunkedArray) -> tuple[pa.Array, np.ndarray | None]:
    """Bytes or text as [n] large_string, null where it is not UTF-8; and where that is, if anywhere."""
    data = column.cast(pa.large_binary())
    data = data.chunk(0) if data.num_chunks == 1 else data.combine_chunks()
    try:
        return data.cast(pa.large_string()), None
    except pa.ArrowInvalid:
        values = data.to_pylist()
    wrong = np.zeros(len(values), bool)
    for row, value in enumerate(values):
        try:
            (value or b"").decode()
        except UnicodeDecodeError:
            values[row], wrong[row] = None, True
    return pa.array(values, pa.large_binary()).cast(pa.large_string()), wrong


def texts(column: pa.ChunkedArray, where: str) -> tuple[pa.Array, Faults]:
    """A column of texts, [n] string, what is missing as an empty one."""
    column = _plain(column)
    if _is_text(column.type):
        values, wrong = utf8(column)
        values = values.fill_null("").cast(pa.string())
        return values, {} if wrong is None else {"is not UTF-8": wrong}
    if pt.is_temporal(column.type) or pt.is_decimal(column.type):
        return pa.array([text or "" for text in column.cast(pa.string()).to_pylist()], pa.string()), {}
    if not (pt.is_integer(column.type) or pt.is_floating(column.type)):
        raise InputError(f"{where} has type {column.type}, which is no text; make a column of text of it")
    return pa.array([as_text(value) or "" for value in column.to_pylist()], pa.string()), {}


def ids(column: pa.ChunkedArray, name: str, where: str) -> tuple[pa.Array, Faults]:
    """A column of ids, [n] large_string. A number has one text, whatever its type: 7, 7.0 and 7.00 are `7`."""
    column, faults = _plain(column), {}
    kind = column.type
    if pt.is_integer(kind):
        column = column.cast(pa.large_string())
    elif pt.is_decimal(kind):
        text = pc.replace_substring_regex(column.cast(pa.string()), r"\.0*$", "")
        column = pc.replace_substring_regex(text, r"(\.\d*[1-9])0+$", r"\1")
    elif pt.is_floating(kind):
        column, faults[f"{name} is no exact number"] = _float_ids(column)
    elif not _is_text(kind):
        raise InputError(f"{where} has type {kind}, which is no id; make text or whole numbers of it")
    values, wrong = utf8(column)
    if wrong is not None:
        faults[f"{name} is not UTF-8"] = wrong
    if values.null_count:
        values = values.fill_null("")
    lengths = np.diff(np.frombuffer(values.buffers()[1], np.int64)[values.offset : values.offset + len(values) + 1])
    faults[f"{name} is empty"] = lengths == 0
    faults[f"{name} is longer than {LONGEST_ID} bytes"] = lengths > LONGEST_ID
    if values.buffers()[2] is not None and not np.frombuffer(values.buffers()[2], np.uint8).all():
        has_nul = pc.match_substring(values, "\0").to_numpy(zero_copy_only=False)
        faults[f"{name} has a NUL character"] = has_nul
    return values, faults


def _float_ids(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, np.ndarray]:
    """Ids that were made floats, as text; what is beyond their precision may be another number than it was."""
    values = column.to_numpy()
    exact = np.abs(values) < 2.0 ** (np.finfo(values.dtype).nmant + 1)
    inexact = ~exact & ~np.isnan(values)
    whole = exact & (values == np.floor(values))
    numbers = pa.array(np.where(whole, values, 0).astype(np.int64), mask=~whole).cast(pa.large_string())
    if (fractions := np.flatnonzero(exact & ~whole)).size:
        text = numbers.to_pylist()
        for row in fractions:
            text[row] = str(values[row])
        numbers = pa.array(text, pa.large_string())
    return pa.chunked_array([numbers]), inexact


def numbers(column: pa.ChunkedArray, where: str, kind: pa.DataType = _SINGLE) -> tuple[np.ndarray, np.ndarray]:
    """A column's numbers, [n] of a type of floats, and which are none."""
    column = _plain(column)
    if _is_text(column.type):
        text = utf8(column)[0]
        try:
            column = text.cast(kind)
        except pa.ArrowInvalid:
            text = pc.utf8_trim_whitespace(text)
            column = pc.if_else(pc.match_substring_regex(text, f"^({_NUMBER})$"), text, None).cast(kind)
    elif not (pt.is_integer(column.type) or pt.is_floating(column.type) or pt.is_decimal(column.type)):
        raise InputError(f"{where} has type {column.type}, which is no number; make numbers of it")
    values = column.cast(kind, safe=False).fill_null(float("nan")).to_numpy(zero_copy_only=False)
    return values, ~np.isfinite(values)


def times(column: pa.ChunkedArray, unit: str, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Nanoseconds since 1970, [n] int64, negative where they are before 1995 or after 2035; and which are none.

    Args:
        column: times, dates, numbers, or text of either.
        unit: of numbers, or 'iso' where text is dates; times and dates have their own.
        where: file and column, for an error.
    """
    column = _plain(column)
    kind = column.type
    if pt.is_timestamp(kind):
        return _integer_times(column.cast(pa.int64()), kind.unit)
    if pt.is_date(kind):
        return _integer_times(column.cast(pa.date64()).cast(pa.int64()), "ms")
    if _is_text(kind):
        text = utf8(column)[0]
        return _dates(text) if unit == "iso" else _text_times(text, unit)
    if unit != "iso":
        if pt.is_integer(kind):
            return _integer_times(column, unit)
        if pt.is_floating(kind):
            return _float_times(column.cast(pa.float64()), unit)
        if pt.is_decimal(kind):
            return _text_times(column.cast(pa.large_string()).combine_chunks(), unit)
    what = "date; bind the unit to 's', 'ms', 'us' or 'ns'" if unit == "iso" else "time; make numbers or times of it"
    raise InputError(f"{where} has type {kind}, which is no {what}")


def dates_among(column: pa.ChunkedArray, unit: str, no_time: np.ndarray) -> Faults:
    """Which of the texts that are no numbers are dates, as where the unit should be 'iso'.

    Args:
        column: as of `times`.
        unit: in which some are no times.
        no_time: [n] bool, which.
    """
    if unit == "iso" or not no_time.any() or not _is_text(_plain(column).type):
        return {}
    dates = no_time.copy()
    dates[no_time] = times(column.filter(pa.array(no_time)), "iso", "")[0] >= 0
    return {f"timestamp is a date, but InteractionFiles.unit = {unit!r} (UNIT) wants numbers, and 'iso' dates": dates}


def of_another_unit(column: pa.ChunkedArray, unit: str, outside: np.ndarray) -> Faults:
    """Which of the times outside 1995 to 2035 are within it in another unit, as where two units are mixed.

    Args:
        column: as of `times`.
        unit: in which they are outside.
        outside: [n] bool.
    """
    faults = {}
    for other in UNITS_PER_SECOND if outside.any() else ():
        if other != unit:
            within = outside.copy()
            within[outside] = times(column.filter(pa.array(outside)), other, "")[0] >= 0
            reason = f"timestamp is outside 1995..2035 in InteractionFiles.unit = {unit!r}, but not in {other!r}"
            faults[reason] = within
    return faults


def _in_unit(values: np.ndarray, unit: str) -> np.ndarray:
    """Which times lie from 1995 to 2035."""
    units = UNITS_PER_SECOND[unit]
    return (values >= FIRST_SECOND * units) & (values < END_SECOND * units)


def _integer_times(column: Any, unit: str) -> tuple[np.ndarray, np.ndarray]:
    none = column.is_null().to_numpy(zero_copy_only=False)
    values = (column.fill_null(0) if none.any() else column).to_numpy()
    inside = _in_unit(values, unit)
    values = values.astype(np.int64, copy=False) * (NANOSECONDS // UNITS_PER_SECOND[unit])
    return values if inside.all() else np.where(inside, values, _OUTSIDE), none


def _float_times(column: pa.ChunkedArray, unit: str) -> tuple[np.ndarray, np.ndarray]:
    values = column.fill_null(float("nan")).to_numpy()
    inside, nanoseconds = _in_unit(values, unit), NANOSECONDS // UNITS_PER_SECOND[unit]
    values_inside = np.where(inside, values, 0)
    whole = np.floor(values_inside)
    nanos = whole.astype(np.int64) * nanoseconds + np.rint((values_inside - whole) * nanoseconds).astype(np.int64)
    return np.where(inside, nanos, _OUTSIDE), ~np.isfinite(values)


def whole_numbers(text: pa.Array) -> pa.Array:
    """Text as int64; an ArrowInvalid where a value is none, as 0x5F is, which Arrow's cast would take."""
    letters = np.frombuffer(text.buffers()[2] or b"", np.uint8)
    if (letters == ord("x")).any() or (letters == ord("X")).any():
        raise pa.ArrowInvalid("hexadecimal")
    return text.cast(pa.int64())


def _text_times(text: pa.Array, unit: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        return _integer_times(whole_numbers(text), unit)
    except pa.ArrowInvalid:
        text = pc.utf8_trim_whitespace(text)
    units = UNITS_PER_SECOND[unit]
    whole, fraction = len(str(END_SECOND * units)), len(str(NANOSECONDS // units)) - 1
    plain = pc.match_substring_regex(text, rf"^\d{{1,{whole}}}(\.\d{{0,{fraction}}})?$").fill_null(False)
    decimals = pc.if_else(plain, text, "0").cast(pa.decimal128(38, fraction))
    # Its lower 64 bits, which hold every number of that many digits, are the time in nanoseconds.
    nanos = np.frombuffer(decimals.buffers()[1], "<u8")[2 * decimals.offset :][: 2 * len(decimals) : 2]
    result = np.where(_in_unit(nanos, "ns"), nanos, 0).astype(np.int64)
    result[result == 0] = _OUTSIDE
    return _one_by_one(text, ~plain.to_numpy(zero_copy_only=False), result, lambda value: _number(value, units))


def _number(text: str, units: int) -> int:
    """Nanoseconds of a number in any notation; a ValueError if it is none."""
    if not _IS_NUMBER.fullmatch(text) or math.isinf(number := float(text)):
        raise ValueError(text)
    inside = FIRST_SECOND * units <= number < END_SECOND * units
    return int(Decimal(text) * (NANOSECONDS // units)) if inside else _OUTSIDE


def _dates(text: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Of ISO 8601 texts, UTC where they name no zone."""
    for zone in (None, "UTC"):
        try:
            return _integer_times(text.cast(pa.timestamp("ns", zone)).cast(pa.int64()), "ns")
        except pa.ArrowInvalid:
            continue
    text = pc.utf8_trim_whitespace(text)
    return _one_by_one(text, np.ones(len(text), bool), np.full(len(text), _OUTSIDE), _date)


def _date(text: str) -> int:
    """Nanoseconds of an ISO 8601 text; a ValueError if it is none."""
    date = datetime.datetime.fromisoformat(text)
    date = date if date.tzinfo else date.replace(tzinfo=datetime.UTC)
    second = (date.replace(microsecond=0) - _EPOCH) // datetime.timedelta(seconds=1)
    fraction = re.search(r"[.,](\d{1,9})", text)
    inside = FIRST_SECOND <= second < END_SECOND
    return second * NANOSECONDS + int(fraction[1].ljust(9, "0") if fraction else 0) if inside else _OUTSIDE


def _one_by_one(
    text: pa.Array, rows: np.ndarray, result: np.ndarray, read: Callable[[str], int]
) -> tuple[np.ndarray, np.ndarray]:
    """Puts the times of some rows into the result; and which of them are none."""
    none = np.zeros(len(text), bool)
    for row in np.flatnonzero(rows):
        try:
            result[row] = read(text[row].as_py() or "")
        except (ValueError, OverflowError):
            none[row] = True
    return result, none
