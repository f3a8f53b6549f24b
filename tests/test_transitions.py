"""Counts of what followed what, and scores that are raised by them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqrec_jax.data.split import TrainingLog, leave_one_out, training_log
from seqrec_jax.data.transitions import (
    AGE_DECAY,
    GAP_DECAY,
    GAPS,
    MOST_KEPT,
    MOST_RAISED,
    SHRINKAGE,
    Transitions,
    count_transitions,
    strongest,
)
from seqrec_jax.devices import device_mesh, replicate
from seqrec_jax.errors import InputError
from seqrec_jax.evaluation.metrics import per_user, standard_error
from seqrec_jax.evaluation.ranking import Ranking, TargetRanker
from seqrec_jax.evaluation.top_items import top_items
from seqrec_jax.model import parameters
from seqrec_jax.model.recommender import Architecture, build
from seqrec_jax.tasks.validated_choice import TRANSITION_WEIGHTS, Choice, weigh_transitions

RNG = np.random.default_rng(0)


def log_of(sequences, n_items, per_block=2):
    def blocks():
        for first in range(0, len(sequences), per_block):
            block = sequences[first : first + per_block]
            yield np.array([len(row) for row in block]), np.concatenate([np.array(row, np.int32) for row in block])

    counts = np.bincount(np.concatenate(sequences).astype(int), minlength=n_items + 1)
    return TrainingLog(counts, blocks)


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
    transitions = count_transitions(log_of(sequences, 20), "a catalog")
    np.testing.assert_allclose(dense(transitions), counted_by_hand(sequences, 20), rtol=1e-5)
    assert transitions.starts[0] == transitions.starts[1] == 0


def test_the_strongest_followers_of_an_item_are_kept():
    n = MOST_KEPT + 10
    sequences = [[1, 2 + i] for i in range(n) for _ in range(1 + i)]
    transitions = count_transitions(log_of(sequences, n + 1), "")
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
    transitions = count_transitions(log_of(sequences, 40), "")
    histories = [[3, 7, 7, 9], [], [11], RNG.integers(1, 41, 30).tolist()]
    lengths = np.array([len(row) for row in histories])
    items, scores = transitions.followers(np.concatenate(histories).astype(np.int32), lengths)
    assert items.shape == scores.shape == (4, MOST_RAISED)
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
    transitions = count_transitions(log_of([[1, 2, 3], [2, 3]], 3), "some catalog")
    path = tmp_path / "transitions.npz"
    transitions.write(path)
    again = Transitions.read(path)
    assert again.catalog_sha256 == "some catalog"
    np.testing.assert_array_equal(dense(again), dense(transitions))
    path.write_bytes(path.read_bytes()[:100])
    for wrong in (path, tmp_path / "none.npz"):
        with pytest.raises(InputError, match=r"is missing or damaged.*fine-tune again"):
            Transitions.read(wrong)


@pytest.fixture(scope="module")
def weighed():
    def make(shop, weight, **more):
        architecture = Architecture(
            n_layers=1, n_heads=2, hidden_size=8, inner_size=8, max_length=10, transitions=True, **more
        )
        graph, params = build(architecture, dict.fromkeys(shop.features, shop.vocab_size), seed=0)
        arrays = parameters.named(params)
        return graph, parameters.from_named(params, {**arrays, "transitions": jnp.float32(weight / 10)})

    return make


@pytest.mark.parametrize("settings", [{}, {"mask_seen": True}, {"repeat_offset": True}])
def test_targets_are_ranked_and_recommended_by_the_sum_of_both_scores(shop, weighed, settings):
    """Against a catalog's scores made in full, on one device and on four."""
    masks, more = settings.get("mask_seen", False), {k: v for k, v in settings.items() if k != "mask_seen"}
    graph, params = weighed(shop, 20.0, **more)
    if more:
        params = parameters.from_named(params, {**parameters.named(params), "repeat": jnp.float32(-0.05)})
    split = leave_one_out(shop)
    transitions = count_transitions(training_log(shop, split), shop.catalog_sha256())
    features = {name: jnp.asarray(shop.tokens(name)) for name in shop.features}
    users = [shop.user_items(user)[:position] for user, position in zip(*split.test, strict=True)]
    items, scores = top_items(
        graph, params, features, users, k=shop.n_items, max_length=10, exclude_seen=masks, transitions=transitions
    )
    plain = top_items(graph, params, features, users, k=shop.n_items, max_length=10, exclude_seen=masks)
    assert not np.array_equal(items, plain[0])
    followers = transitions.followers(
        np.concatenate([row[-10:] for row in users]), np.array([min(10, len(row)) for row in users])
    )
    for row in range(len(users)):
        by_item = np.zeros(shop.n_items + 1)
        by_item[plain[0][row]] = plain[1][row]
        left = items[row] > 0
        raised = np.zeros(shop.n_items + 1)
        np.add.at(raised, followers[0][row], 20 * followers[1][row])
        np.testing.assert_allclose(scores[row][left], (by_item + raised)[items[row][left]], rtol=1e-4, atol=1e-5)
    ranks = []
    for n_devices in (1, 4):
        mesh = device_mesh(jax.devices()[:n_devices])
        ranker = TargetRanker(graph, shop, split.test, Ranking(rows=8, mask_seen=masks), 10, mesh, transitions)
        ranks.append(ranker.ranks(replicate(mesh, params), replicate(mesh, features)))
    np.testing.assert_array_equal(*ranks)
    targets = [shop.user_items(user)[position] for user, position in zip(*split.test, strict=True)]
    for row, target in enumerate(targets):
        place = np.flatnonzero(items[row] == target)
        if len(place):
            above = (scores[row] >= scores[row][place[0]] - 1e-5).sum() - 1  # equal texts tie
            assert place[0] - 1 <= ranks[0][row] <= above + 1


def test_the_smallest_weight_that_is_as_good_as_the_best_within_its_error(shop, weighed):
    params = weighed(shop, 0.0)[1]

    def figure(params):
        weight = 10 * float(parameters.named(params)["transitions"])
        return 0.5 - abs(weight - 32) / 100

    exact = weigh_transitions(Choice(params, figure(params), {"stage": "all"}), figure, 0.0)
    assert exact.told == {"stage": "all", "transitions": 32.0}
    assert exact.figure == pytest.approx(0.5)
    near = weigh_transitions(Choice(params, figure(params), {}), figure, 0.1)
    assert near.told["transitions"] == 24.0
    assert 24.0 in TRANSITION_WEIGHTS
    plain = build(Architecture(1, 2, 8, 8, max_length=6), {"title": 20}, seed=0)[1]
    choice = Choice(plain, 0.5, {})
    assert weigh_transitions(choice, figure, 0.0) is choice


def test_the_standard_error_of_a_metric():
    ranks = np.array([0, 3, 12, 1])
    values = per_user(ranks, 10)["ndcg"]
    expected = np.sqrt(((values - values.mean()) ** 2).sum() / 3 / 4)
    assert standard_error(ranks, "ndcg_at_10") == pytest.approx(expected)
    assert standard_error(ranks[:1], "ndcg_at_10") == 0.0
