"""Slices of the targets."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from seqrec_jax.data.corpus import Corpus
from seqrec_jax.errors import InputError
from seqrec_jax.evaluation.slices import CATEGORY, by_history, by_popularity, gini, slices_of


@pytest.fixture
def parts(shop):
    """The shop's test targets, their items, and the training interactions of each item."""
    corpus = Corpus(shop)
    test = corpus.division.test
    return test, shop.items.take(shop.offsets[test.users] + test.positions), corpus.train.counts


def test_slices_by_category_add_up_to_the_whole_and_name_the_most_frequent(shop, parts):
    test, items, counts = parts
    of_item = ["", *("ABCDEFGHIJ"[row % 10] if row % 7 else None for row in range(shop.n_items))]
    table = shop.items_table.append_column(CATEGORY, pa.array(of_item, pa.string()))
    with_categories = dataclasses.replace(shop, items_table=table)
    slices = {
        name: inside
        for name, inside in slices_of(with_categories, test, counts).items()
        if name.startswith(CATEGORY)
    }  # fmt: skip
    np.testing.assert_array_equal(np.sum(list(slices.values()), 0), 1)
    assert len(slices) == 8 + 2
    for name, inside in slices.items():
        found = {of_item[item] for item in items[inside]}
        named = name.removeprefix(f"{CATEGORY}: ")
        assert found == ({None} if named == "none" else {named} if named != "others" else found - {None})


def test_slices_by_history_and_by_popularity_each_add_up_to_the_whole(shop, parts):
    test, items, counts = parts
    for slices in (by_history(test), by_popularity(items, counts)):
        np.testing.assert_array_equal(np.sum(list(slices.values()), 0), 1)
    assert set(slices_of(shop, test, counts)) == {*by_history(test), *by_popularity(items, counts)}
    head = by_popularity(np.arange(len(counts)), counts)
    for name in ("head_items", "middle_items", "tail_items"):
        assert counts[head[name]].sum() / counts.sum() == pytest.approx(1 / 3, abs=0.03)
    assert counts[head["head_items"]].min() >= counts[head["tail_items"]].max()
    assert counts[head["cold_items"]].sum() == 0


def test_a_column_that_the_catalog_lacks_is_named(shop, parts):
    test, _, counts = parts
    with pytest.raises(InputError, match=r"evaluate\.category = 'colour': .* only title, brand"):
        slices_of(shop, test, counts, "colour")


def test_gini_is_0_for_all_alike_and_near_1_for_one_alone():
    assert gini(np.full(100, 7)) == pytest.approx(0)
    assert gini(np.eye(1, 100)[0]) == pytest.approx(0.99)
    assert gini(np.zeros(5)) == 0
    counts = np.random.default_rng(0).integers(0, 50, 40)
    assert gini(counts) == pytest.approx(np.abs(counts[:, None] - counts).sum() / (2 * 40 * counts.sum()))
