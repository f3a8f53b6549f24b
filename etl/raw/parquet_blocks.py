"""Parquet files: blocks of rows that lie in one row group."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from etl.raw.text_blocks import LONGEST_RECORD
from seqrec_jax.errors import InputError

MOST_ROWS = 1 << 19
_BLOCK_BYTES = 64 << 20
_LARGEST_BLOCK = 512 << 20
_BLOCKS_READ_BY_WORKERS = 2
_ROWS_TO_JUDGE = 1 << 12


class ParquetBlock(NamedTuple):
    """Rows first .. first + n - 1 of a Parquet file's row group.

    Attributes:
        path: the file.
        row_group: which.
        first: row of the group.
        n: rows.
        file_bytes: bytes of the file that the block stands for.
        data: the rows, where the row group is so large that it is read once for all; or an Arrow file that holds them.
    """

    path: str
    row_group: int
    first: int
    n: int
    file_bytes: int
    data: pa.RecordBatch | Path | None = None

    def put_aside(self, path: Path) -> "ParquetBlock":
        """The same block with its rows in a file, where they are not in one already."""
        if not isinstance(self.data, pa.RecordBatch):
            return self
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, self.data.schema) as writer:
            writer.write_batch(self.data)
        return self._replace(data=path)

    def read(self, columns: Sequence[str]) -> pa.Table:
        """The block's columns."""
        if isinstance(self.data, Path):
            with pa.OSFile(str(self.data)) as file:
                return pa.ipc.open_file(file).read_all()
        if self.data is not None:
            return pa.Table.from_batches([self.data])
        with _opened(Path(self.path)) as file:
            here, pieces = 0, []
            for batch in _batches(file, self.row_group, columns, self.n):
                if here + batch.num_rows > self.first:
                    pieces.append(batch.slice(max(0, self.first - here), self.first + self.n - max(here, self.first)))
                here += batch.num_rows
                if here >= self.first + self.n:
                    break
        return pa.Table.from_batches(pieces)


@contextmanager
def _opened(path: Path, dictionaries: Sequence[str] = ()) -> Iterator[parquet.ParquetFile]:
    """A file, whose pages are read one by one, some columns as dictionaries; an InputError where it is damaged."""
    try:
        with parquet.ParquetFile(
            path, read_dictionary=list(dictionaries), buffer_size=1 << 20, pre_buffer=False
        ) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, FileNotFoundError | MemoryError):
            raise
        raise InputError(f"{path}: is no Parquet file, or damaged ({' '.join(str(error).split())})") from error


def _batches(file: parquet.ParquetFile, row_group: int, columns: Sequence[str], n: int) -> Iterator[pa.RecordBatch]:
    return file.iter_batches(n, row_groups=[row_group], columns=list(columns), use_threads=False)


def parquet_blocks(path: Path, columns: Sequence[str]) -> Iterator[ParquetBlock]:
    """Cuts a file into blocks, in its order.

    A row group of more than two blocks is read here, once, as no part of it can be read without those before it.

    Raises:
        InputError: a column is missing or not the only one of its name, a row is longer than `LONGEST_RECORD`, or the
            file is damaged.
    """
    with _opened(path) as file:
        names = file.schema_arrow.names
        for column in columns:
            if column not in names:
                raise InputError(f"{path}: column {column!r} is missing; it has {', '.join(names)}")
            if names.count(column) > 1:
                raise InputError(f"{path}: has {names.count(column)} columns {column!r}; rename all but one")
        paths = [column.path for column in file.schema if column.physical_type == "BYTE_ARRAY"]
        texts = [text for text in paths if text.split(".")[0] in columns]
        for group in range(file.num_row_groups):
            about = file.metadata.row_group(group)
            if not about.num_rows:
                continue
            chunks = [about.column(place) for place in range(about.num_columns)]
            chunks = [chunk for chunk in chunks if chunk.path_in_schema.split(".")[0] in columns]
            size = sum(chunk.total_uncompressed_size for chunk in chunks)
            _check_row(path, group, size // about.num_rows)
            most = min(MOST_ROWS, _BLOCK_BYTES * about.num_rows // max(1, size))
            for column, longest in _longest(path, group, texts, max(1, min(_ROWS_TO_JUDGE, most))).items():
                _check_row(path, group, longest)
                values = sum(chunk.num_values for chunk in chunks if chunk.path_in_schema.split(".")[0] == column)
                most = min(most, _LARGEST_BLOCK * about.num_rows // max(1, longest * values))
            for block in _blocks_of_group(file, path, group, columns, max(1, most)):
                share = about.total_byte_size * block.n // about.num_rows
                yield block._replace(file_bytes=share)


def _check_row(path: Path, group: int, size: int) -> None:
    if size > LONGEST_RECORD:
        raise InputError(
            f"{path}, row group {group + 1}: a row of {size >> 20} MB is no row, where {LONGEST_RECORD >> 20} MB are "
            "allowed; remove it"
        )


def _longest(path: Path, group: int, texts: Sequence[str], n: int) -> dict[str, int]:
    """Bytes of the longest text of each column's dictionary, which any number of rows may have though it is there once.

    Args:
        path: the file.
        group: which row group.
        texts: paths of the columns in the schema.
        n: rows to read at a time, until a value has come of every column, and with it the dictionary.
    """
    found: dict[str, int] = {}
    with _opened(path, texts) as file:
        for batch in _batches(file, group, texts, n) if texts else ():
            for name, column in zip(batch.schema.names, batch.columns, strict=True):
                while pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
                    column = column.flatten()
                if pa.types.is_dictionary(column.type):
                    lengths = pc.binary_length(column.dictionary.cast(pa.large_binary()))
                    found[name] = max(pc.max(lengths).as_py() or 0, found.get(name, 0))
            if all(found.values()):
                break
    return found


def _blocks_of_group(
    file: parquet.ParquetFile, path: Path, group: int, columns: Sequence[str], most: int
) -> Iterator[ParquetBlock]:
    rows = file.metadata.row_group(group).num_rows
    if rows <= _BLOCKS_READ_BY_WORKERS * most:
        for first in range(0, rows, most):
            yield ParquetBlock(str(path), group, first, min(most, rows - first), 0)
        return
    first = 0
    for batch in _batches(file, group, columns, most):
        yield ParquetBlock(str(path), group, first, batch.num_rows, 0, batch)
        first += batch.num_rows
