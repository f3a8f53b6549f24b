import numpy as np
import pyarrow as pa
import pytest
from tables import with_the_hash_of

from etl.ids import IdTable, hash_of, id_table, run_starts, strings_of, words_of

IDS = ["A", "", "AB12345", "AB123456", "AB1234567", "na\u00efve \u7528\u6237", "x" * 128, "B000000000"]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_words_hold_every_byte(kind):
    ids = pa.array(IDS, kind)
    words = words_of(ids)
    assert len(words) == 16
    assert strings_of(words).to_pylist() == IDS
    for i, text in enumerate(IDS):
        assert b"".join(word[i].tobytes() for word in words) == text.encode().ljust(128, b"\0")


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_words_of_a_slice_are_those_of_its_strings(kind):
    ids = pa.array(IDS, kind)
    for word, same in zip(words_of(ids.slice(2, 3)), words_of(pa.array(IDS[2:5])), strict=True):
        np.testing.assert_array_equal(word, same)
    assert strings_of(words_of(ids.slice(7))).to_pylist() == IDS[7:]


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


def rows_of(table: IdTable, ids: list[str], runs: bool = False) -> list[int]:
    asked = pa.array(ids, pa.large_string())
    words = words_of(asked)
    if runs:
        return table.find_runs(words, hash_of(words), asked).tolist()
    return table.find(hash_of(words), lambda places: asked.take(pa.array(places))).tolist()


def expected_of(listed: list[str], asked: list[str]) -> list[int]:
    first = {one: row for row, one in reversed(list(enumerate(listed)))}
    return [first.get(one, -1) for one in asked]


def check(listed: list[str], asked: list[str], folder) -> IdTable:
    """The table, built and saved and opened again, finds what a dictionary finds."""
    expected, repeated = expected_of(listed, asked), [one for one in asked for _ in range(3)]
    table = id_table(pa.array(listed, pa.large_string()))
    table.save(folder)
    for each in (table, IdTable.load(folder)):
        assert rows_of(each, asked) == rows_of(each, asked, runs=True) == expected
        assert rows_of(each, repeated, runs=True) == expected_of(listed, repeated)
        assert each.first_rows.tolist() == sorted(set(expected_of(listed, listed)))
    return table


def test_a_table_finds_what_is_in_it_and_nothing_else(tmp_path):
    rng = np.random.default_rng(0)
    ids = [f"{'x' * (number % 20)}{number}" for number in rng.permutation(20_000)]
    listed = rng.choice(ids[:10_000], 12_000).tolist()
    check(listed, [*ids, ""], tmp_path)


CRAFTED = ["B0000001AAAAAAAA", "x" * 9, "a user of twenty-two b"]


@pytest.mark.parametrize("victim", CRAFTED)
def test_ids_of_one_hash_are_told_apart(tmp_path, victim):
    crafted = with_the_hash_of(victim)
    assert len(crafted) > 100
    assert set(hash_of(words_of(pa.array([victim, *crafted])))) == set(hash_of(words_of(pa.array([victim]))))
    half = len(crafted) // 2
    for listed in (
        [victim],
        crafted[:half],
        [victim, *crafted[:half], victim, *crafted[:9], "other"],
        [*crafted[:half], "other", victim, *crafted[9::-1]],
    ):
        check(listed, [*crafted, victim, "other", crafted[0], "none"], tmp_path)


def test_a_crowded_bucket_is_searched_to_its_end(tmp_path):
    ids = [f"{number:07x}" for number in range(400_000)]
    hashes = hash_of(words_of(pa.array(ids)))
    crowd = [ids[place] for place in np.flatnonzero(hashes >> np.uint64(54) == 5)]
    assert len(crowd) > 300
    table = check(crowd[::2], [*crowd, *ids[:1_000]], tmp_path)
    assert np.diff(table.bucket_starts).max() > 100


def test_neighbours_in_one_bucket_are_told_apart(tmp_path):
    for listed in (["a"], ["a", "b"], ["a", "a"], [str(number) for number in range(5)]):
        check(listed, ["a", "b", "c", "", "0", "4", "9"], tmp_path)


def test_an_empty_table_finds_nothing(tmp_path):
    check([], ["", "a"], tmp_path)
    assert rows_of(id_table(pa.array(["a"], pa.large_string())), [], runs=True) == []


def test_runs_begin_where_an_id_differs():
    words = words_of(pa.array(["a", "a", "ab", "0123456789", "0123456788", "0123456788", "a"]))
    assert run_starts(words).tolist() == [0, 2, 3, 4, 6]
    assert run_starts(words_of(pa.array([], pa.string()))).tolist() == []
