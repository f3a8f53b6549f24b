"""Which quotation marks of a delimited text stand around a field (RFC 4180), and where its records therefore end.

A mark at a field's start opens a quoted field only if a later mark, not doubled, closes it just before a delimiter or a
line's end, at most `LONGEST_FIELD` bytes away. Every other mark outside a quoted field is a character like any other.
A line ends with a line feed, also after a carriage return. Where a file's first line ends with a carriage return alone,
so can all of its lines; elsewhere one alone is a character like any other.
"""

from typing import NamedTuple

import numpy as np

LONGEST_FIELD = 1 << 20
_MARK, _LF, _CR = b'"\n\r'


class Quotes(NamedTuple):
    """The quotation marks of a text that matter, as ascending positions.

    Attributes:
        opening: marks that open a quoted field, and the second ones of doubled marks within one.
        closing: marks that close what the one of the same place in `opening` opens.
        stray: marks at a field's start that open none.
        decided: where the text stops being understood: the mark of a field that goes on after it, or its length.
    """

    opening: np.ndarray
    closing: np.ndarray
    stray: np.ndarray
    decided: int

    def around(self, positions: np.ndarray) -> np.ndarray:
        """Which of some positions lie in a quoted field: [n] -> [n] bool."""
        if not len(self.opening):
            return np.zeros(len(positions), bool)
        before = np.searchsorted(self.opening, positions) - 1
        return (before >= 0) & (self.closing[before] > positions)


class Records(NamedTuple):
    """Records of a text that are not blank.

    Attributes:
        starts: [n] position of each one's first byte.
        ends: [n] position of the line end after each.
        lines: [n] ordinals of the lines on which they begin.
        n_lines: lines of the text.
    """

    starts: np.ndarray
    ends: np.ndarray
    lines: np.ndarray
    n_lines: int


class _Marks:
    """All quotation marks of a text, and which of them can open or close a field.

    Fields follow each other while the marks open and close in turn, so a run of good fields ends at its first fault.

    Attributes:
        places: [n] position of each.
        next_start: [n + 1] the first mark from each on that stands at a field's start; n where none does.
    """

    def __init__(self, data: bytes, delimiter: bytes, returns: bool):
        text = np.frombuffer(data, np.uint8)
        separates = np.zeros(256, bool)
        separates[[delimiter[0], _LF, *([_CR] if returns else [])]] = True
        self.places = np.flatnonzero(text == _MARK)
        self._starts = separates[text[self.places - 1]]
        self._starts[:1] |= self.places[:1] == 0
        doubled = np.diff(self.places) == 1
        self._can_open = self._starts.copy()
        self._can_open[1:] |= doubled
        after, second = (text[np.minimum(self.places + n, len(text) - 1)] for n in (1, 2))
        at_end = self.places >= len(text) - 2
        self._can_close = separates[after] | ((after == _CR) & ((second == _LF) | at_end))
        self._can_close[-1:] |= self.places[-1:] == len(text) - 1
        self._can_close[:-1] |= doubled
        self._too_long = len(text) > LONGEST_FIELD
        self._of_parity: dict[int, tuple[memoryview, memoryview]] = {}
        self.next_start = self._next(self._starts)

    @staticmethod
    def _next(chosen: np.ndarray) -> memoryview:
        """The first chosen mark from each on; a memory view, whose elements are read faster than an array's."""
        n = len(chosen)
        following = np.full(n + 1, n, np.int32)
        following[:-1][chosen] = np.flatnonzero(chosen)
        return np.minimum.accumulate(following[::-1])[::-1].data

    def of_parity(self, parity: int) -> tuple[memoryview, memoryview]:
        """The last field's start up to each mark, and the first fault from it on, where every second mark opens.

        Args:
            parity: of the ordinals of the marks that open.
        """
        if parity not in self._of_parity:
            n, opens, closes = len(self.places), slice(parity, None, 2), slice(1 - parity, None, 2)
            started = np.full(n, -1, np.int32)
            started[opens] = np.where(self._starts[opens], np.arange(n, dtype=np.int32)[opens], -1)
            started = np.maximum.accumulate(started)
            fault = np.empty(n, bool)
            fault[opens], fault[closes] = ~self._can_open[opens], ~self._can_close[closes]
            if self._too_long:
                fault[closes] |= self.places[closes] - self.places[started[closes]] > LONGEST_FIELD
            self._of_parity[parity] = started.data, self._next(fault)
        return self._of_parity[parity]


