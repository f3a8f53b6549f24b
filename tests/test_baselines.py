"""Baselines that nobody trains."""

import dataclasses
import itertools
import tracemalloc
from typing import NamedTuple

import numpy as np
import pytest
import scipy.sparse

from etl.recbole import convert
from seqrec_jax.data.corpus import Corpus
from seqrec_jax.data.split import Targets
from seqrec_jax.devices import device_mesh
from seqrec_jax.evaluation import baselines
from seqrec_jax.evaluation.ranking import Ranking, TargetRanker
from seqrec_jax.items.lexical import lexical_vectors
from seqrec_jax.model.recommender import Recommender
from seqrec_jax.model.spec import Architecture
from seqrec_jax.model.terms.transitions import AGE_DECAY, count_transitions, recency_weights


class Flat(NamedTuple):
    """Items of all users in memory."""

    flat: np.ndarray

    def take(self, indices):
        return self.flat[indices]


@pytest.fixture
def corpus(shop):
    return Corpus(shop)


@pytest.fixture
def vectors(shop):
    return lexical_vectors([shop.tokens(name) for name in shop.features], shop.vocab_size, 128)


def history_of(corpus, row):
    user, position = corpus.division.test.users[row], corpus.division.test.positions[row]
    items = corpus.data.user_items(user)
    return items[:position], int(items[position])


def ranks_by(scores, corpus, mask_seen=False):
    return baselines.ranks(scores, corpus.data, corpus.division.test, corpus.train.counts, mask_seen)


def test_ranks_are_those_of_sorting_all_scores(corpus, monkeypatch):
    n_rows = corpus.data.n_items + 1
    noise = np.random.default_rng(0).normal(size=n_rows).astype(np.float32)

    def scores(histories, lengths):
        return np.stack([noise + np.float32(length % 3) * noise[::-1] for length in lengths])

    monkeypatch.setattr(baselines, "SCORES_PER_BLOCK", 7 * n_rows)
    for mask_seen in (False, True):
        found = ranks_by(scores, corpus, mask_seen)
        for row in range(0, len(found), 17):
            history, target = history_of(corpus, row)
            of_user = scores(history, np.array([len(history)]))[0].astype(np.float64)
            of_user[0] = -np.inf
            if mask_seen:
                of_user[np.setdiff1d(history, [target])] = -np.inf
            assert found[row] == (of_user > of_user[target]).sum()


def test_a_score_that_is_no_number_ranks_last(corpus):
    n_rows = corpus.data.n_items + 1

    def scores(histories, lengths):
        return np.full((len(lengths), n_rows), np.nan, np.float32)

    assert (ranks_by(scores, corpus) == corpus.data.n_items - 1).all()


def test_a_long_history_takes_no_more_memory_than_its_latest_items(shop):
    """20,000 interactions, of which 2,000 are targets: all histories together are 38 million items."""
    rng, n = np.random.default_rng(0), 20_000
    items = Flat(rng.integers(1, shop.n_items + 1, n).astype(np.int32))
    data = dataclasses.replace(shop, offsets=np.array([0, n]), items=items)
    targets = Targets(np.zeros(2000, np.int64), np.arange(n - 2000, n))
    counts = np.bincount(items.flat, minlength=shop.n_items + 1)
    matrix = scipy.sparse.random(len(counts), len(counts), 0.1, "csr", np.float32, random_state=0)

    def scores(histories, lengths):
        return (recency_weights(histories, lengths, len(counts)) @ matrix).toarray()

    tracemalloc.start()
    try:
        found = [baselines.ranks(scores, data, targets, counts, masks) for masks in (False, True)]
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()
    history, target = items.flat[:-1], items.flat[-1]
    of_last = scores(history, np.array([len(history)]))[0]
    assert found[0][-1] == (of_last[1:] > of_last[target]).sum()
    assert (found[1] == 0).all()  # the history holds every item


def test_ties_count_against_the_target_and_popularity_decides_first(corpus):
    counts = corpus.train.counts
    found = ranks_by(lambda histories, lengths: np.zeros((len(lengths), len(counts)), np.float32), corpus)
    for row in range(0, len(found), 29):
        _, target = history_of(corpus, row)
        assert found[row] == (counts[1:] >= counts[target]).sum() - 1


