import pytest

from etl.raw import bad_rows
from etl.raw.bad_rows import BadRow, BadRows
from seqrec_jax.errors import InputError


def test_bad_rows_are_counted_and_named_up_to_the_bound(monkeypatch):
    monkeypatch.setattr(bad_rows, "_MOST_LISTED", 6)
    bad = BadRows(0.5)
    bad.add("a.csv", 0, 20, [BadRow(2, "odd", "x"), BadRow(3, "even", "y")])
    bad.add("a.csv", 20, 20, [BadRow(line, "odd", "z") for line in range(1, 9)])
    assert bad.counts == {"odd": 9, "even": 1}
    assert bad.examples[:3] == ["a.csv, line 2: odd: x", "a.csv, line 3: even: y", "a.csv, line 21: odd: z"]
    assert len(bad.examples) == 6  # five of a kind
    assert [row.line for _, row in bad.listed] == [2, 3, 21, 22, 23, 24]
    bad.finish()
    bad.add("b.csv", 0, 0, [BadRow(1, "odd", "w")] * 11)
    with pytest.raises(InputError, match=r"a.csv, line 2: odd: x \(21 of 40 rows are bad, above MAX_BAD_ROWS = 0.5"):
        bad.finish()


def test_too_many_end_a_long_file_before_its_end():
    bad = BadRows(0.001)
    bad.add("a.csv", 0, 500_000, [BadRow(1, "odd", "x")] * 1_000)
    with pytest.raises(InputError, match="1,001 of 500,001 rows are bad"):
        bad.add("a.csv", 500_000, 1, [BadRow(1, "odd", "x")])


def test_a_rows_text_is_cut_and_shown_whatever_its_bytes():
    assert BadRow.of(1, "odd", b"caf\xe9\r\n").text == "caf\\xe9"
    assert BadRow.of(1, "odd", "x" * 200).text == "x" * 119 + "…"
