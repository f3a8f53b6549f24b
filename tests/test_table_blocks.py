import itertools

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from etl.raw import parquet_blocks
from etl.raw.bad_rows import BadRow
from etl.raw.interaction_files import InteractionFiles, read_rows
from etl.raw.table_blocks import read_block, table_blocks
from seqrec_jax.errors import InputError

T = 1_500_000_000
NS = 10**9


def read(path, text, **bindings):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    files = InteractionFiles([path.name], "u", "i", "t", **bindings)
    (block,) = files.blocks(path, 1 << 20)
    return read_rows(block, files)


def test_lines_are_counted_with_blank_and_wrong_ones(tmp_path):
    text = f"u,i,t\r\na,x,{T}\r\n\r\nb,y\r\nc,z,soon\n\nd,x,{T + 1},9\ne,x,{T + 2}"
    rows, bad, n_lines = read(tmp_path / "log.csv", text)
    assert n_lines == 8
    assert rows.users.to_pylist() == ["a", "e"]
    assert bad == [
        BadRow(4, "has 2 columns, not 3", "b,y"),
        BadRow(5, "timestamp is no number", "c,z,soon"),
        BadRow(7, "has 4 columns, not 3", f"d,x,{T + 1},9"),
    ]


def test_columns_are_found_by_name_and_quotes_hold_delimiters(tmp_path):
    rows, bad, _ = read(tmp_path / "log.csv", f't,"i",x,u\n{T},"one, two",,a\n')
    assert rows.items.to_pylist() == ["one, two"]
    assert rows.users.to_pylist() == ["a"]
    assert not bad


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path):
    rows, _, _ = read(tmp_path / "log.tsv", b"\xef\xbb\xbfu\ti\tt\na\tx\t1500000000\n")
    assert rows.users.to_pylist() == ["a"]


def test_times_can_have_fractions_and_bad_ones_among_them(tmp_path):
    rows, bad, _ = read(tmp_path / "log.csv", f"u,i,t\na,x,{T}.9\nb,x,nan\nc,x,\nd,x,{T + 3}\ne,x,1e999\n")
    assert rows.times.tolist() == [T * NS + 900_000_000, (T + 3) * NS]
    assert [row.line for row in bad] == [3, 4, 6]
    assert {row.reason for row in bad} == {"timestamp is no number"}


def test_a_time_must_lie_between_1995_and_2035(tmp_path):
    text = "u,i,t\na,x,788918399\nb,x,788918400\nc,x,2082758399\nd,x,2082758400\n"
    rows, bad, _ = read(tmp_path / "log.csv", text)
    assert rows.users.to_pylist() == ["b", "c"]
    assert [(row.line, row.reason) for row in bad] == [
        (2, "timestamp is outside 1995..2035"),
        (5, "timestamp is outside 1995..2035"),
    ]
    rows, bad, _ = read(tmp_path / "log.csv", f"u,i,t\na,x,{T}\nb,x,{T}000\n", unit="ms")
    assert rows.users.to_pylist() == ["b"]


def test_dates_are_read_and_bad_ones_named(tmp_path):
    text = "u,i,t\na,x,2017-07-14T02:40:00Z\nb,x,14.7.2017\nc,x,2017-07-14 02:40:00.5\n"
    rows, bad, _ = read(tmp_path / "log.csv", text, unit="iso")
    assert rows.times.tolist() == [T * NS, T * NS + 500_000_000]
    assert [(row.line, row.reason) for row in bad] == [(3, "timestamp is no date")]


def test_a_line_that_is_not_utf8_is_named(tmp_path):
    rows, bad, _ = read(tmp_path / "log.csv", f"u,i,t\na,x,{T}\n\xff,x,{T}\nb,x,{T}\n".encode("latin-1"))
    assert rows.users.to_pylist() == ["a", "b"]
    assert [(row.line, row.reason) for row in bad] == [(3, "user id is not UTF-8")]


def test_ratings_that_are_no_numbers_are_named(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(f"u,i,t,r\na,x,{T},4.5\nb,x,{T},good\nc,x,{T},\n")
    files = InteractionFiles([path.name], "u", "i", "t", "r")
    (block,) = files.blocks(path, 1 << 20)
    rows, bad, _ = read_rows(block, files)
    assert rows.ratings.tolist() == [4.5]
    assert [(row.line, row.reason) for row in bad] == [(3, "rating is no number"), (4, "rating is no number")]


def test_json_lines_name_what_is_wrong(tmp_path):
    text = f'{{"u": "a", "i": 7, "t": {T}}}\n[1]\n\n{{"u": "b", "t": {T}}}\n{{"u": null, "i": "x", "t": "{T}"}}\n'
    rows, bad, n_lines = read(tmp_path / "log.jsonl", text)
    assert n_lines == 5
    assert rows.items.to_pylist() == ["7"]
    assert [(row.line, row.reason) for row in bad] == [
        (2, "is not a JSON object"),
        (4, "item id is empty"),
        (5, "user id is empty"),
    ]


def test_parquet_comes_in_blocks_of_its_row_groups(tmp_path):
    path = tmp_path / "log.parquet"
    table = pa.table({"u": ["a", "b", None, "d"], "i": [1, 2, 3, 4], "t": [T, 5, T, T], "more": [0, 0, 0, 0]})
    parquet.write_table(table, path, row_group_size=3)
    files = InteractionFiles([path.name], "u", "i", "t")
    found = [read_rows(block, files) for block in files.blocks(path, 1 << 20)]
    assert [rows.items.to_pylist() for rows, _, _ in found] == [["1"], ["4"]]
    assert [(row.line, row.reason) for row in found[0][1]] == [
        (2, "timestamp is outside 1995..2035"),
        (3, "user id is empty"),
    ]


def test_an_id_too_long_to_be_one_is_named(tmp_path):
    _, bad, _ = read(tmp_path / "log.csv", f"u,i,t\n{'a' * 129},x,{T}\n")
    assert bad[0].reason == "user id is longer than 128 bytes"
    assert len(bad[0].text) < 140


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("log.csv", "a,b\n", r"log.csv, line 1: column 'u' is missing; it has a, b"),
        ("log.parquet", "PAR0", r"log.parquet: is no Parquet file"),
    ],
)
def test_a_file_without_the_columns_is_refused(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=words):
        list(table_blocks(tmp_path / name, ["u"], None, 1 << 20))


