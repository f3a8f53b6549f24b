import numpy as np
import pyarrow as pa
import pytest

from etl.ids import IdTable, hash_of, id_table, strings_of, words_of

IDS = ["A", "", "AB12345", "AB123456", "AB1234567", "na\u00efve \u7528\u6237", "x" * 128, "B000000000"]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_words_hold_every_byte(kind):
    ids = pa.array(IDS, kind)
    words = words_of(ids)
    assert len(words) == 16
    assert strings_of(words).to_pylist() == IDS
    for i, text in enumerate(IDS):
        assert b"".join(word[i].tobytes() for word in words) == text.encode().ljust(128, b"\0")


def test_words_of_a_slice_are_those_of_its_strings():
    ids = pa.array(IDS)
    for word, same in zip(words_of(ids.slice(2, 3)), words_of(pa.array(IDS[2:5])), strict=True):
        np.testing.assert_array_equal(word, same)


def test_a_hash_does_not_depend_on_the_company_an_id_is_in():
    alone = hash_of(words_of(pa.array(["AB123456"])))[0]
    assert alone == hash_of(words_of(pa.array(IDS)))[3]
    assert alone != hash_of(words_of(pa.array(["AB123456"])), seed=1)[0]


def test_hashes_of_many_ids_are_distinct_and_even():
    ids = pa.array([f"A{i:013d}" for i in range(200_000)])
    hashes = hash_of(words_of(ids))
    assert len(np.unique(hashes)) == len(ids)
    counts = np.bincount((hashes >> np.uint64(56)).astype(int), minlength=256)
    assert ((counts - len(ids) / 256) ** 2 / (len(ids) / 256)).sum() < 350  # chi-square, 255 degrees of freedom


def test_a_table_finds_what_is_in_it_and_nothing_else(tmp_path):
    rng = np.random.default_rng(0)
    hashes = np.unique(rng.integers(0, 2**64, 5_000, dtype=np.uint64))
    rows = rng.permutation(len(hashes)).astype(np.int32)
    shuffled = rng.permutation(len(hashes))
    table = id_table(hashes[shuffled], rows[shuffled])
    asked = np.concatenate([rng.permutation(hashes), rng.integers(0, 2**64, 5_000, dtype=np.uint64)])
    found = dict(zip(hashes.tolist(), rows.tolist(), strict=True))
    expected = [found.get(hashed, -1) for hashed in asked.tolist()]
    np.testing.assert_array_equal(table.find(asked), expected)
    repeated = np.repeat(asked, rng.integers(1, 4, len(asked)))
    np.testing.assert_array_equal(table.find_runs(repeated), table.find(repeated))
    table.save(tmp_path)
    np.testing.assert_array_equal(IdTable.load(tmp_path).find(asked), expected)


def test_neighbours_in_one_bucket_are_told_apart():
    hashes = np.array([5, 6, 7, 2**63, 2**64 - 1], np.uint64)
    table = id_table(hashes[::-1], np.arange(5))
    np.testing.assert_array_equal(table.find(np.array([7, 5, 8, 2**64 - 1, 4], np.uint64)), [2, 4, -1, 0, -1])


def test_an_empty_table_finds_nothing():
    table = id_table(np.zeros(0, np.uint64), np.zeros(0, np.int32))
    np.testing.assert_array_equal(table.find(np.array([0, 1], np.uint64)), [-1, -1])
    assert len(table.find_runs(np.zeros(0, np.uint64))) == 0
