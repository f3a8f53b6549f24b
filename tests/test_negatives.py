"""How negatives are drawn and scored."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqrec_jax.data.split import TrainInteractions
from seqrec_jax.errors import InputError
from seqrec_jax.losses.loss import Keys, LossInputs, ModelOutputs
from seqrec_jax.losses.negatives import Negatives, local, shared
from seqrec_jax.losses.proposals.by_count import popularity, uniform
from seqrec_jax.losses.proposals.in_batch import positive_mixing, similarity
from seqrec_jax.losses.proposals.knn import knn
from seqrec_jax.losses.scores import score_rows

COUNTS = np.array([0, 0, 3, 10, 1, 100, 7, 0, 25])
TRAIN = TrainInteractions(COUNTS, lambda: iter(()))


def keys_of(seen):
    return Keys(jax.random.key(1), jnp.arange(len(seen.targets)))


RNG = np.random.default_rng(0)
TABLE = RNG.normal(size=(9, 4)).astype(np.float32)


def inputs_of(targets):
    zeros = jnp.zeros((1, len(targets)), jnp.int32)
    return LossInputs(jnp.asarray(targets, jnp.int32), jnp.arange(len(targets)), zeros, zeros)


def outputs_of(seen, outputs, drawn=None):
    table = jnp.asarray(TABLE)
    return ModelOutputs(
        seen, table[None], table[None], jnp.asarray(outputs), table[seen.targets], 8, table, None, drawn, drawn
    )


@pytest.mark.parametrize("sets", [local, shared])
def test_negatives_are_scored_with_their_q_and_marked_where_they_hit(sets):
    targets, outputs = RNG.integers(1, 9, 150), RNG.normal(size=(150, 4)).astype(np.float32)
    negatives, proposal, seen = Negatives(6, sets, "sampled_softmax"), popularity(TRAIN), inputs_of(targets)
    drawn = negatives.draw(keys_of(seen), seen, proposal)
    assert drawn.shape == ((150, 6) if sets is local else (1, 6))
    scored = negatives.score(keys_of(seen), outputs_of(seen, outputs, drawn), proposal)
    every = np.broadcast_to(drawn, (150, 6))
    q = (COUNTS + 1) / 154
    np.testing.assert_allclose(scored.negative, np.einsum("th,tnh->tn", outputs, TABLE[every]), atol=1e-5)
    np.testing.assert_allclose(scored.positive, np.einsum("th,th->t", outputs, TABLE[targets]), atol=1e-5)
    np.testing.assert_allclose(np.exp(scored.positive_log_q), q[targets], rtol=1e-5)
    np.testing.assert_allclose(np.exp(np.broadcast_to(scored.negative_log_q, every.shape)), q[every], rtol=1e-5)
    np.testing.assert_array_equal(np.broadcast_to(scored.hit, every.shape), every == targets[:, None])


def test_local_sets_differ_and_a_shared_set_is_one():
    seen = inputs_of(RNG.integers(1, 9, 150))
    assert len(np.unique(Negatives(6, local, "bce").draw(keys_of(seen), seen, uniform(TRAIN)), axis=0)) > 100


def test_blocked_scores_have_the_gradients_of_unblocked_ones():
    outputs, table = jnp.asarray(RNG.normal(size=(70, 4))), jnp.asarray(RNG.normal(size=(9, 4)))
    rows, weights = jnp.asarray(RNG.integers(0, 9, (70, 5))), jnp.asarray(RNG.normal(size=(70, 5)))

    def whole(outputs, table):
        return (jnp.einsum("th,tnh->tn", outputs, table[rows]) * weights).sum()

    def blocked(outputs, table):
        return (score_rows(outputs, table, rows) * weights).sum()

    for one, other in zip(
        jax.grad(whole, (0, 1))(outputs, table), jax.grad(blocked, (0, 1))(outputs, table), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_local_scores_never_hold_targets_by_negatives_by_hidden():
    n_targets, n, hidden = 2048, 500, 64
    shapes = [
        jax.ShapeDtypeStruct((n_targets, hidden), jnp.float32),
        jax.ShapeDtypeStruct((5000, hidden), jnp.float32),
        jax.ShapeDtypeStruct((n_targets, n), jnp.int32),
    ]
    grad = jax.grad(lambda outputs, table, rows: score_rows(outputs, table, rows).sum(), (0, 1))
    compiled = jax.jit(grad).lower(*shapes).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 0.1 * 4 * n_targets * n * hidden


@pytest.mark.slow
def test_similarity_draws_the_batchs_targets_by_their_cosine():
    targets, outputs = np.array([3, 5, 3, 8, 0]), RNG.normal(size=(5, 4)).astype(np.float32)  # 0 is padding
    seen, n = inputs_of(targets), 1_000_000
    scored = jax.jit(lambda p: Negatives(n, local, "bce").score(keys_of(p.inputs), p, similarity(TRAIN)))(
        outputs_of(seen, outputs)
    )
    unit = TABLE / np.linalg.norm(TABLE, axis=1, keepdims=True)
    for ordinal in range(4):
        cosine = unit[targets[:4]] @ outputs[ordinal] / np.linalg.norm(outputs[ordinal])
        q = np.zeros(9)
        np.add.at(q, targets[:4], (1 + cosine) / 2 / ((1 + cosine) / 2).sum())
        assert np.exp(scored.positive_log_q[ordinal]) == pytest.approx(q[targets[ordinal]], rel=1e-4)
        logits = TABLE @ outputs[ordinal]
        expected, drawn = [], []
        for item in (3, 5, 8):
            mine = np.isclose(scored.negative[ordinal], logits[item], atol=1e-5)
            np.testing.assert_allclose(np.exp(scored.negative_log_q[ordinal][mine]), q[item], rtol=1e-4)
            assert bool(scored.hit[ordinal][mine].all()) == (item == targets[ordinal])
            expected.append(n * q[item])
            drawn.append(mine.sum())
        assert sum(drawn) == n
        assert ((np.array(drawn) - expected) ** 2 / expected).sum() < 13.8  # 2 degrees of freedom, p = 0.001


@pytest.mark.parametrize("sets", [local, shared])
def test_positive_mixing_moves_the_target_in_all_directions_alike(sets):
    outputs = RNG.normal(size=(5, 4)).astype(np.float32)
    seen, n = inputs_of(RNG.integers(1, 9, 5)), 200_000
    score = jax.jit(lambda p: Negatives(n, sets, "bce").score(keys_of(p.inputs), p, positive_mixing(TRAIN, 2.0)))
    scored = score(outputs_of(seen, outputs))
    moved = (scored.negative - scored.positive[:, None]) / 2 / np.linalg.norm(outputs, axis=1, keepdims=True)
    assert float(jnp.abs(moved).max()) <= 1 + 1e-5  # the cosine with a unit vector
    np.testing.assert_allclose(moved.mean(1), 0, atol=0.01)
    np.testing.assert_allclose((moved**2).mean(1), 1 / 4, atol=0.01)  # as in 4 dimensions
    different = len(np.unique(np.round(moved[:, 0] * 1e4)))
    assert different == 5  # each output sees a direction at its own angle
    assert not scored.hit.any()


@pytest.mark.parametrize(
    ("negatives", "proposal", "rows", "words"),
    [
        (
            Negatives(9, local, "bce"),
            uniform(TRAIN),
            4,
            "bce.n_negatives = 9 is not between 1 and the catalog's 8 items",
        ),
        (Negatives(0, local, "bce"), uniform(TRAIN), 4, "bce.n_negatives = 0"),
        (
            Negatives(4, shared, "bpr"),
            knn(TRAIN, 3, 1),
            4,
            "bpr.negatives = shared, but TrainConfig.proposal has a distribution for each target",
        ),
        (
            Negatives(4, local, "bpr"),
            similarity(TRAIN),
            1,
            "TrainConfig.proposal draws from 2 rows of the batch or more, but a device has 1",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused_by_name(negatives, proposal, rows, words):
    with pytest.raises(InputError) as error:
        negatives.check(proposal, 8, rows)
    assert words in str(error.value)
