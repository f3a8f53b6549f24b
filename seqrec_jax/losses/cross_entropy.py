"""Cross entropy of a target's logit and its competitors'."""

import math

import jax
import jax.numpy as jnp

from seqrec_jax.errors import InputError

MASKED_LOGIT = -655.04
"""What the reference gives a negative that equals its target: float16's minimum divided by 100."""


def check_softmax(loss: str, temperature: float, label_smoothing: float) -> None:
    """Raises an InputError for a temperature or a smoothing that makes no sense."""
    if not 0 < temperature < math.inf:
        raise InputError(f"{loss}.temperature = {temperature} is not above 0")
    if not 0 <= label_smoothing < 1:
        raise InputError(f"{loss}.label_smoothing = {label_smoothing} is not in [0, 1)")


def cross_entropy(
    positive: jax.Array, negatives: jax.Array, temperature: float = 1.0, label_smoothing: float = 0.0
) -> jax.Array:
    """Cross entropy of a softmax over logits of the positive [targets] and its negatives [targets, n]: [targets].

    All are float32 and divided by the temperature; a share of the label goes evenly to all n + 1 (as in PyTorch).
    """
    positive, negatives = positive / temperature, negatives / temperature
    log_normalizer = jnp.logaddexp(positive, jax.nn.logsumexp(negatives, -1))
    loss = log_normalizer - positive
    if label_smoothing:
        mean_logit = (positive + negatives.sum(-1)) / (negatives.shape[-1] + 1)
        loss = (1 - label_smoothing) * loss + label_smoothing * (log_normalizer - mean_logit)
    return loss
