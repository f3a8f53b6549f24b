import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqrec_jax.losses.negatives import (
    Keys,
    alias_table,
    draw,
    encode_distinct,
    local,
    popularity,
    score_rows,
    shared,
    uniform,
)

COUNTS = np.array([0, 0, 3, 10, 1, 100, 7, 0, 25])


def test_alias_table_holds_the_probabilities_exactly():
    rng = np.random.default_rng(0)
    for n in (1, 2, 1000):
        q = rng.dirichlet(np.full(n, 0.1))
        threshold, alias = alias_table(q)
        held = threshold / n
        np.add.at(held, alias, (1 - threshold) / n)
        np.testing.assert_allclose(held, q, atol=1e-12)


def test_proposals_are_normalised_and_leave_padding_out():
    np.testing.assert_allclose(np.exp(uniform(COUNTS).log_q[1:]), 1 / 8, rtol=1e-6)
    np.testing.assert_allclose(np.exp(popularity(COUNTS).log_q[1:]), (COUNTS[1:] + 1) / 154, rtol=1e-6)
    assert popularity(COUNTS).log_q[0] == np.float32(np.log(1e-16))


@pytest.mark.parametrize("make", [uniform, popularity])
def test_drawn_frequencies_are_q(make):
    proposal, n = make(COUNTS), 1_000_000
    counts = np.bincount(draw(proposal, jax.random.key(0), (n,)), minlength=9)
    assert counts[0] == 0
    expected = n * np.exp(np.asarray(proposal.log_q[1:], np.float64))
    chi_square = ((counts[1:] - expected) ** 2 / expected).sum()
    assert chi_square < 24.3  # 7 degrees of freedom, p = 0.001


KEYS = Keys(jax.random.key(1), jax.random.key(2))


def encode(table):
    return lambda items: jnp.asarray(table)[items]


def test_local_and_shared_score_what_they_drew():
    rng = np.random.default_rng(0)
    table, outputs = rng.normal(size=(9, 4)).astype(np.float32), rng.normal(size=(150, 4)).astype(np.float32)
    for drawn in (local, shared):
        negatives = drawn(KEYS, 6, popularity(COUNTS), jnp.asarray(outputs), encode(table))
        expected = np.einsum("th,tnh->tn", outputs, table[np.broadcast_to(negatives.items, (150, 6))])
        np.testing.assert_allclose(negatives.logits, expected, atol=1e-5)
    assert len(np.unique(local(KEYS, 6, uniform(COUNTS), jnp.asarray(outputs), encode(table)).items)) == 8


@pytest.mark.parametrize("n_items", [8, 1000])
def test_encode_distinct_gives_each_item_its_embedding(n_items):
    rng = np.random.default_rng(0)
    table = rng.normal(size=(n_items + 1, 3)).astype(np.float32)
    items = jnp.asarray(rng.integers(1, n_items + 1, (5, 7)), jnp.int32)
    embeddings, where = encode_distinct(encode(table), items, n_items)
    assert len(embeddings) <= max(items.size, 9)
    np.testing.assert_array_equal(np.asarray(embeddings)[where], table[items])


def test_blocked_scores_have_the_gradients_of_unblocked_ones():
    rng = np.random.default_rng(0)
    outputs, table = jnp.asarray(rng.normal(size=(70, 4))), jnp.asarray(rng.normal(size=(9, 4)))
    rows, weights = jnp.asarray(rng.integers(0, 9, (70, 5))), jnp.asarray(rng.normal(size=(70, 5)))

    def whole(outputs, table):
        return (jnp.einsum("th,tnh->tn", outputs, table[rows]) * weights).sum()

    def blocked(outputs, table):
        return (score_rows(outputs, table, rows) * weights).sum()

    for one, other in zip(
        jax.grad(whole, (0, 1))(outputs, table), jax.grad(blocked, (0, 1))(outputs, table), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-5)
