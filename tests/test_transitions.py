"""Counts of what followed what, and scores that are raised by them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqrec_jax.data.split import TrainInteractions, leave_one_out
from seqrec_jax.devices import device_mesh, replicate
from seqrec_jax.errors import InputError
from seqrec_jax.evaluation.ranking import Ranking, TargetRanker
from seqrec_jax.inference.encoding import encode_catalog
from seqrec_jax.model.recommender import Recommender
from seqrec_jax.model.spec import Architecture
from seqrec_jax.model.terms.transitions import (
    AGE_DECAY,
    GAP_DECAY,
    GAPS,
    MOST_FOLLOWERS,
    MOST_KEPT,
    SHRINKAGE,
    Transitions,
    count_transitions,
    strongest,
)

RNG = np.random.default_rng(0)


def train_of(sequences, n_items, per_block=2):
    def blocks():
        for first in range(0, len(sequences), per_block):
            block = sequences[first : first + per_block]
            yield np.array([len(row) for row in block]), np.concatenate([np.array(row, np.int32) for row in block])

    counts = np.bincount(np.concatenate(sequences).astype(int), minlength=n_items + 1)
    return TrainInteractions(counts, blocks)


def counted_by_hand(sequences, n_items):
    """[n_items + 1, n_items + 1], before any is left out."""
    total = np.zeros((n_items + 1, n_items + 1))
    for row in sequences:
        for i, before in enumerate(row):
            for j in range(i + 1, min(i + GAPS, len(row) - 1) + 1):
                total[before, row[j]] += GAP_DECAY ** (j - i - 1) * (row[j] != before)
    return total / np.sqrt((total.sum(1) + SHRINKAGE)[:, None] * (total.sum(0) + SHRINKAGE)[None, :])


def dense(transitions):
    n_rows = len(transitions.starts) - 1
    matrix = np.zeros((n_rows, n_rows))
    matrix[np.repeat(np.arange(n_rows), np.diff(transitions.starts)), transitions.items] = transitions.scores
    return matrix


def test_transitions_are_counted_within_users_and_weighed():
    sequences = [RNG.integers(1, 21, length).tolist() for length in (1, 2, 5, 30, 3, 4, 8)]
    transitions = count_transitions(train_of(sequences, 20), "a catalog")
    np.testing.assert_allclose(dense(transitions), counted_by_hand(sequences, 20), rtol=1e-5)
    assert transitions.starts[0] == transitions.starts[1] == 0


def test_the_strongest_followers_of_an_item_are_kept():
    n = MOST_KEPT + 10
    sequences = [[1, 2 + i] for i in range(n) for _ in range(1 + i)]
    transitions = count_transitions(train_of(sequences, n + 1), "")
    whole = counted_by_hand(sequences, n + 1)[1]
    assert len(transitions.items) == MOST_KEPT
    assert set(transitions.items) == set(np.argsort(-whole)[:MOST_KEPT])


def test_the_strongest_of_each_row_and_of_equal_ones_the_lower_columns():
    rows, columns, values, places = strongest(
        np.array([1, 0, 1, 1, 0]), np.array([5, 2, 3, 4, 1]), np.array([2, 1, 2, 9, 1]), 2
    )
    assert rows.tolist() == [0, 0, 1, 1]
    assert columns.tolist() == [1, 2, 4, 3]
    assert values.tolist() == [1, 1, 9, 2]
    assert places.tolist() == [0, 1, 0, 1]


def test_followers_of_histories_are_a_product_without_the_histories_themselves():
    sequences = [RNG.integers(1, 41, 12).tolist() for _ in range(9)]
    transitions = count_transitions(train_of(sequences, 40), "")
    histories = [[3, 7, 7, 9], [], [11], RNG.integers(1, 41, 30).tolist()]
    lengths = np.array([len(row) for row in histories])
    items, scores = transitions.prepare(np.concatenate(histories).astype(np.int32), lengths)
    assert items.shape == scores.shape == (4, MOST_FOLLOWERS)
    for row, history in enumerate(histories):
        expected = np.zeros(41)
        for age, item in enumerate(history[::-1]):
            expected += AGE_DECAY**age * dense(transitions)[item]
        expected[history] = 0
        found = np.zeros(41)
        np.add.at(found, items[row], scores[row])
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
        real = items[row][items[row] > 0]
        assert len(set(real)) == len(real)


def test_a_file_of_transitions_is_read_back_or_refused(tmp_path):
    transitions = count_transitions(train_of([[1, 2, 3], [2, 3]], 3), "some catalog")
    path = tmp_path / "transitions.npz"
    transitions.write(path)
    again = Transitions.read(path)
    assert again.catalog_sha256 == "some catalog"
    np.testing.assert_array_equal(dense(again), dense(transitions))
    path.write_bytes(path.read_bytes()[:100])
    for wrong in (path, tmp_path / "none.npz"):
        with pytest.raises(InputError, match=r"is missing or damaged.*fine-tune again"):
            Transitions.read(wrong)


@pytest.mark.parametrize("settings", [{}, {"mask_seen": True}, {"repeat_offset": True}])
def test_targets_are_ranked_and_recommended_by_the_sum_of_both_scores(shop, corpus, settings):
    """Against a catalog's scores made in full, on one device and on four."""
    masks, more = settings.get("mask_seen", False), {k: v for k, v in settings.items() if k != "mask_seen"}
    architecture = Architecture(n_layers=1, hidden_size=8, inner_size=8, max_length=10, transitions=True, **more)
    model, split = Recommender.create(corpus, architecture, seed=0), leave_one_out(shop)
    knobs = {"terms/transitions/weight": 2.0} | ({"terms/repeat/offset": -0.05} if more else {})
    plain = model.replace(params=model.params | {name: jnp.float32(value) for name, value in knobs.items()})
    transitions = count_transitions(corpus.train, shop.catalog_sha256())
    model = plain.replace(statistics={"transitions": transitions})
    users = [shop.user_items(user)[:position] for user, position in zip(*split.test, strict=True)]
    items, scores = model.index(shop).top(users, k=shop.n_items, exclude_seen=masks)
    without = plain.index(shop).top(users, k=shop.n_items, exclude_seen=masks)
    assert not np.array_equal(items, without[0])
    followers = transitions.prepare(
        np.concatenate([row[-10:] for row in users]), np.array([min(10, len(row)) for row in users])
    )
    for row in range(len(users)):
        by_item = np.zeros(shop.n_items + 1)
        by_item[without[0][row]] = without[1][row]
        left = items[row] > 0
        raised = np.zeros(shop.n_items + 1)
        np.add.at(raised, followers[0][row], 20 * followers[1][row])
        np.testing.assert_allclose(scores[row][left], (by_item + raised)[items[row][left]], rtol=1e-4, atol=1e-5)
    ranks = []
    for n_devices in (1, 4):
        mesh = device_mesh(jax.devices()[:n_devices])
        params, ranking = replicate(mesh, model.params), Ranking(batch_size=64, mask_seen=masks)
        ranker = TargetRanker(model.graph, shop, split.test, ranking, mesh, model.statistics_for(shop))
        catalog = encode_catalog(model.graph)(params, replicate(mesh, model.features(shop)))
        ranks.append(ranker.ranks(params, catalog))
    np.testing.assert_array_equal(*ranks)
    targets = [shop.user_items(user)[position] for user, position in zip(*split.test, strict=True)]
    for row, target in enumerate(targets):
        place = np.flatnonzero(items[row] == target)
        if len(place):
            above = (scores[row] >= scores[row][place[0]] - 1e-5).sum() - 1  # equal texts tie
            assert place[0] - 1 <= ranks[0][row] <= above + 1


def test_transitions_of_another_catalog_are_left_out_and_it_is_said(shop, corpus, caplog):
    model = Recommender.create(corpus, Architecture(n_layers=1, hidden_size=8, transitions=True))
    model = model.replace(statistics={"transitions": count_transitions(corpus.train, "another catalog")})
    assert model.statistics_for(shop) == {}
    assert "so its transitions are left out" in caplog.text
