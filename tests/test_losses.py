"""Losses against plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqrec_jax.losses.cross_entropy import cross_entropy
from seqrec_jax.losses.full_softmax import full_softmax
from seqrec_jax.losses.negatives import Keys, Negatives, popularity
from seqrec_jax.losses.sampled_softmax import sampled_softmax

COUNTS = np.array([0, 4, 3, 10, 1, 100, 7, 0, 25])
KEYS = Keys(jax.random.key(0), jax.random.key(1))
RNG = np.random.default_rng(0)
TABLE = RNG.normal(size=(9, 4)).astype(np.float32)
OUTPUTS = RNG.normal(size=(6, 4)).astype(np.float32)
TARGETS = np.array([1, 5, 8, 2, 2, 3])


def numpy_cross_entropy(logits, label, smoothing):
    log_p = logits - np.log(np.exp(logits).sum())
    goal = np.full(len(logits), smoothing / len(logits))
    goal[label] += 1 - smoothing
    return -(goal * log_p).sum()


@pytest.mark.parametrize(("temperature", "smoothing"), [(1.0, 0.0), (0.3, 0.0), (2.0, 0.1)])
def test_cross_entropy_is_torchs(temperature, smoothing):
    positive, negatives = RNG.normal(size=3), RNG.normal(size=(3, 5))
    loss = cross_entropy(jnp.asarray(positive), jnp.asarray(negatives), temperature, smoothing)
    for i in range(3):
        logits = np.concatenate([[positive[i]], negatives[i]]) / temperature
        assert loss[i] == pytest.approx(numpy_cross_entropy(logits, 0, smoothing), rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_sampled_softmax_corrects_by_q_and_masks_accidental_hits(temperature):
    proposal = popularity(COUNTS)
    drawn = RNG.integers(1, 9, (6, 7))
    drawn[0, 2] = TARGETS[0]

    def fixed(keys, n, proposal, outputs, encode):
        return Negatives(jnp.asarray(drawn), jnp.einsum("th,tnh->tn", outputs, encode(drawn)))

    loss = sampled_softmax(
        KEYS, jnp.asarray(OUTPUTS), jnp.asarray(TARGETS), jnp.asarray(TABLE[TARGETS]),
        lambda items: jnp.asarray(TABLE)[items], proposal, negatives=fixed, temperature=temperature,
    )  # fmt: skip
    q = (COUNTS + 1.0) / (COUNTS[1:] + 1.0).sum()
    for i, target in enumerate(TARGETS):
        kept = [item for item in drawn[i] if item != target]
        logits = [TABLE[item] @ OUTPUTS[i] - np.log(q[item] + 1e-16) for item in [target, *kept]]
        assert loss[i] == pytest.approx(numpy_cross_entropy(np.array(logits) / temperature, 0, 0.0), rel=1e-4)


@pytest.mark.parametrize(("temperature", "smoothing"), [(1.0, 0.0), (0.5, 0.2)])
def test_full_softmax_is_over_the_whole_catalog(temperature, smoothing):
    def mean(outputs):
        return full_softmax(
            KEYS, outputs, jnp.asarray(TARGETS), jnp.asarray(TABLE[TARGETS]),
            lambda items: jnp.asarray(TABLE)[items], popularity(COUNTS),
            temperature=temperature, label_smoothing=smoothing,
        ).mean()  # fmt: skip

    def by_numpy(outputs):
        logits = outputs.astype(np.float64) @ TABLE[1:].T / temperature
        return np.mean([numpy_cross_entropy(logits[i], TARGETS[i] - 1, smoothing) for i in range(6)])

    assert float(mean(jnp.asarray(OUTPUTS))) == pytest.approx(by_numpy(OUTPUTS), rel=1e-5)
    grad = jax.grad(mean)(jnp.asarray(OUTPUTS))
    step = np.zeros((6, 4))
    step[2, 1] = 1e-4
    assert grad[2, 1] == pytest.approx((by_numpy(OUTPUTS + step) - by_numpy(OUTPUTS - step)) / 2e-4, abs=1e-5)
