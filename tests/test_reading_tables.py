"""Tables written by others come back whole, however small the blocks; anything else is counted or refused."""

import gzip
import io
import json
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, reject, settings
from hypothesis import strategies as st
from pyarrow import parquet
from tables import WRITERS, T, random_table, read_back

from etl.raw import atomic_files
from etl.raw.files import find_files
from etl.raw.item_files import ItemFiles, read_items
from etl.raw.values import NANOSECONDS
from seqrec_jax.errors import InputError

QUICK, MANY = 200, 10_000


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("write", WRITERS)
def test_a_table_comes_back_at_every_block_size(tmp_path, write, seed):
    draw = random.Random(seed)
    for delimiter, name in ((",", "log.csv"), ("\t", "log.tsv"), (",", "log.csv.gz")):
        table = random_table(draw)
        data = write(table, delimiter, draw)
        path = tmp_path / name
        path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
        is_good = [u != "" != i and "\0" not in u + i for u, i in zip(table.user, table.item, strict=True)]
        rows = list(zip(table.user, table.item, [time * NANOSECONDS for time in table.time], strict=True))
        first = None
        for block_bytes in [*range(1, 40), len(data) - 1, len(data), 1 << 20]:
            good, bad, lines = read_back(path, block_bytes)
            assert good == [row for row, fine in zip(rows, is_good, strict=True) if fine], (data, block_bytes)
            assert len(good) + len(bad) == len(rows)
            first = first or (bad, lines)
            assert (bad, lines) == first
        assert lines == data.count(b"\n") or not data.endswith(b"\n")


def test_a_stray_mark_takes_nothing_else_with_it(tmp_path):
    lines = [
        "user,item,time",
        'a,"x,1',
        f'b,"y" z,{T}',
        f'c,"1 ""q"" 2",{T}',
        f'd,7",{T}',
        f'"e"f,"two\nlines",{T}',
        '"',
    ]
    (tmp_path / "log.csv").write_text("\n".join(lines))
    for block_bytes in (1, 10, 1 << 20):
        good, bad, _ = read_back(tmp_path / "log.csv", block_bytes)
        items = [(user, item) for user, item, _ in good]
        assert items == [("b", '"y" z'), ("c", '1 "q" 2'), ("d", '7"'), ('"e"f', "two\nlines")]
        assert [(row.line, row.reason) for row in bad] == [
            (2, "timestamp is outside 1995..2035"),
            (8, "has 1 columns, not 3"),
        ]


def test_every_control_character_beside_a_stray_mark_is_refused(tmp_path):
    everything = "".join(chr(code) for code in range(1, 32) if chr(code) not in "\t\r\n")
    (tmp_path / "log.csv").write_text(f'user,item,time\na,"{everything},{T}\n')
    with pytest.raises(InputError, match=r"log\.csv: holds every control character"):
        read_back(tmp_path / "log.csv", 1 << 20)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"user,item,time,user\na,b,1,c\n", r"log\.csv, line 1: has 2 columns 'user'; rename all but one"),
        ("user,item,time\n".encode("utf-16"), r"log\.csv: is UTF-16, not UTF-8"),
        (b"\n\n", r"line 1: column 'user' is missing"),
        (b"\xef\xbb\xbf", r"log\.csv: has no header"),
    ],
)
def test_a_header_that_cannot_be_understood_is_refused(tmp_path, data, words):
    (tmp_path / "log.csv").write_bytes(data)
    with pytest.raises(InputError, match=words):
        read_back(tmp_path / "log.csv", 1 << 20)


def test_parquet_in_large_groups_is_read_once_and_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("etl.raw.parquet_blocks.MOST_ROWS", 10)
    table = pa.table({"user": [str(n) for n in range(64)], "item": range(64), "time": [T + n for n in range(64)]})
    found = []
    for rows in (64, 16, 7):
        parquet.write_table(table, tmp_path / "log.parquet", row_group_size=rows)
        good, bad, lines = read_back(tmp_path / "log.parquet", 1)
        assert (bad, lines) == ([], 64)
        found.append(good)
    assert found[0] == found[1] == found[2]
    assert [user for user, _, _ in good] == table["user"].to_pylist()
    blocks = list(ItemFiles(["log.parquet"], "user", {"t": "item"}, {"t": 1}).blocks(tmp_path / "log.parquet", 1))
    aside = [block.put_aside(tmp_path / f"{place}.text") for place, block in enumerate(blocks)]
    assert [block.read(["user"]) for block in aside] == [block.read(["user"]) for block in blocks]


