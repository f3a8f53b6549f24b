"""Arrow IPC files read in the place where they lie, with suspicion: nothing is unpacked, copied or looked up."""

import struct

import pyarrow as pa

_BEGIN, _END = b"ARROW1\0\0", b"ARROW1"
_HEADER, _COMPRESSION = 2, 3  # fields of the format's tables Message and RecordBatch


def _field(buffer: bytes, table: int, number: int) -> int:
    """Where a field of a table of a flatbuffer lies; 0 where the table has none."""
    vtable = table - struct.unpack_from("<i", buffer, table)[0]
    if 4 + 2 * number >= struct.unpack_from("<H", buffer, vtable)[0]:
        return 0
    offset = struct.unpack_from("<H", buffer, vtable + 4 + 2 * number)[0]
    return table + offset if offset else 0


def _is_packed(message: pa.ipc.Message) -> bool:
    """Whether the buffers of a record batch are compressed; pyarrow has checked the bounds of what is read here."""
    buffer = message.metadata.to_pybytes()
    header = _field(buffer, struct.unpack_from("<I", buffer)[0], _HEADER)
    batch = header + struct.unpack_from("<I", buffer, header)[0]
    return bool(_field(buffer, batch, _COMPRESSION))


def _is_plain(kind: pa.DataType) -> bool:
    """Whether a column is of numbers, times, truth values or texts, or of lists of those."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return not pa.types.is_nested(kind.value_type) and _is_plain(kind.value_type)
    return pa.types.is_primitive(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)


def read_table(file: pa.Buffer) -> pa.Table:
    """The table of a memory-mapped Arrow IPC file; its buffers are the file's.

    Reads the messages in their order, as a stream, and not by the places that the footer names.

    Raises:
        pa.ArrowException, ValueError: It is none, is packed, has a dictionary, or columns of odd types or equal names.
    """
    if file.size < len(_BEGIN + _END) or (file[: len(_BEGIN)], file[-len(_END) :]) != (_BEGIN, _END):
        raise ValueError("it is no Arrow IPC file, or is cut short")
    messages = iter(pa.ipc.MessageReader.open_stream(pa.BufferReader(file.slice(len(_BEGIN)))))
    if (first := next(messages, None)) is None:
        raise ValueError("it has no schema")
    schema = pa.ipc.read_schema(first)
    for field in schema:
        if not _is_plain(field.type):
            raise ValueError(f"column {field.name!r} is of type {field.type}")
    if len(set(schema.names)) < len(schema.names):
        raise ValueError("two columns have one name")
    batches = []
    for message in messages:
        if message.type != "record batch":
            raise ValueError(f"it holds a {message.type}")
        if _is_packed(message):
            raise ValueError("it is packed")
        batches.append(pa.ipc.read_record_batch(message, schema))
    return pa.Table.from_batches(batches, schema)
