"""Quotation marks and records against a reader that goes through a text byte by byte."""

import random

import pytest

from etl.raw import quoting
from etl.raw.quoting import count_lines, end_of_records, ends_with_returns, find_quotes, find_records

LINE_ENDS = b"\r\n"


def quoted_until(data: bytes, mark: int, delimiter: bytes, returns: bool) -> int:
    """Where the field ends that a mark at a field's start opens; -1 where it opens none."""
    place = mark + 1
    while (place := data.find(b'"', place)) >= 0:
        after = data[place + 1 : place + 2]
        if after != b'"':
            ends = after in (delimiter, b"\n", b"") or (after == b"\r" and is_line_end(data, place + 1, returns))
            return place + 1 if ends else -1
        place += 2
    return -1


def is_line_end(data: bytes, place: int, returns: bool) -> bool:
    return returns or data[place + 1 : place + 2] in (b"\n", b"")


def read_slowly(data: bytes, delimiter: bytes, returns: bool) -> tuple[list[tuple[int, int]], list[int]]:
    """The records that are not blank, from start to line end, and the marks at a field's start that open none."""
    records, stray, place, start, at_start = [], [], 0, 0, True
    while place < len(data):
        if at_start and data[place : place + 1] == b'"':
            end = quoted_until(data, place, delimiter, returns)
            if end >= 0:
                place, at_start = end, False
                continue
            stray.append(place)
        byte = data[place : place + 1]
        at_start = byte == delimiter
        if byte == b"\n" or (byte == b"\r" and (returns or data[place + 1 : place + 2] == b"\n")):
            place += data[place : place + 2] == b"\r\n"
            records.append((start, place))
            start, at_start = place + 1, True
        place += 1
    records += [(start, len(data))] if start < len(data) else []
    return [(start, end) for start, end in records if data[start:end] not in (b"", b"\r")], stray


def n_lines(data: bytes, returns: bool) -> int:
    if returns:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return data.count(b"\n") + (data[-1:] not in (b"", b"\n"))


@pytest.mark.parametrize("returns", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_records_and_marks_are_those_of_a_reader_byte_by_byte(seed, returns):
    draw = random.Random(seed)
    for _ in range(3_000):
        data, more = (bytes(draw.choices(b'"""",,\n\rab', k=draw.randrange(24))) for _ in range(2))
        records, stray = read_slowly(data, b",", returns)
        quotes = find_quotes(data, b",", returns)
        found = find_records(data, quotes, returns)
        assert quotes.stray.tolist() == stray, data
        assert list(zip(found.starts.tolist(), found.ends.tolist(), strict=True)) == records, data
        assert found.n_lines == count_lines(data, returns) == n_lines(data, returns), data
        assert found.lines.tolist() == [n_lines(data[:start], returns) for start, _ in records], data
        cut = end_of_records(data, b",", returns)
        assert cut == 0 or data[:cut][-1] in LINE_ENDS
        before, after = (read_slowly(part, b",", returns)[0] for part in (data[:cut], (data + more)[cut:]))
        whole = read_slowly(data + more, b",", returns)[0]
        assert before + [(start + cut, end + cut) for start, end in after] == whole, (data, more)


@pytest.mark.parametrize(
    ("data", "delimiter", "returns"),
    [
        (b"a,b\rc", b",", True),
        (b"a,b\r\nc\r", b",", False),
        (b'"a\rb",c\nd\r', b",", False),
        (b'"a\nb",c\rd\n', b",", True),
        (b'"a\rb', None, True),
        (b"abc", b",", False),
        (b"", b",", False),
    ],
)
def test_the_first_line_tells_what_ends_lines(data, delimiter, returns):
    assert ends_with_returns(data, delimiter) is returns


def test_a_field_too_long_to_be_one_is_none(monkeypatch):
    monkeypatch.setattr(quoting, "LONGEST_FIELD", 10)
    data = b'a,"123456789"\nb,"1234567890"\n"x'
    quotes = find_quotes(data, b",", at_end=False)
    assert quotes.opening.tolist() == [2]
    assert quotes.stray.tolist() == [data.index(b'"1234567890')]
    assert quotes.decided == data.index(b'"x')
    assert end_of_records(data + b"y\n" * 9, b",") == len(data) + 18


def test_a_stray_mark_takes_no_line_beyond_a_mebibyte_with_it():
    data = b'a,"x\n' + b"b,y\n" * (1 << 18) + b'c,z"\n'
    assert find_quotes(data, b",").stray.tolist() == [2]
