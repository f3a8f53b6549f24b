import gzip

import pytest

from etl.raw import text_blocks as module
from etl.raw.text_blocks import text_blocks
from seqrec_jax.errors import InputError

TEXTS = [b"", b"\n", b"one\ntwo\nthree\n", b"one\n\ntwo\r\nthree", b"no newline", b"a" * 100 + b"\n" + b"b\n" * 50]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("block_bytes", [1, 2, 4, 7, 1000])
@pytest.mark.parametrize("times", [0, 1, 2])
def test_blocks_are_whole_lines_and_all_of_them(tmp_path, text, block_bytes, times):
    path = tmp_path / ("log.csv.gz" if times else "log.csv")
    packed = text
    for _ in range(times):
        packed = gzip.compress(packed)
    path.write_bytes(packed)
    blocks = list(text_blocks(path, block_bytes))
    read = [block.read() for block in blocks]
    assert b"".join(read) == text
    assert all(lines.endswith(b"\n") for lines in [lines for lines in read if lines][:-1])
    assert sum(block.file_bytes for block in blocks) <= len(packed)
    aside = [block.put_aside(tmp_path / f"{i}.text") for i, block in enumerate(blocks)]
    assert [block.read() for block in aside] == read
    assert all(block.data is None for block in aside) == (times == 0 or not blocks)


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: data[:50], lambda data: b"plain text\n" * 30])
def test_a_damaged_gzip_file_is_named_after_what_could_be_read(tmp_path, damage):
    path = tmp_path / "log.json.gz"
    path.write_bytes(damage(gzip.compress(bytes(range(256)) * 4_000)))
    with pytest.raises(InputError, match=r"log.json.gz: is truncated or no gzip file .*; fetch it again"):
        list(text_blocks(path, 1 << 16))


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_byte_order_mark_is_no_part_of_the_line_that_tells_what_ends_lines(tmp_path, mark):
    path = tmp_path / "log.csv"
    path.write_bytes(mark + b'"a\rb",c\n"d",e\n')
    (block,) = text_blocks(path, delimiter=b",")
    assert not block.returns


LONG = {
    "items.csv": (b"id,title\na,x\n", b'"b","two\nlines"\nc,', b"z", 5),
    "items.jsonl": (b'{"id": "a"}\n\n', b'{"id": "b", "title": "', b"z", 3),
    "marks.csv": (b"id\n", b"", b'"', 2),
    "fields.csv": (b"id\n", b"", b'"' + b"z" * 30 + b'",', 2),
    "returns.tsv": (b"id\ttitle\ra\tb\r", b"", b"z", 3),
    "only.csv": (b"", b"", b"z", 1),
}


@pytest.mark.parametrize("name", LONG)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("block_bytes", [100, 1 << 15])
def test_a_line_without_end_is_refused_with_its_place(tmp_path, monkeypatch, name, packed, block_bytes):
    monkeypatch.setattr(module, "LONGEST_RECORD", 2_000)
    before, record, more, line = LONG[name]
    path = tmp_path / (f"{name}.gz" if packed else name)
    data = before + record + more * (5 * (2_000 + block_bytes) // len(more))
    path.write_bytes(gzip.compress(data) if packed else data)
    found = []
    with pytest.raises(InputError, match=rf"{path.name}, line {line}: is longer than 0 MB, so it is no row; remove it"):
        found += text_blocks(path, block_bytes, None if "jsonl" in name else b"\t" if "tsv" in name else b",")
    path.write_bytes(gzip.compress(before + b"\n") if packed else before + b"\n")
    list(text_blocks(path, block_bytes))


def test_no_more_than_a_record_is_unpacked_of_a_bomb(tmp_path):
    import tracemalloc

    path = tmp_path / "items.csv.gz"
    with gzip.open(path, "wb", 1) as file:
        for _ in range(6):
            file.write(bytes(16 << 20))
    tracemalloc.start()
    with pytest.raises(InputError, match="line 1: is longer than 32 MB"):
        list(text_blocks(path))
    assert tracemalloc.get_traced_memory()[1] < 150 << 20  # of 96 MB, in an array of which each byte is looked at
    tracemalloc.stop()
