"""Quotation marks and records against a reader that goes through a text byte by byte."""

import random

import pytest

from etl.raw import quoting
from etl.raw.quoting import count_lines, end_of_records, find_quotes, find_records

LINE_ENDS = b"\r\n"


def quoted_until(data: bytes, mark: int, delimiter: bytes) -> int:
    """Where the field ends that a mark at a field's start opens; -1 where it opens none."""
    place = mark + 1
    while (place := data.find(b'"', place)) >= 0:
        after = data[place + 1 : place + 2]
        if after != b'"':
            return place + 1 if after in (delimiter, b"\n", b"\r", b"") else -1
        place += 2
    return -1


def read_slowly(data: bytes, delimiter: bytes) -> tuple[list[tuple[int, int]], list[int]]:
    """The records that are not blank, from start to line end, and the marks at a field's start that open none."""
    records, stray, place, start, at_start = [], [], 0, 0, True
    while place < len(data):
        if at_start and data[place : place + 1] == b'"':
            end = quoted_until(data, place, delimiter)
            if end >= 0:
                place, at_start = end, False
                continue
            stray.append(place)
        byte = data[place : place + 1]
        at_start = byte == delimiter
        if byte in (b"\n", b"\r"):
            place += data[place : place + 2] == b"\r\n"
            records.append((start, place))
            start, at_start = place + 1, True
        place += 1
    records += [(start, len(data))] if start < len(data) else []
    return [(start, end) for start, end in records if data[start:end].strip(LINE_ENDS)], stray


@pytest.mark.parametrize("seed", range(4))
def test_records_and_marks_are_those_of_a_reader_byte_by_byte(seed):
    draw = random.Random(seed)
    for _ in range(4_000):
        data, more = (bytes(draw.choices(b'"""",,\n\rab', k=draw.randrange(24))) for _ in range(2))
        records, stray = read_slowly(data, b",")
        quotes = find_quotes(data, b",")
        found = find_records(data, quotes)
        assert quotes.stray.tolist() == stray, data
        assert list(zip(found.starts.tolist(), found.ends.tolist(), strict=True)) == records, data
        assert found.n_lines == count_lines(data) == len(data.splitlines()), data
        assert found.lines.tolist() == [len(data[:start].splitlines()) for start, _ in records], data
        cut = end_of_records(data, b",")
        assert cut == 0 or data[:cut][-1] in LINE_ENDS
        before, after = read_slowly(data[:cut], b",")[0], read_slowly((data + more)[cut:], b",")[0]
        whole = read_slowly(data + more, b",")[0]
        assert before + [(start + cut, end + cut) for start, end in after] == whole, (data, more)


def test_a_field_too_long_to_be_one_is_none(monkeypatch):
    monkeypatch.setattr(quoting, "LONGEST_FIELD", 10)
    data = b'a,"123456789"\nb,"1234567890"\n"x'
    quotes = find_quotes(data, b",", at_end=False)
    assert quotes.opening.tolist() == [2]
    assert quotes.stray.tolist() == [data.index(b'"1234567890')]
    assert quotes.decided == data.index(b'"x')
    assert end_of_records(data + b"y\n" * 9, b",") == len(data) + 18
