"""CSV and TSV files: blocks of whole records, and the columns of a block as bytes."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from etl.raw.bad_rows import BadRow
from etl.raw.quoting import Quotes, count_lines, find_quotes, find_records, lone_returns
from etl.raw.text_blocks import TextBlock, text_blocks
from seqrec_jax.errors import InputError

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_CONTROLS = [code for code in range(1, 32) if code not in b"\t\n\r"]


class CsvBlock(NamedTuple):
    """Whole records of a CSV file.

    Attributes:
        text: where they are.
        delimiter: between their fields.
        names: of the file's columns.
        header_bytes: of the header at the block's start.
        quoted: whether quotation marks can stand around fields.
    """

    text: TextBlock
    delimiter: bytes
    names: list[str]
    header_bytes: int
    quoted: bool

    @property
    def path(self) -> str:
        """The file."""
        return self.text.path

    @property
    def file_bytes(self) -> int:
        """Bytes of the file that the block stands for."""
        return self.text.file_bytes

    def put_aside(self, path: Path) -> "CsvBlock":
        """The same block with its text in a file, where it is not in one already."""
        return self._replace(text=self.text.put_aside(path))


def csv_blocks(
    path: Path, delimiter: bytes, header: Sequence[str] | None, block_bytes: int, quoted: bool = True
) -> Iterator[CsvBlock]:
    """Cuts a file into blocks, in its order.

    Args:
        path: the file.
        delimiter: one byte.
        header: names of the columns where the file's first line has none.
        block_bytes: of text in a block.
        quoted: whether quotation marks can stand around fields, which then may hold delimiters and line breaks.
    """
    names, header_bytes = list(header or ()), 0
    for block in text_blocks(path, block_bytes, delimiter if quoted else None):
        if not names:
            names, header_bytes = _read_header(block, delimiter, quoted)
        yield CsvBlock(block, delimiter, names, header_bytes, quoted)
        header_bytes = 0
    if not names:
        raise InputError(f"{path}: has no header, nor anything else")


def _read_header(block: TextBlock, delimiter: bytes, quoted: bool) -> tuple[list[str], int]:
    """Names of the columns, and how many bytes the line of names has."""
    data = block.read()
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise InputError(f"{block.path}: is UTF-16, not UTF-8; convert it (iconv -f UTF-16 -t UTF-8)")
    quotes = find_quotes(data if quoted else b"", delimiter, block.returns)
    records = find_records(data, quotes, block.returns)
    if not len(records.starts):
        return [""], len(data)
    first, end = int(records.starts[0]), int(records.ends[0])
    commas = first + np.flatnonzero(np.frombuffer(data[first:end], np.uint8) == delimiter[0])
    cuts = [first - 1, *commas[~quotes.around(commas)], end]
    fields = [data[start + 1 : stop] for start, stop in itertools.pairwise(cuts)]
    fields[-1] = fields[-1].removesuffix(b"\r")
    for place, start in enumerate(cuts[:-1]):
        if start + 1 in quotes.opening:
            fields[place] = fields[place][1:-1].replace(b'""', b'"')
    after = int(records.starts[1]) if len(records.starts) > 1 else len(data)
    return [field.decode("utf-8", "replace") for field in fields], after


def read_csv(block: CsvBlock, columns: Sequence[str]) -> tuple[pa.Table, np.ndarray | None, list[BadRow], int]:
    """Reads a block.

    Returns:
        The columns, [n] large_binary; ordinals of their rows' lines in the block, or None where row i is line i; rows
        of another width; and how many lines the block has.
    """
    whole, returns = block.text.read(), block.text.returns
    lines_before, data = count_lines(whole[: block.header_bytes], returns), whole[block.header_bytes :]
    quotes = find_quotes(data, block.delimiter, returns) if block.quoted and b'"' in data else None
    table, wrong = _parse(data, block, columns, quotes)
    n_lines = count_lines(data, returns)
    if not (wrong or lines_before) and table.num_rows == n_lines:
        return table, None, [], n_lines
    records = find_records(data, quotes, returns)
    bad = []
    for number, width in wrong:
        text = data[records.starts[number] : records.ends[number]]
        line = lines_before + int(records.lines[number]) + 1
        bad.append(BadRow.of(line, f"has {width} columns, not {len(block.names)}", text))
    lines = np.delete(records.lines, [number for number, _ in wrong]) + lines_before
    return table, lines, bad, lines_before + n_lines


def _parse(
    data: bytes, block: CsvBlock, columns: Sequence[str], quotes: Quotes | None
) -> tuple[pa.Table, list[tuple[int, int]]]:
    """Columns of a block's records as bytes, and ordinal and width of the records of another width.

    Marks that open no field and carriage returns that end no line stand for themselves; Arrow, which would take them to
    do so, is given control characters that do not occur in their place.
    """
    wrong: list[tuple[int, int]] = []

    def leave_out(row: csv.InvalidRow) -> str:
        wrong.append((row.number - 1, row.actual_columns))
        return "skip"

    names, hidden = block.names, {}
    if quotes is not None and len(quotes.stray):
        hidden[b'"'] = quotes.stray
    if not block.text.returns and len(returns := lone_returns(data)[: -1 if data.endswith(b"\r") else None]):
        hidden[b"\r"] = returns
    placeholders = [bytes([code]) for code in _CONTROLS if bytes([code]) not in data] if hidden else []
    if len(placeholders) < len(hidden):
        raise InputError(f"{block.path}: holds every control character beside stray marks or returns; remove them")
    if not _is_utf8(data):
        data = _plain_where_wide(data, block, quotes)
    if hidden:
        text = np.frombuffer(data, np.uint8).copy()
        for placeholder, places in zip(placeholders, hidden.values(), strict=False):
            text[places] = placeholder[0]
        data = text.tobytes()
    if data.startswith(_BYTE_ORDER_MARK):  # A character here, which Arrow would drop.
        data = b"\n" + data
    try:
        table = csv.read_csv(
            pa.BufferReader(data),
            csv.ReadOptions(use_threads=False, block_size=len(data) + 1, column_names=names),
            csv.ParseOptions(
                delimiter=block.delimiter.decode(),
                quote_char=False if quotes is None else '"',
                newlines_in_values=quotes is not None,
                invalid_row_handler=leave_out,
            ),
            csv.ConvertOptions(
                column_types=dict.fromkeys(columns, pa.large_binary()),
                include_columns=columns,
                strings_can_be_null=False,
                check_utf8=False,
            ),
        )
    except pa.ArrowInvalid as error:
        if "Empty CSV" not in str(error):
            raise InputError(f"{block.path}: {' '.join(str(error).split())}") from error
        table = pa.table({name: pa.array([], pa.large_binary()) for name in columns})
    for placeholder, character in zip(placeholders, hidden, strict=False):
        shown = [pc.replace_substring(column, placeholder, character) for column in table.columns]
        table = pa.table(shown, names=table.column_names)
    return table, wrong


def _is_utf8(data: bytes) -> bool:
    try:
        return data.isascii() or bool(data.decode())
    except UnicodeDecodeError:
        return False


def _plain_where_wide(data: bytes, block: CsvBlock, quotes: Quotes | None) -> bytes:
    """The text with the records of another width in ASCII: Arrow, which tells of them, cannot do so in bad UTF-8."""
    text, records = np.frombuffer(data, np.uint8).copy(), find_records(data, quotes, block.text.returns)
    delimiters = np.flatnonzero(text == block.delimiter[0])
    if quotes is not None:
        delimiters = delimiters[~quotes.around(delimiters)]
    widths = np.searchsorted(delimiters, records.ends) - np.searchsorted(delimiters, records.starts) + 1
    for record in np.flatnonzero(widths != len(block.names)):
        fields = text[records.starts[record] : records.ends[record]]
        fields[fields > 127] = ord("?")
    return text.tobytes()
