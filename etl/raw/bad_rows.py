"""Rows that cannot be read: named by file and line, tolerated up to a bound."""

from collections import Counter
from typing import NamedTuple

from seqrec_jax.describe import shown
from seqrec_jax.errors import InputError

_EXAMPLES_PER_REASON = 5
_LONGEST_TEXT = 120
_MOST_LISTED = 100_000
_ENOUGH_TO_JUDGE = 1_000_000


class BadRow(NamedTuple):
    """A row that was left out because it cannot be read.

    Attributes:
        line: counted from 1, in its block or, after `BadRows.add`, in its file.
        reason: the same words for the same kind of fault, for counting.
        text: the row, cut.
    """

    line: int
    reason: str
    text: str

    @staticmethod
    def of(line: int, reason: str, row: str | bytes) -> "BadRow":
        """A bad row with its text cut to a readable length, and made harmless for a terminal."""
        text = row.decode("utf-8", "backslashreplace") if isinstance(row, bytes) else row
        return BadRow(line, reason, shown(text.rstrip("\r\n"), _LONGEST_TEXT))


class BadRows:
    """Counts bad rows over a step's files and stops where there are too many.

    Args:
        most: largest share of bad rows among a step's rows, in [0, 1].

    Attributes:
        counts: bad rows by reason.
        examples: a few of each reason, a line each: file, line, reason, text.
        listed: file and row of the first 100,000, the row's line counted in its file.
    """

    def __init__(self, most: float):
        self.counts: Counter[str] = Counter()
        self.examples: list[str] = []
        self.listed: list[tuple[str, BadRow]] = []
        self._most, self._rows, self._shown = most, 0, Counter[str]()

    def add(self, path: str, lines_before: int, rows: int, bad: list[BadRow]) -> None:
        """Adds a block's rows, good and bad, and fails early where the end is clear.

        Raises:
            InputError: more bad rows than the bound allows.
        """
        self._rows, path = self._rows + rows, shown(path)
        for row in bad:
            line = lines_before + row.line
            if len(self.listed) < _MOST_LISTED:
                self.listed.append((path, row._replace(line=line)))
            self.counts[row.reason] += 1
            if self._shown[row.reason] < _EXAMPLES_PER_REASON:
                self._shown[row.reason] += 1
                self.examples.append(f"{path}, line {line}: {row.reason}: {row.text}")
        self._check(max(self._rows, _ENOUGH_TO_JUDGE))

    def finish(self) -> None:
        """Checks the bound against all rows.

        Raises:
            InputError: more bad rows than the bound allows; the message names the first.
        """
        self._check(self._rows)

    def _check(self, rows: int) -> None:
        if (bad := sum(self.counts.values())) > self._most * rows:
            share = f"{bad:,} of {self._rows:,} rows are bad, above MAX_BAD_ROWS = {self._most:g}"
            raise InputError(f"{self.examples[0]} ({share}; mend the file, or raise MAX_BAD_ROWS to leave them out)")
