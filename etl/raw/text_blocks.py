"""Text files, plain or gzipped, cut into blocks of whole lines that workers read independently of each other."""

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from isal import igzip_threaded
from isal.igzip_lib import IsalError

from seqrec_jax.errors import InputError

BLOCK_BYTES = 16 << 20
_GZIP_MAGIC = b"\x1f\x8b"


class TextBlock(NamedTuple):
    """Whole lines of a text file.

    Attributes:
        path: the file.
        start: byte of the (decompressed) text from which on the block's first line begins.
        stop: byte before which its last line begins.
        data: the lines themselves, where the file is compressed; or a file that holds nothing else.
        file_bytes: bytes of the file, as it lies on the disk, that the block stands for.
    """

    path: str
    start: int
    stop: int
    data: bytes | Path | None
    file_bytes: int

    def read(self) -> bytes:
        """The block's lines."""
        if isinstance(self.data, Path):
            return self.data.read_bytes()
        if self.data is not None:
            return self.data
        with open(self.path, "rb") as file:
            file.seek(max(0, self.start - 1))
            if self.start:
                file.readline()  # The line that began in the block before, which has it whole.
            first = file.tell()
            if first >= self.stop:
                return b""
            data = file.read(self.stop - first)
            return data if data.endswith(b"\n") else data + file.readline()

    def put_aside(self, path: Path) -> "TextBlock":
        """The same block with its lines in a file, which other processes read faster than they are sent the lines."""
        if not isinstance(self.data, bytes):
            return self
        path.write_bytes(self.data)
        return self._replace(data=path)


@contextmanager
def _decompressed(path: Path) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """A gzip file and its text; a file that was compressed twice, as Amazon's metadata is, is taken apart twice."""
    with path.open("rb") as raw, igzip_threaded.open(raw, "rb", threads=1) as once:
        if once.peek(2)[:2] != _GZIP_MAGIC:
            yield raw, once
            return
        with igzip_threaded.open(once, "rb", threads=1) as twice:
            yield raw, twice


def _gzip_blocks(path: Path, block_bytes: int) -> Iterator[TextBlock]:
    rest, start, told = b"", 0, 0
    try:
        with _decompressed(path) as (raw, file):
            while text := file.read(block_bytes):
                cut = text.rfind(b"\n") + 1
                if cut:
                    at, lines = raw.tell(), b"".join((rest, memoryview(text)[:cut]))
                    yield TextBlock(str(path), start, start + len(lines), lines, at - told)
                    start, told, rest = start + len(lines), at, text[cut:]
                else:
                    rest += text
    except (EOFError, gzip.BadGzipFile, IsalError) as error:  # type: ignore[misc]  # The stub has an instance.
        raise InputError(f"{path}: is truncated or no gzip file ({error}); fetch it again") from error
    if rest:
        yield TextBlock(str(path), start, start + len(rest), rest, path.stat().st_size - told)


def text_blocks(path: Path, block_bytes: int = BLOCK_BYTES) -> Iterator[TextBlock]:
    """Cuts a file into blocks of about block_bytes (of text), in the file's order.

    Raises:
        InputError: a compressed file is truncated or damaged; raised when the blocks before it have been given.
    """
    if path.suffix == ".gz":
        yield from _gzip_blocks(path, block_bytes)
        return
    size = path.stat().st_size
    for start in range(0, size, block_bytes):
        stop = min(size, start + block_bytes)
        yield TextBlock(str(path), start, stop, None, stop - start)