def test_recent_popularity_counts_the_latest_training_interactions(shop, corpus):
    counts = baselines.recent_counts(shop, corpus.division)
    times, items = [], []
    for user in range(shop.n_users):
        n = corpus.division.train_lengths[user]
        times += shop.interactions_table["timestamps"][user].as_py()[:n]
        items += list(shop.user_items(user)[:n])
    latest = np.array(times) >= np.quantile(times, 0.8)
    np.testing.assert_array_equal(counts, np.bincount(np.array(items)[latest], minlength=shop.n_items + 1))


def test_recent_popularity_ranks_every_target_and_popularity_decides_between_equals(corpus, monkeypatch):
    monkeypatch.setattr(baselines, "MOST_SCORES", 10 * corpus.data.n_items)
    model = Recommender.create(corpus, Architecture(n_layers=1, hidden_size=16, inner_size=16))
    ranker = TargetRanker(model.graph, corpus.data, corpus.division.test, Ranking(), device_mesh())
    found, users = baselines.baseline_ranks(corpus, Ranking(), ranker, 0)["recent popularity"]
    np.testing.assert_array_equal(users, corpus.division.test.users)
    recent, counts = baselines.recent_counts(corpus.data, corpus.division), corpus.train.counts
    for row, rank in enumerate(found):
        _, target = history_of(corpus, row)
        equal = recent == recent[target]
        assert rank == ((recent > recent[target]) | (equal & (counts >= counts[target])))[1:].sum() - 1


def test_transitions_and_texts_score_the_whole_history_the_latest_most(shop, corpus, vectors):
    transitions = count_transitions(corpus.train, "")
    dense = np.zeros((shop.n_items + 1, shop.n_items + 1))
    rows = np.repeat(np.arange(shop.n_items + 1), np.diff(transitions.starts))
    dense[rows, transitions.items] = transitions.scores
    history, _ = history_of(corpus, 3)
    weights = AGE_DECAY ** np.arange(len(history))[::-1]
    for scores, matrix in (
        (baselines.by_transitions(transitions), dense),
        (baselines.by_text(vectors), vectors.astype(np.float64) @ vectors.astype(np.float64).T),
    ):
        np.testing.assert_allclose(scores(history, np.array([len(history)]))[0], weights @ matrix[history], atol=1e-3)


def test_rings_come_in_turn(shop, corpus, vectors):
    following = [set() for _ in range(shop.n_items + 1)]
    for user in range(shop.n_users):
        items = shop.user_items(user)[: corpus.division.train_lengths[user]]
        for before, after in itertools.pairwise(items):
            following[before].add(int(after))
    history, _ = history_of(corpus, 5)
    last = int(history[-1])
    rings, reached, ring = [], {last}, {last}
    for _ in baselines.PLACES:
        ring = {after for before in ring for after in following[before]} - reached
        reached |= ring
        rings.append(ring)
    scores = baselines.by_rings(corpus.train, vectors)(history, np.array([len(history)]))[0]
    order = [int(item) for item in np.argsort(-scores, kind="stable")]
    sizes = [min(n, len(ring)) for n, ring in zip(baselines.PLACES, rings, strict=True)]
    expected = list(np.repeat(np.arange(len(rings)), sizes))
    ring_of = {item: number for number, ring in enumerate(rings) for item in ring}
    assert [ring_of[item] for item in order[: len(expected)]] == expected
    likeness = vectors.astype(np.float32) @ vectors[last].astype(np.float32)
    second = [item for item in order[: len(expected)] if ring_of[item] == 1]
    assert second == sorted(rings[1], key=lambda item: -likeness[item])[: len(second)]
    assert not set(order[: len(reached) - 1]) - reached


def test_a_catalog_of_fewer_items_than_a_ring_has_places(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "x.item").write_text("item_id:token\ttitle:token_seq\na\tred lamp\nb\tblue mug\nc\tgreen tent\n")
    rows = [f"u{user}\t{'abc'[(user + time) % 3]}\t{time}" for user in range(6) for time in range(4)]
    (raw / "x.inter").write_text("\n".join(["user_id:token\titem_id:token\ttimestamp:float", *rows]) + "\n")
    convert(str(raw), str(tmp_path / "dataset"), vocab_size=40)
    corpus = Corpus(tmp_path / "dataset")
    found = {name: ranks_by(scores, corpus) for name, scores in baselines.baselines_of(corpus).items()}
    assert found.keys() == {"item-to-item transitions", "text neighbours", "transition graph"}
    assert all((ranks < 3).all() for ranks in found.values())
