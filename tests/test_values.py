"""Ids, times and numbers of every type that a table may hold them in."""

import datetime
import decimal

import numpy as np
import pyarrow as pa
import pytest

from etl.raw import values
from etl.raw.json_lines import as_id
from seqrec_jax.errors import InputError

T = 1_500_000_000
NS = 10**9
UTC = datetime.UTC


def column(data, kind=None) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(data, kind)])


def ids(data, kind=None) -> tuple[list[str], dict[str, list[int]]]:
    found, faults = values.ids(column(data, kind), "id", "log: column 'id'")
    return found.to_pylist(), {
        reason: np.flatnonzero(fault).tolist() for reason, fault in faults.items() if fault.any()
    }


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        ([12345678901, 7, -3], pa.int64()),
        ([12345678901, 7, -3], pa.float64()),
        ([decimal.Decimal("12345678901.00"), decimal.Decimal(7), decimal.Decimal(-3)], pa.decimal128(20, 2)),
        ([decimal.Decimal(12345678901), decimal.Decimal(7), decimal.Decimal(-3)], pa.decimal256(50, 0)),
        (["12345678901", "7", "-3"], pa.string()),
        (["12345678901", "7", "-3"], pa.large_string()),
        (["12345678901", "7", "-3"], pa.string_view()),
        ([b"12345678901", b"7", b"-3"], pa.binary()),
        (["12345678901", "7", "-3"], pa.dictionary(pa.int8(), pa.string())),
        ([12345678901, 7, -3], pa.dictionary(pa.int8(), pa.int64())),
    ],
)
def test_a_number_is_the_same_id_in_every_type(data, kind):
    assert ids(data, kind) == (["12345678901", "7", "-3"], {})
    found, faults = ids([data[0], None, data[2]], kind)
    assert found == ["12345678901", "", "-3"]
    assert faults == {"id is empty": [1]}


def test_large_whole_numbers_stay_exact():
    assert ids([2**64 - 1, 2**53 + 1], pa.uint64())[0] == ["18446744073709551615", "9007199254740993"]
    assert ids([decimal.Decimal(10**30 + 1)], pa.decimal128(38, 0))[0] == [str(10**30 + 1)]
    assert ids([decimal.Decimal("100.50"), decimal.Decimal("0.00")], pa.decimal128(9, 2))[0] == ["100.5", "0"]


def test_floats_that_may_be_another_number_are_none():
    found, faults = ids([2.0**53 - 1, float(2**53 + 1), float("inf"), float("nan"), 1.5, -0.0])
    assert [found[row] for row in (0, 4, 5)] == ["9007199254740991", "1.5", "0"]
    assert faults["id is no exact number"] == [1, 2]
    assert faults["id is empty"] == [1, 2, 3]
    assert ids(np.array([2**24 - 1, 2**24], np.float32))[1]["id is no exact number"] == [1]
    assert ids(np.array([2**11 - 1, 2**11], np.float16))[1]["id is no exact number"] == [1]
    assert [as_id(value) for value in (2.0**53 - 1, 2.0**53, -7.0)] == ["9007199254740991", None, "-7"]


def test_texts_that_are_no_ids_are_named():
    found, faults = ids([b"a", b"\xff", b"a\0", b"x" * 129, b""], pa.binary())
    assert found[0] == "a"
    assert faults == {
        "id is not UTF-8": [1],
        "id is empty": [1, 4],
        "id is longer than 128 bytes": [3],
        "id has a NUL character": [2],
    }
    assert ids([None, None], pa.null()) == (["", ""], {"id is empty": [0, 1]})


@pytest.mark.parametrize("kind", [pa.bool_(), pa.list_(pa.int64()), pa.timestamp("s"), pa.struct([("a", pa.int8())])])
def test_a_type_that_is_no_id_is_refused(kind):
    with pytest.raises(InputError, match=r"log: column 'id' has type .*, which is no id; make text"):
        ids([None], kind)


MOMENT = datetime.datetime(2017, 7, 14, 2, 40, 0, 250_000)  # T and a quarter of a second


