import dataclasses
import itertools

import numpy as np
import pyarrow as pa
import pytest

from seqrec_jax.data.lexical import lexical_vectors
from seqrec_jax.data.split import leave_one_out, training_log
from seqrec_jax.data.transitions import AGE_DECAY, count_transitions
from seqrec_jax.evaluation import baselines
from seqrec_jax.evaluation.slices import CATEGORY, by_history, by_popularity, gini, slices_of


@pytest.fixture
def parts(shop):
    split = leave_one_out(shop)
    return split, training_log(shop, split)


@pytest.fixture
def vectors(shop):
    return lexical_vectors([shop.tokens(name) for name in shop.features], shop.vocab_size, 128)


def history_of(shop, split, row):
    user, position = split.test.users[row], split.test.positions[row]
    return shop.user_items(user)[:position], int(shop.user_items(user)[position])


def test_ranks_are_those_of_sorting_all_scores(shop, parts, monkeypatch):
    split, log = parts
    noise = np.random.default_rng(0).normal(size=shop.n_items + 1).astype(np.float32)

    def scores(histories, lengths):
        return np.stack([noise + 0.1 * len(lengths) * 0 + np.float32(length % 3) * noise[::-1] for length in lengths])

    monkeypatch.setattr(baselines, "SCORES_PER_BLOCK", 7 * (shop.n_items + 1))
    for mask_seen in (False, True):
        found = baselines.ranks(scores, shop, split.test, log.counts, mask_seen)
        for row in range(0, len(found), 17):
            history, target = history_of(shop, split, row)
            of_user = scores(history, np.array([len(history)]))[0].astype(np.float64)
            of_user[0] = -np.inf
            if mask_seen:
                of_user[np.setdiff1d(history, [target])] = -np.inf
            assert found[row] == (of_user > of_user[target]).sum()


def test_ties_count_against_the_target_and_popularity_decides_first(shop, parts):
    split, log = parts
    found = baselines.ranks(
        lambda histories, lengths: np.zeros((len(lengths), shop.n_items + 1), np.float32), shop, split.test, log.counts
    )
    for row in range(0, len(found), 29):
        _, target = history_of(shop, split, row)
        assert found[row] == (log.counts[1:] >= log.counts[target]).sum() - 1


def test_recent_popularity_counts_the_latest_training_interactions(shop, parts):
    split, _ = parts
    counts = baselines.recent_counts(shop, split)
    times, items = [], []
    for user in range(shop.n_users):
        n = split.train_lengths[user]
        times += shop.interactions_table["timestamps"][user].as_py()[:n]
        items += list(shop.user_items(user)[:n])
    latest = np.array(times) >= np.quantile(times, 0.8)
    np.testing.assert_array_equal(counts, np.bincount(np.array(items)[latest], minlength=shop.n_items + 1))


def test_transitions_and_texts_score_the_whole_history_the_latest_most(shop, parts, vectors):
    split, log = parts
    transitions = count_transitions(log, "")
    dense = np.zeros((shop.n_items + 1, shop.n_items + 1))
    rows = np.repeat(np.arange(shop.n_items + 1), np.diff(transitions.starts))
    dense[rows, transitions.items] = transitions.scores
    history, _ = history_of(shop, split, 3)
    weights = AGE_DECAY ** np.arange(len(history))[::-1]
    for scores, matrix in (
        (baselines.by_transitions(transitions), dense),
        (baselines.by_text(vectors), vectors.astype(np.float64) @ vectors.astype(np.float64).T),
    ):
        np.testing.assert_allclose(scores(history, np.array([len(history)]))[0], weights @ matrix[history], atol=1e-3)


def test_rings_come_in_turn(shop, parts, vectors):
    split, log = parts
    following = [set() for _ in range(shop.n_items + 1)]
    for user in range(shop.n_users):
        items = shop.user_items(user)[: split.train_lengths[user]]
        for before, after in itertools.pairwise(items):
            following[before].add(int(after))
    history, _ = history_of(shop, split, 5)
    last = int(history[-1])
    rings, reached, ring = [], {last}, {last}
    for _ in baselines.PLACES:
        ring = {after for before in ring for after in following[before]} - reached
        reached |= ring
        rings.append(ring)
    scores = baselines.by_rings(log, vectors)(history, np.array([len(history)]))[0]
    order = [int(item) for item in np.argsort(-scores, kind="stable")]
    sizes = [min(n, len(ring)) for n, ring in zip(baselines.PLACES, rings, strict=True)]
    expected = list(np.repeat(np.arange(len(rings)), sizes))
    ring_of = {item: number for number, ring in enumerate(rings) for item in ring}
    assert [ring_of[item] for item in order[: len(expected)]] == expected
    likeness = vectors.astype(np.float32) @ vectors[last].astype(np.float32)
    second = [item for item in order[: len(expected)] if ring_of[item] == 1]
    assert second == sorted(rings[1], key=lambda item: -likeness[item])[: len(second)]
    assert not set(order[: len(reached) - 1]) - reached


def test_slices_by_category_add_up_to_the_whole_and_name_the_most_frequent(shop, parts):
    split, log = parts
    of_item = ["", *("ABCDEFGHIJ"[row % 10] if row % 7 else None for row in range(shop.n_items))]
    table = shop.items_table.append_column(CATEGORY, pa.array(of_item, pa.string()))
    with_categories = dataclasses.replace(shop, items_table=table)
    items = shop.items.take(shop.offsets[split.test.users] + split.test.positions)
    slices = {
        name: inside
        for name, inside in slices_of(with_categories, split.test, log.counts).items()
        if name.startswith(CATEGORY)
    }
    np.testing.assert_array_equal(np.sum(list(slices.values()), 0), 1)
    assert len(slices) == 8 + 2
    for name, inside in slices.items():
        found = {of_item[item] for item in items[inside]}
        named = name.removeprefix(f"{CATEGORY}: ")
        assert found == ({None} if named == "none" else {named} if named != "others" else found - {None})


def test_slices_by_history_and_by_popularity_each_add_up_to_the_whole(shop, parts):
    split, log = parts
    items = shop.items.take(shop.offsets[split.test.users] + split.test.positions)
    for slices in (by_history(split.test), by_popularity(items, log.counts)):
        np.testing.assert_array_equal(np.sum(list(slices.values()), 0), 1)
    assert set(slices_of(shop, split.test, log.counts)) == {*by_history(split.test), *by_popularity(items, log.counts)}
    head = by_popularity(np.arange(len(log.counts)), log.counts)
    for name in ("head_items", "middle_items", "tail_items"):
        assert log.counts[head[name]].sum() / log.counts.sum() == pytest.approx(1 / 3, abs=0.03)
    assert log.counts[head["head_items"]].min() >= log.counts[head["tail_items"]].max()
    assert log.counts[head["cold_items"]].sum() == 0


def test_gini_is_0_for_all_alike_and_near_1_for_one_alone():
    assert gini(np.full(100, 7)) == pytest.approx(0)
    assert gini(np.eye(1, 100)[0]) == pytest.approx(0.99)
    assert gini(np.zeros(5)) == 0
    counts = np.random.default_rng(0).integers(0, 50, 40)
    assert gini(counts) == pytest.approx(np.abs(counts[:, None] - counts).sum() / (2 * 40 * counts.sum()))