def test_a_folder_stands_for_its_part_files(tmp_path):
    folder = tmp_path / "log.parquet"
    (folder / "day=2").mkdir(parents=True)
    for name in ("part-1.parquet", "part-0.snappy.parquet", "day=2/part-0.parquet", "_SUCCESS", ".part-0.parquet.crc"):
        (folder / name).write_text("x")
    (folder / "part-2.parquet").touch()
    expected = [folder / name for name in ("day=2/part-0.parquet", "part-0.snappy.parquet", "part-1.parquet")]
    assert find_files(tmp_path, ["log.parquet"], "FILES") == expected
    assert find_files(tmp_path, [str(tmp_path / "log.*")], "FILES") == expected
    for pattern, words in (
        ("", "holds an empty name"),
        ("a**", "no such file|no pattern"),
        ("/nowhere", "no such file"),
    ):
        with pytest.raises(InputError, match=words):
            find_files(tmp_path, [pattern], "FILES")


TEXT = st.text(st.sampled_from('",\t\r\n\ufeff\0 aé用"'), max_size=6) | st.text(max_size=4)
SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.sampled_from([T, T + 0.5, str(T), 10**400])
VALUE = st.recursive(SCALAR, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2))
LINES = st.lists(st.sampled_from(["a", "x", str(T), f"{T}.5", '"', '"a"', '"x\ny"', "", "\0", "é", "nan"]), max_size=5)
DELIMITED = st.lists(LINES, max_size=6)
JUNK = st.binary(max_size=12) | TEXT.map(lambda text: text.encode("utf-8", "surrogatepass"))
TYPES = [
    *(pa.int8(), pa.int64(), pa.uint64(), pa.float32(), pa.float64(), pa.bool_(), pa.string(), pa.large_string()),
    *(pa.binary(), pa.binary(4), pa.date32(), pa.date64(), pa.time64("us"), pa.null(), pa.list_(pa.string())),
    *(pa.timestamp("s"), pa.timestamp("ms"), pa.timestamp("us", "UTC"), pa.timestamp("ns"), pa.decimal128(20, 3)),
]