@pytest.mark.parametrize(
    ("data", "kind", "unit", "nanoseconds"),
    [
        ([T], pa.int64(), "s", 0),
        ([T * 1_000 + 250], pa.int64(), "ms", 250_000_000),
        ([T * NS + 123_456_789], pa.uint64(), "ns", 123_456_789),
        ([T + 0.25], pa.float64(), "s", 250_000_000),
        ([T * 1_000 + 0.5], pa.float64(), "ms", 500_000),
        ([decimal.Decimal(f"{T}.123456789")], pa.decimal128(30, 9), "s", 123_456_789),
        ([T], pa.timestamp("s"), "ms", 0),
        ([T * 1_000 + 250], pa.timestamp("ms", "Asia/Tokyo"), "iso", 250_000_000),
        ([T * 10**6 + 1], pa.timestamp("us"), "s", 1_000),
        ([T * NS + 1], pa.timestamp("ns", "UTC"), "iso", 1),
        ([T // 86_400], pa.date32(), "s", -(T % 86_400) * NS),
        ([T // 86_400 * 86_400_000], pa.date64(), "iso", -(T % 86_400) * NS),
        ([f"{T}.250"], pa.string(), "s", 250_000_000),
        ([f" {T}.123456789 "], pa.string(), "s", 123_456_789),
        ([f"+{T}.1234567891e0"], pa.string(), "s", 123_456_789),
        ([f"{T}.5e6"], pa.string(), "us", 500_000_000),
        ([MOMENT.isoformat(" ")], pa.string(), "iso", 250_000_000),
        (["2017-07-14T02:40:00.000000001"], pa.string(), "iso", 1),
        (["2017-07-14T02:40:00.0000000019"], pa.string(), "iso", 1),
        (["20170714T044000.25+02:00"], pa.large_string(), "iso", 250_000_000),
        (["2017-07-14T02:40:00Z"], pa.dictionary(pa.int8(), pa.string()), "iso", 0),
    ],
)
def test_a_time_keeps_its_finest_unit_in_every_type(data, kind, unit, nanoseconds):
    array = pa.array(data, kind)
    for more in ([], [None]):
        rows = pa.chunked_array([pa.concat_arrays([array, pa.array(more, kind)])] if more else [array])
        found, none = values.times(rows, unit, "log")
        assert found.dtype == np.int64
        assert found[0] == T * NS + nanoseconds
        assert none.tolist() == [False] + [True] * len(more)


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns", "iso"])
def test_texts_that_are_no_times_are_told_from_those_outside(unit):
    outside = ["1900-01-01", "9999-12-31T23:59:59Z"] if unit == "iso" else ["-5", "0.5", "9" * 19, "9" * 30, "1e300"]
    none = [None, "", "n/a", "nan", "inf", "0x5F", "1_0", "1e999", "\u0661"]
    found, wrong = values.times(column([*outside, *none], pa.string()), unit, "log")
    assert wrong.tolist() == [False] * len(outside) + [True] * len(none)
    assert (found[: len(outside)] < values.FIRST_SECOND).all()


@pytest.mark.parametrize("beside", [[], [str(T)], ["soon"]])
@pytest.mark.parametrize("text", ["0x59682F00", "0X59682F00", "-0x1"])
def test_a_hexadecimal_number_is_none_whatever_stands_beside_it(text, beside):
    data = column([text, *beside])
    assert values.times(data, "s", "log")[1].tolist() == [True] + [of == "soon" for of in beside]
    assert values.numbers(data, "log")[1][0]


def test_numbers_outside_are_outside_in_every_type():
    for data, kind in [
        ([0, 2**63 - 1], pa.int64()),
        ([0, 2**64 - 1], pa.uint64()),
        ([-1e300, 1e300], pa.float64()),
        ([0, 2**62], pa.timestamp("s")),
        ([0, 10**6], pa.date32()),
    ]:
        found, none = values.times(column(data, kind), "s", "log")
        assert not none.any()
        assert (found < values.FIRST_SECOND * NS).all()


@pytest.mark.parametrize(
    ("data", "kind", "unit", "other"),
    [
        ([T * 1_000, T, 9], pa.int64(), "s", "ms"),
        ([T, T * 1_000, 9], pa.int64(), "ms", "s"),
        ([f"{T}.5", str(T * 1_000), "x"], pa.string(), "ms", "s"),
        ([T * 1e6, T, -1.0], pa.float64(), "s", "us"),
        ([T * NS, T * 1_000, None], pa.uint64(), "ms", "ns"),
    ],
)
def test_times_in_another_unit_are_told_from_those_that_are_in_none(data, kind, unit, other):
    rows = column(data, kind)
    found, none = values.times(rows, unit, "log")
    faults = values.of_another_unit(rows, unit, ~none & (found < 0))
    reason = f"timestamp is outside 1995..2035 in InteractionFiles.unit = {unit!r}, but not in {other!r}"
    assert {words: fault.tolist() for words, fault in faults.items() if fault.any()} == {reason: [True, False, False]}


def test_dates_among_numbers_are_told_from_what_is_neither():
    rows = column(["2023-05-12T01:38:01+02:00", "x", str(T), "2023-05-12"], pa.string())
    none = values.times(rows, "s", "log")[1]
    (reason, dates), *more = values.dates_among(rows, "s", none).items()
    assert (dates.tolist(), more) == ([True, False, False, True], [])
    assert "(UNIT) wants numbers, and 'iso' dates" in reason
    assert values.dates_among(rows, "iso", none) == {}
    assert values.dates_among(column([T]), "s", np.array([True])) == {}


def test_dates_outside_are_in_no_other_unit():
    for data, kind in (([0], pa.date32()), ([2**40], pa.timestamp("s")), (["1970-01-01"], pa.string())):
        faults = values.of_another_unit(column(data, kind), "iso", np.array([True]))
        assert not any(fault.any() for fault in faults.values())
    assert values.of_another_unit(column([T]), "s", np.array([False])) == {}


@pytest.mark.parametrize("kind", [pa.bool_(), pa.time32("s"), pa.duration("s"), pa.list_(pa.int64())])
def test_a_type_that_is_no_time_is_refused(kind):
    with pytest.raises(InputError, match=r"log has type .*, which is no time"):
        values.times(column([None], kind), "s", "log")
    with pytest.raises(InputError, match="which is no date; bind the unit"):
        values.times(column([1], pa.int64()), "iso", "log")


def test_numbers_of_every_type():
    good = [column([4.5, None]), column(["4.5", None]), column(["4.5 ", "good"]), column([b" 4.5", b"1e99"])]
    for data in [*good, column([decimal.Decimal("4.5"), None]), column(["4.5", "nan"]), column(["4.5", "1_0"])]:
        found, none = values.numbers(data, "log")
        assert found.dtype == np.float32
        assert found[0] == 4.5
        assert none.tolist() == [False, True]
    with pytest.raises(InputError, match="log has type bool, which is no number"):
        values.numbers(column([True]), "log")


def test_texts_of_every_type():
    def texts(data, kind=None):
        return values.texts(column(data, kind), "log")[0].to_pylist()

    assert texts(["a", None], pa.dictionary(pa.int8(), pa.large_string())) == ["a", ""]
    assert texts([7, None]) == ["7", ""]
    assert texts([1.5, float("nan")]) == ["1.5", ""]
    assert texts([datetime.date(2020, 1, 2), None]) == ["2020-01-02", ""]
    assert texts([None], pa.null()) == [""]
    for data, kind in (([["a"]], None), ([True, None], None), ([b"0" * 16], pa.binary(16))):
        with pytest.raises(InputError, match=r"log has type (list<.*>|bool|fixed_size_binary\[16\]), which is no text"):
            texts(data, kind)
    found, faults = values.texts(column([b"a", b"\xff"]), "log")
    assert (found.to_pylist(), faults["is not UTF-8"].tolist()) == (["a", ""], [False, True])
