"""Proposals: what they draw is distributed as they say."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqrec_jax.data.split import TrainInteractions
from seqrec_jax.devices import device_mesh
from seqrec_jax.errors import InputError
from seqrec_jax.losses.loss import BatchProposal, LossInputs, Proposal
from seqrec_jax.losses.proposals.by_count import log_popularity, popularity, uniform
from seqrec_jax.losses.proposals.co_counts import co_counts, co_occurrences
from seqrec_jax.losses.proposals.draws import alias_table
from seqrec_jax.losses.proposals.in_batch import positive_mixing, similarity
from seqrec_jax.losses.proposals.knn import knn

USERS = [[1, 2, 3], [2, 1, 4, 1], [3, 4, 1], [5, 6], [6, 5], [1, 2, 8], [2, 8, 2]]
ITEMS = np.array([item for user in USERS for item in user], np.int32)
COUNTS = np.bincount(ITEMS, minlength=9)
TRAIN = TrainInteractions(COUNTS, lambda: iter([(np.array([len(user) for user in USERS]), ITEMS)]))
DRAWS = 1_000_000
CRITICAL = {7: 24.3}  # chi-square of 7 degrees of freedom, p = 0.001

# Two rows: a user of three items and one of two, then one of four; what comes next is the target.
INPUTS = jnp.array([[1, 2, 8, 5, 6], [3, 7, 4, 1, 0]], jnp.int32)
POSITIONS = jnp.array([[0, 1, 2, 0, 1], [0, 1, 2, 3, 0]], jnp.int32)
SLOTS = jnp.array([2, 4, 8, 6], jnp.int32)
TARGETS = jnp.array([4, 5, 2, 1], jnp.int32)
HISTORIES = [[1, 2, 8], [5, 6], [3, 7, 4, 1], [3, 7]]
SEEN = LossInputs(TARGETS, SLOTS, INPUTS, POSITIONS)


def refreshed_knn(**settings):
    table = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    return knn(TRAIN, 3, 1, **settings).refreshed(jax.random.key(0), jnp.asarray(table), device_mesh())


PROPOSALS = {
    "uniform": lambda: uniform(TRAIN),
    "popularity": lambda: popularity(TRAIN),
    "popularity, alpha 0.5": lambda: popularity(TRAIN, 0.5),
    "log_popularity": lambda: log_popularity(TRAIN),
    "co_counts": lambda: co_counts(TRAIN),
    "co_counts, 2 neighbours": lambda: co_counts(TRAIN, 0.9, neighbours=2, least=1),
    "knn": refreshed_knn,
    "knn before a refresh": lambda: knn(TRAIN, 3, 1),
}


@pytest.mark.parametrize("name", PROPOSALS)
def test_a_proposal_of_the_catalog_is_one(name):
    proposal = PROPOSALS[name]()
    assert isinstance(proposal, Proposal)
    assert not isinstance(proposal, BatchProposal)


@pytest.mark.parametrize("make", [similarity, positive_mixing])
def test_a_proposal_of_the_batch_is_one(make):
    proposal = make(TRAIN)
    assert isinstance(proposal, BatchProposal)
    assert not isinstance(proposal, Proposal)


@pytest.mark.parametrize("name", PROPOSALS)
def test_drawn_frequencies_are_q(name):
    proposal = PROPOSALS[name]()
    sets = len(TARGETS) if proposal.per_target else 1
    keys = jax.random.split(jax.random.key(0), sets)
    everything = jnp.broadcast_to(jnp.arange(1, 9), (sets, 8))
    q = np.exp(np.asarray(proposal.log_q(SEEN, everything), np.float64))
    np.testing.assert_allclose(q.sum(1), 1, rtol=1e-5)
    draw = jax.jit(lambda proposal, keys: proposal.draw(keys, SEEN, DRAWS))
    for of_target, drawn in zip(q, np.asarray(draw(proposal, keys)), strict=True):
        counts = np.bincount(drawn, minlength=9)
        assert counts[0] == 0
        assert (counts[1:] > 0).all() == (of_target > 0).all()
        assert ((counts[1:] - DRAWS * of_target) ** 2 / (DRAWS * of_target)).sum() < CRITICAL[7]


def test_alias_table_holds_the_probabilities_exactly():
    rng = np.random.default_rng(0)
    for n in (1, 2, 3, 1000):
        for shape in (0.01, 0.1, 10.0):
            q = rng.dirichlet(np.full(n, shape))
            threshold, alias = alias_table(q)
            assert ((threshold >= 0) & (threshold <= 1)).all()
            held = threshold / n
            np.add.at(held, alias, (1 - threshold) / n)
            np.testing.assert_allclose(held, q, atol=1e-12)


def test_an_alias_table_of_three_million_items_is_exact_and_quick():
    q = 1 / np.random.default_rng(0).permutation(np.arange(1, 3_000_001.0))
    q /= q.sum()
    started = time.process_time()
    threshold, alias = alias_table(q)
    assert time.process_time() - started < 10
    held = threshold / len(q)
    np.add.at(held, alias, (1 - threshold) / len(q))
    assert np.abs(held / q - 1).max() < 1e-6


def test_proposals_by_count_are_what_they_are_called():
    p = (COUNTS + 1.0) / (COUNTS[1:] + 1).sum()
    for proposal, expected in (
        (uniform(TRAIN), np.full(8, 1 / 8)),
        (popularity(TRAIN), p[1:]),
        (popularity(TRAIN, 0.5), np.sqrt(p[1:]) / np.sqrt(p[1:]).sum()),
        (log_popularity(TRAIN), np.log1p(p[1:]) / np.log1p(p[1:]).sum()),
    ):
        np.testing.assert_allclose(np.exp(proposal.table[1:]), expected, rtol=1e-6)
        assert proposal.table[0] == np.float32(np.log(1e-16))


def test_co_occurrences_count_users_once_and_keep_the_most_frequent():
    neighbours, counts = co_occurrences(TRAIN, most=3, least=2)
    assert neighbours[1].tolist() == [2, 3, 4]  # 3 users, 2, 2
    assert counts[1].tolist() == [3, 2, 2]
    assert neighbours[2].tolist() == [1, 8, 0]
    assert counts[7].sum() == 0


def test_co_counts_sum_over_the_whole_history_and_no_other_users():
    factor = 0.5
    neighbours, counts = co_occurrences(TRAIN, most=30, least=2)
    p = (COUNTS + 1.0) / (COUNTS[1:] + 1).sum()
    q = np.exp(co_counts(TRAIN, factor).log_q(SEEN, jnp.broadcast_to(jnp.arange(1, 9), (4, 8))))
    for of_target, history in zip(q, HISTORIES, strict=True):
        together = np.zeros(9)
        for item in history:
            np.add.at(together, neighbours[item], counts[item])
        expected = (1 - factor) * p + factor * together / together.sum() if together.sum() else p
        np.testing.assert_allclose(of_target, expected[1:], rtol=1e-5)


@pytest.mark.parametrize("block", [1 << 14, 3])
def test_pools_are_the_nearest_by_cosine_but_for_the_discarded(monkeypatch, block):
    monkeypatch.setattr("seqrec_jax.losses.proposals.knn.CANDIDATES_PER_BLOCK", block)
    table = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    pools = np.asarray(refreshed_knn().pools)
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    for item in range(1, 9):
        order = [other for other in np.argsort(-unit @ unit[item]) if other not in (0, item)]
        assert pools[item].tolist() == sorted(order[1:4])


def test_pools_of_few_candidates_are_among_them_and_others_at_each_refresh():
    train = TrainInteractions(np.ones(301, np.int64), lambda: iter(()))
    table = jnp.asarray(np.random.default_rng(0).normal(size=(301, 4)), jnp.float32)
    proposal = knn(train, 5, 2, candidates=50)
    first, second = (
        np.unique(proposal.refreshed(jax.random.key(seed), table, device_mesh()).pools[1:]) for seed in range(2)
    )
    assert len(first) <= 50
    assert len(second) <= 50
    assert len(np.union1d(first, second)) > 60


def test_one_device_finds_the_pools_of_four():
    table = jnp.asarray(np.random.default_rng(0).normal(size=(9, 4)), jnp.float32)
    one = knn(TRAIN, 3, 1).refreshed(jax.random.key(0), table, device_mesh(jax.devices()[:1]))
    np.testing.assert_array_equal(one.pools, refreshed_knn().pools)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: popularity(TRAIN, -0.5), "popularity.alpha = -0.5"),
        (lambda: co_counts(TRAIN, 1.0), "co_counts.mixing_factor = 1.0"),
        (lambda: knn(TRAIN, 100), "knn.pool_size = 100 and knn.discard = 10 need 111 items, but the catalog has 8"),
        (lambda: knn(TRAIN, 3, 1, candidates=4), "knn.candidates = 4 leaves 4"),
        (lambda: knn(TRAIN, 3, 1, random_fraction=0.0), "knn.random_fraction = 0.0"),
        (lambda: positive_mixing(TRAIN, 0.0), "positive_mixing.mixing_factor = 0.0"),
    ],
)
def test_senseless_settings_are_refused_by_name(make, words):
    with pytest.raises(InputError) as error:
        make()
    assert words in str(error.value)