@st.composite
def arrow_tables(draw) -> pa.Table:
    n = draw(st.integers(0, 4))
    columns = {}
    for name in ("user", "item", "time", "rating"):
        kind = draw(st.sampled_from(TYPES))
        raw = np.frombuffer(draw(st.binary(min_size=64, max_size=64)), np.uint8)
        values = pa.array(raw[:n].tolist(), mask=raw[n : 2 * n] > 200) if n else pa.array([], pa.int64())
        if draw(st.booleans()) and pa.types.is_primitive(kind) and n and not pa.types.is_boolean(kind):
            buffer = pa.py_buffer(raw.tobytes()[: n * max(1, kind.bit_width // 8)])
            values = pa.Array.from_buffers(kind, n, [None, buffer])
        try:
            columns[name] = values.cast(kind, safe=False)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            columns[name] = pa.nulls(n, kind)
        if draw(st.booleans()) and kind in (pa.string(), pa.int64()):
            columns[name] = columns[name].dictionary_encode()
    return pa.table(columns)


def joined(lines: list[list[str]], header: str, delimiter: str, junk: bytes, end: str) -> bytes:
    text = [header, *(delimiter.join(line) for line in lines)]
    return end.join(text).encode() + junk


@st.composite
def raw_files(draw) -> tuple[str, bytes]:
    """A file's name and what it holds."""
    name = draw(st.sampled_from(["f.csv", "f.tsv", "f.jsonl", "f.parquet", "f.inter", "f.item"]))
    junk, end = draw(JUNK), draw(st.sampled_from(["\n", "\r\n", "\r"]))
    if name == "f.parquet":
        out = io.BytesIO()
        table = draw(arrow_tables())
        try:
            parquet.write_table(table, out)
        except pa.ArrowInvalid:  # seconds that milliseconds cannot hold
            reject()
        return name, out.getvalue()[: draw(st.sampled_from([None, None, None, -1, 7]))]
    if name == "f.jsonl":
        names = st.sampled_from(["user", "item", "time", "rating", "x"])
        objects = draw(st.lists(st.dictionaries(names, VALUE, max_size=5) | VALUE, max_size=5))
        return name, end.join(map(json.dumps, objects)).encode("utf-8", "surrogatepass") + junk
    if name in ("f.csv", "f.tsv"):
        delimiter = "," if name == "f.csv" else "\t"
        header = draw(st.sampled_from(["user,item,time,rating", '"user",item,"time","rating"', "user,item,time"]))
        return name, joined(draw(DELIMITED), header.replace(",", delimiter), delimiter, junk, end)
    header = "user_id:token\titem_id:token\ttimestamp:float\trating:float"
    return name, joined(
        draw(DELIMITED), header if name == "f.inter" else "item_id:token\ttitle:token_seq", "\t", junk, end
    )


def lines_of(data: bytes) -> list[bytes]:
    """Lines of a text without quotation that are not blank; a carriage return alone ends them if it ends the first."""
    if (first := re.search(rb"\r?\n|\r", data)) and first[0] == b"\r":
        return [line for line in re.split(rb"\r?\n|\r", data) if line]
    return [line for line in data.split(b"\n") if line.removesuffix(b"\r")]


def n_rows(name: str, data: bytes) -> int | None:
    """How many rows a file has, where that can be told without reading it."""
    if name == "f.jsonl":
        text = data.removeprefix(b"\xef\xbb\xbf").replace(b"\r", b"\n")
        return sum(bool(line.strip()) for line in text.split(b"\n"))
    if name == "f.parquet":
        return parquet.read_metadata(io.BytesIO(data)).num_rows
    return None if b'"' in data else len(lines_of(data)) - 1


@contextmanager
def refusing(name: str) -> Iterator[None]:
    """Lets an InputError of one line pass that names the file."""
    try:
        yield
    except InputError as error:
        if "\n" in str(error) or name not in str(error):
            raise


def check(folder: Path, name: str, data: bytes) -> None:
    """Reads a file in every way that there is: rows in are rows out and rejected, or an InputError says why not."""
    path = folder / name
    path.write_bytes(data)
    if name in ("f.inter", "f.item"):
        with refusing(name):
            required = ["user_id", "item_id", "timestamp"] if name == "f.inter" else ["item_id", "title"]
            rows = atomic_files.read(path, required, ["rating"])
            assert rows.table.num_rows == len(rows.lines) == len(lines_of(data)) - 1
            if name == "f.inter":
                times, units = atomic_files.times(rows, "timestamp")
                assert times.dtype == np.int64
                assert len(times) == len(atomic_files.numbers(rows, "timestamp", pa.float64()))
                assert units >= 1
        return
    counts = set()
    for block_bytes in (3, 1 << 20):
        for bindings in ({}, {"unit": "iso"}, {"rating": "rating"}):
            with refusing(name):
                good, bad, _ = read_back(path, block_bytes, **bindings)
                counts.add(len(good) + len(bad))
        files = ItemFiles([name], "item", {"title": "user"}, {"title": 4}, "time" if name == "f.jsonl" else None)
        with refusing(name):
            read = [read_items(block, files) for block in files.blocks(path, block_bytes)]
            counts.add(sum(items.num_rows + len(bad) for items, bad, _, _ in read))
    assert len(counts) <= 1
    if counts and (expected := n_rows(name, data)) is not None:
        assert counts == {expected}


QUIET = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}


@settings(max_examples=QUICK, derandomize=True, **QUIET)
@example(("f.jsonl", b'{"user": "\\ud83d", "item": 1e400, "time": ' + b"9" * 5_000 + b"}"))
@example(("f.jsonl", b'{"user": ' + b"[" * 100_000))
@example(("f.csv", b"user,item,time\n\xef\xbb\xbfa,b,1500000000\n"))
@example(("f.inter", b"user_id\titem_id\ttimestamp\nu\ti\t+5\nu\ti\t1_0\n"))
@given(raw_files())
def test_rows_are_read_or_counted_or_refused(tmp_path_factory, file):
    check(tmp_path_factory.getbasetemp(), *file)


@pytest.mark.slow
@settings(max_examples=MANY, **QUIET)
@given(raw_files())
def test_ten_thousand_files_are_read_or_counted_or_refused(tmp_path_factory, file):
    check(tmp_path_factory.getbasetemp(), *file)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 130))
@pytest.mark.parametrize("write", WRITERS)
def test_more_tables_come_back(tmp_path, write, seed):
    test_a_table_comes_back_at_every_block_size(tmp_path, write, seed)