def test_blocks_of_a_csv_file_skip_the_header_once(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("u,i\n" + "".join(f"{n},{n}\n" for n in range(100)))
    found = [read_block(block, ["u"]).table["u"].to_pylist() for block in table_blocks(path, ["u"], None, 64)]
    assert len(found) > 3
    assert list(itertools.chain(*found)) == [str(n).encode() for n in range(100)]


def bomb(path, titles, **options):
    """A Parquet file of few bytes, whose rows are many."""
    table = pa.table({"i": pa.array(np.arange(len(titles))), "title": titles})
    parquet.write_table(table, path, store_schema=False, compression="zstd", **options)
    return path


def repeated(text: str, n: int, n_nulls: int = 0) -> pa.Array:
    rows = pa.array(np.zeros(n, np.int32), mask=np.arange(n) < n_nulls)
    return pa.DictionaryArray.from_arrays(rows, pa.array([text]))


@pytest.mark.parametrize("n_nulls", [0, 1, 9_000])
def test_a_text_that_a_parquet_file_has_once_but_means_often_is_read_in_pieces(tmp_path, monkeypatch, n_nulls):
    monkeypatch.setattr(parquet_blocks, "_LARGEST_BLOCK", 1 << 20)
    path = bomb(tmp_path / "items.parquet", repeated("x" * 10_000, 10_000, n_nulls))
    assert path.stat().st_size < 100_000
    blocks = list(table_blocks(path, ["i", "title"], None, 1 << 20))
    assert sum(block.n for block in blocks) == 10_000
    assert max(block.n for block in blocks) <= (1 << 20) // 10_000
    tables = [read_block(block, ["i", "title"]).table for block in (blocks[0], blocks[-1])]
    assert max(table.nbytes for table in tables) < 2 << 20
    assert len(tables[1]["title"][-1].as_py()) == 10_000
    whole = list(table_blocks(path, ["i"], None, 1 << 20))
    assert [block.n for block in whole] == [10_000]


def test_lists_of_such_texts_are_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_blocks, "_LARGEST_BLOCK", 1 << 20)
    offsets = pa.array([0] * 500 + list(range(501)), pa.int32())
    lists = pa.ListArray.from_arrays(offsets, repeated("x" * 10_000, 500))
    path = bomb(tmp_path / "items.parquet", lists)
    blocks = list(table_blocks(path, ["title"], None, 1 << 20))
    assert sum(block.n for block in blocks) == 1_000
    assert max(read_block(block, ["title"]).table.nbytes for block in blocks) < 3 << 20


@pytest.mark.parametrize("use_dictionary", [True, False])
@pytest.mark.parametrize("n", [1, 40])
def test_a_row_of_a_parquet_file_that_is_too_long_is_refused_unread(tmp_path, monkeypatch, use_dictionary, n):
    monkeypatch.setattr(parquet_blocks, "LONGEST_RECORD", 2_000)
    titles = pa.array(["x" * 99_000] + ["short"] * (n - 1))
    path = bomb(tmp_path / "items.parquet", titles, use_dictionary=use_dictionary)
    with pytest.raises(
        InputError, match=r"items\.parquet, row group 1: a row of 0 MB is no row, where 0 MB are allowed"
    ):
        list(table_blocks(path, ["title"], None, 1 << 20))
    assert len(list(table_blocks(path, ["i"], None, 1 << 20))) == 1


@pytest.mark.parametrize(
    "kind", [pa.decimal128(9, 2), pa.binary(4), pa.timestamp("s"), pa.null(), pa.map_(pa.string(), pa.string())]
)
def test_columns_that_are_no_texts_are_read_as_ever(tmp_path, kind):
    parquet.write_table(pa.table({"title": pa.nulls(3, kind)}), tmp_path / "items.parquet")
    (block,) = table_blocks(tmp_path / "items.parquet", ["title"], None, 1 << 20)
    assert read_block(block, ["title"]).table.num_rows == 3
