"""Arrow files that appear whole or not at all."""

import os
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa


def write_batches(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Writes an Arrow IPC file beside `path` and renames it into place."""
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Reads an Arrow IPC file into memory."""
    with pa.OSFile(str(path)) as file:
        options = None
        if columns is not None:
            schema = pa.ipc.open_file(file).schema
            options = pa.ipc.IpcReadOptions(included_fields=[schema.get_field_index(name) for name in columns])
        return pa.ipc.open_file(file, options=options).read_all()
