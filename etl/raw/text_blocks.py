"""Text files, plain or gzipped, cut into blocks of whole records that workers read independently of each other."""

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple

from isal import igzip_threaded
from isal.igzip_lib import IsalError

from etl.raw.quoting import end_of_records, ends_with_returns
from seqrec_jax.errors import InputError, in_short

BLOCK_BYTES = 16 << 20
LONGEST_RECORD = 32 << 20
_GZIP_MAGIC = b"\x1f\x8b"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_BYTES_TO_JUDGE = 1 << 16


class TextBlock(NamedTuple):
    """Whole records of a text file.

    Attributes:
        path: the file.
        start: first byte of the (decompressed) text.
        stop: byte after the last one.
        data: the text itself, where the file is compressed; or a file that holds nothing else.
        file_bytes: bytes of the file, as it lies on the disk, that the block stands for.
        returns: whether carriage returns alone end the file's lines.
    """

    path: str
    start: int
    stop: int
    data: memoryview | Path | None
    file_bytes: int
    returns: bool

    def read(self) -> bytes:
        """The block's text."""
        if isinstance(self.data, Path):
            return self.data.read_bytes()
        if self.data is not None:
            return bytes(self.data)
        with open(self.path, "rb") as file:
            file.seek(self.start)
            return file.read(self.stop - self.start)

    def put_aside(self, path: Path) -> "TextBlock":
        """The same block with its text in a file, which other processes read faster than they are sent the text."""
        if not isinstance(self.data, memoryview):
            return self
        path.write_bytes(self.data)
        return self._replace(data=path)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BufferedReader, BufferedReader]]:
    """A file and its text; one that was compressed twice, as Amazon's metadata is, is taken apart twice."""
    with path.open("rb") as raw:
        if path.suffix != ".gz":
            yield raw, raw
            return
        with igzip_threaded.open(raw, "rb", threads=1) as once:
            if once.peek(2)[:2] != _GZIP_MAGIC:
                yield raw, once
                return
            with igzip_threaded.open(once, "rb", threads=1) as twice:
                yield raw, twice


def _line_at(path: Path, position: int, returns: bool) -> int:
    """The line, counted from 1, at a position of the text."""
    line = 1
    with _opened(path) as (_, file):
        while position and (text := file.read(min(position, BLOCK_BYTES))):
            position -= len(text)
            line += text.count(b"\n") + (text.count(b"\r") - text.count(b"\r\n") if returns else 0)
    return line


def text_blocks(path: Path, block_bytes: int = BLOCK_BYTES, delimiter: bytes | None = None) -> Iterator[TextBlock]:
    """Cuts a file into blocks of about block_bytes (of text), in the file's order, without a byte order mark.

    Args:
        path: the file.
        block_bytes: of a block, or as many more as the record has that begins in it.
        delimiter: between fields that quotation marks may enclose, line breaks and all; None where every line is a
            record.

    Raises:
        InputError: a compressed file is truncated or damaged, or a record is longer than `LONGEST_RECORD`; raised when
            the blocks before it have been given.
    """
    told, compressed = 0, path.suffix == ".gz"
    try:
        with _opened(path) as (_, file):
            returns = ends_with_returns(file.read(_BYTES_TO_JUDGE).removeprefix(_BYTE_ORDER_MARK), delimiter)
        with _opened(path) as (raw, file):
            pending = file.read(len(_BYTE_ORDER_MARK))
            start = len(pending) if pending == _BYTE_ORDER_MARK else 0
            pending = pending[start:]
            is_whole = False
            while not is_whole:
                missing = block_bytes - len(pending)
                text = file.read(missing if missing > 0 else block_bytes)
                is_whole = not (text and file.peek(1))
                pending = b"".join((pending, text)) if pending else text
                cut = len(pending) if is_whole else end_of_records(pending, delimiter, returns)
                if not cut and len(pending) > LONGEST_RECORD:
                    place = f"{path}, line {_line_at(path, start, returns)}"
                    raise InputError(f"{place}: is longer than {LONGEST_RECORD >> 20} MB, so it is no row; remove it")
                if cut:
                    at = raw.tell() if compressed else start + cut
                    data = memoryview(pending)[:cut] if compressed else None
                    yield TextBlock(str(path), start, start + cut, data, at - told, returns)
                    start, told, pending = start + cut, at, pending[cut:]
    except (EOFError, gzip.BadGzipFile, IsalError) as error:  # type: ignore[misc]  # The stub has an instance.
        raise InputError(f"{path}: is truncated or no gzip file ({in_short(error)}); fetch it again") from error