def find_quotes(data: bytes, delimiter: bytes, returns: bool = False, at_end: bool = True) -> Quotes:
    """Tells a text's quotation marks apart.

    Args:
        data: begins with a record.
        delimiter: one byte.
        returns: whether a carriage return alone ends a line.
        at_end: whether nothing follows; otherwise a field may be closed later.
    """
    marks = _Marks(data, delimiter, returns)
    places, n = marks.places, len(marks.places)
    runs, stray, first, decided = [], [], marks.next_start[0], len(data)
    while first < n:
        started, next_fault = marks.of_parity(first % 2)
        end = next_fault[first]
        if (end - first) % 2 == 0:  # Outside the fields: a mark that is part of an unquoted one.
            runs.append((first, end))
            first = marks.next_start[min(end + 1, n)]
            continue
        opened = started[min(end, n - 1)]  # This field is closed wrongly, or not at all.
        runs.append((first, opened))
        if end == n and not at_end and len(data) - places[opened] <= LONGEST_FIELD:
            decided = int(places[opened])
            break
        stray.append(opened)
        first = marks.next_start[opened + 1]
    starts, ends = np.array(runs, np.int64).reshape(-1, 2).T  # Each of an even number of marks.
    lengths = ends - starts
    within = places[np.arange(lengths.sum()) + np.repeat(starts - np.cumsum(lengths) + lengths, lengths)]
    return Quotes(within[::2], within[1::2], places[stray], decided)


def end_of_records(data: bytes, delimiter: bytes | None, returns: bool = False) -> int:
    """Where the last record ends that is certain to be whole, whatever follows; 0 where none is.

    Args:
        data: begins with a record.
        delimiter: one byte; None for a text without quotation, whose lines are its records.
        returns: whether a carriage return alone ends a line.
    """
    bound, quotes = len(data), None
    if delimiter is not None and b'"' in data:
        quotes = find_quotes(data, delimiter, returns, at_end=False)
        bound = quotes.decided
    while True:
        end = data.rfind(b"\n", 0, bound)
        if returns:
            end = max(end, data.rfind(b"\r", end + 1, min(bound, len(data) - 1)))
        within = -1 if quotes is None else int(np.searchsorted(quotes.opening, end)) - 1
        if quotes is None or end < 0 or within < 0 or quotes.closing[within] < end:
            return end + 1
        bound = int(quotes.opening[within])


def count_lines(data: bytes, returns: bool = False) -> int:
    """Lines of a text, the last of which need not be ended."""
    if not data:
        return 0
    ends = data.count(b"\n") + (data.count(b"\r") - data.count(b"\r\n") if returns else 0)
    return ends + (data[-1] not in (b"\r\n" if returns else b"\n"))


def lone_returns(data: bytes) -> np.ndarray:
    """Positions of the carriage returns that no line feed follows."""
    if b"\r" not in data:
        return np.zeros(0, np.int64)
    text = np.frombuffer(data, np.uint8)
    found = np.flatnonzero(text == _CR)
    return found[text[np.minimum(found + 1, len(text) - 1)] != _LF]


def ends_with_returns(data: bytes, delimiter: bytes | None) -> bool:
    """Whether a carriage return alone ends a file's first line, judged by its first bytes."""
    if not len(lone_returns(data)):
        return False
    quotes = None if delimiter is None else find_quotes(data, delimiter, returns=True)
    end = find_records(data, quotes, returns=True).ends[:1]
    return bool(len(end) and data[end[0] : end[0] + 1] == b"\r")


def find_records(data: bytes, quotes: Quotes | None, returns: bool = False) -> Records:
    """The records of a text, which begins and ends with one; `returns` as above."""
    text = np.frombuffer(data, np.uint8)
    is_end = text == _LF
    if returns:
        is_end[lone_returns(data)] = True
    ends = np.flatnonzero(is_end)
    if data and not is_end[-1]:
        ends = np.append(ends, len(data))
    last_lines = np.arange(len(ends)) if quotes is None else np.flatnonzero(~quotes.around(ends))
    lines = np.concatenate([[0], last_lines[:-1] + 1]).astype(np.int64)[: len(last_lines)]
    ends_of_records = ends[last_lines]
    starts = np.concatenate([[0], ends_of_records[:-1] + 1])[: len(last_lines)]
    only_return = (ends_of_records - starts == 1) & (text[np.minimum(starts, len(text) - 1)] == _CR)
    some = (ends_of_records > starts) & ~only_return
    return Records(starts[some], ends_of_records[some], lines[some], len(ends))
