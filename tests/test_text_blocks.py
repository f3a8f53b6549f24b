import gzip

import pytest

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
