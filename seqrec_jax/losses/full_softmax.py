"""Softmax over the whole catalog."""

import functools

import gin
import jax
import jax.numpy as jnp

from seqrec_jax.losses.cross_entropy import MASKED_LOGIT, check_softmax
from seqrec_jax.losses.loss import Loss
from seqrec_jax.losses.negatives import AnyProposal, Keys, Predictions, dot, positive_logits, score_history, wide

LOGITS_PER_BLOCK = 1 << 21
MOST_DOMAINS = 8
"""Datasets that may be trained on together with their own catalogs by the full softmax."""


def _blocks(outputs: jax.Array, catalog: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The catalog in blocks whose logits take 8 MB, which a cache holds: [blocks, items, hidden], and their rows
    [blocks, items]."""
    n_rows, hidden = catalog.shape
    most = max(256, LOGITS_PER_BLOCK // len(outputs))
    n_blocks = -(-n_rows // most)
    per_block = -(-n_rows // n_blocks)
    padded = jnp.pad(catalog, ((0, n_blocks * per_block - n_rows), (0, 0)))
    return padded.reshape(n_blocks, per_block, hidden), jnp.arange(n_blocks * per_block).reshape(n_blocks, per_block)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def log_normalizer(
    outputs: jax.Array, catalog: jax.Array, temperature: float, n_learnt: int | None = None
) -> jax.Array:
    """log of the sum of exp(logit / temperature) over a catalog, in blocks of items, forward and backward.

    Neither the logits [targets, items] nor their gradient is ever held whole: the running maximum and sum of online
    softmax (Milakov and Gimelshein, arXiv 1805.02867), and the logits made again for the gradient.

    Args:
        outputs: [targets, hidden].
        catalog: [n_items + 1, hidden]; row 0, padding, is left out.
        temperature: divides the logits.
        n_learnt: the catalog's first columns, which get a gradient; those after them are fixed. None for all.

    Returns:
        [targets] float32.
    """
    n_rows = catalog.shape[0]

    def add(carry, block):
        highest, total = carry
        embeddings, rows = block
        logits = jnp.where((rows > 0) & (rows < n_rows), dot(outputs, embeddings.T) / temperature, -jnp.inf)
        new = jnp.maximum(highest, logits.max(1))
        return (new, total * jnp.exp(highest - new) + jnp.exp(logits - new[:, None]).sum(1)), None

    kind = wide(outputs)
    start = (jnp.full(len(outputs), jnp.finfo(kind).min, kind), jnp.zeros(len(outputs), kind))
    highest, total = jax.lax.scan(add, start, _blocks(outputs, catalog))[0]
    return highest + jnp.log(total)


def _forward(outputs, catalog, temperature, n_learnt):
    value = log_normalizer(outputs, catalog, temperature, n_learnt)
    return value, (outputs, catalog, value)


def _backward(temperature, n_learnt, kept, gradient):
    outputs, catalog, value = kept
    n_rows, hidden = catalog.shape
    scale = (gradient / temperature)[:, None]
    learnt = outputs[:, :n_learnt]

    def of_block(to_outputs, block):
        embeddings, rows = block
        logits = jnp.where((rows > 0) & (rows < n_rows), dot(outputs, embeddings.T) / temperature, -jnp.inf)
        weights = (jnp.exp(logits - value[:, None]) * scale).astype(catalog.dtype)
        return to_outputs + dot(weights, embeddings), dot(weights.T, learnt).astype(catalog.dtype)

    start = jnp.zeros(outputs.shape, wide(outputs))
    to_outputs, to_catalog = jax.lax.scan(of_block, start, _blocks(outputs, catalog))
    to_catalog = to_catalog.reshape(-1, learnt.shape[1])[:n_rows]
    return to_outputs.astype(outputs.dtype), jnp.pad(to_catalog, ((0, 0), (0, hidden - learnt.shape[1])))


log_normalizer.defvjp(_forward, _backward)


def _repeats(
    predictions: Predictions, normalizer: jax.Array, offset: jax.Array, temperature: float
) -> tuple[jax.Array, jax.Array]:
    """What the offset of the history's items adds to the log normalizer and to the target's logit: [targets] each."""
    logits, items, counts = score_history(predictions)
    counts &= items > 0
    held = jnp.exp(jnp.where(counts, logits / temperature - normalizer[:, None], MASKED_LOGIT)).sum(1)
    held = jnp.minimum(held, 1 - 1e-5)  # the history's share of the softmax, which rounding may lift to 1
    is_target = (counts & (items == predictions.observed.targets[:, None])).any(1)
    return jnp.log1p(held * jnp.expm1(offset)), jnp.where(is_target, offset, 0)


def _competing(predictions: Predictions, temperature: float) -> tuple[jax.Array, jax.Array]:
    """Outputs and catalog whose products are the logits, far below all others for items of another dataset.

    A column for each dataset does it: 1 for its items, and for targets of the others what a masked logit has.
    """
    outputs, catalog, domains = predictions.outputs, predictions.embeddings, predictions.domains
    if domains is None:
        return outputs, catalog
    numbers = jnp.arange(1, MOST_DOMAINS + 1)
    own = domains[predictions.observed.targets][:, None]
    foreign = (own != numbers) & (own > 0)  # padding has none, and must not end in logits far below its history's
    columns = jnp.where(foreign, MASKED_LOGIT * temperature, 0).astype(outputs.dtype)
    belongs = (domains[:, None] == numbers).astype(catalog.dtype)
    return jnp.concatenate([outputs, columns], 1), jnp.concatenate([catalog, belongs], 1)


def _mean_logit(predictions: Predictions) -> jax.Array:
    """Mean logit of the items that each target competes with: [targets]."""
    embeddings, domains = predictions.embeddings, predictions.domains
    if domains is None:
        return dot(predictions.outputs, embeddings[1:].mean(0))
    belongs = (domains[:, None] == jnp.arange(1, MOST_DOMAINS + 1)).astype(embeddings.dtype)
    means = belongs.T @ embeddings / jnp.maximum(belongs.sum(0), 1)[:, None]
    return (predictions.outputs * means[domains[predictions.observed.targets] - 1]).sum(-1)


@gin.configurable
def full_softmax(temperature: float = 1.0, label_smoothing: float = 0.0) -> Loss:
    """Cross entropy of the target among all items, in blocks of items.

    Args:
        temperature: divides the logits.
        label_smoothing: share of the label spread over all items.

    Raises:
        InputError: temperature or label_smoothing is out of range.
    """
    check_softmax("full_softmax", temperature, label_smoothing)

    def losses(keys: Keys, predictions: Predictions, proposal: AnyProposal) -> jax.Array:
        del keys, proposal
        normalizer = log_normalizer(*_competing(predictions, temperature), temperature, predictions.n_learnt)
        positive = positive_logits(predictions) / temperature
        if predictions.repeat_offset is not None:
            offset = predictions.repeat_offset / temperature
            more, repeated = _repeats(predictions, normalizer, offset, temperature)
            normalizer, positive = normalizer + more, positive + repeated
        if not label_smoothing:
            return normalizer - positive
        mean = _mean_logit(predictions) / temperature
        return normalizer - (1 - label_smoothing) * positive - label_smoothing * mean

    return Loss(lambda *_: None, lambda *_: None, losses, whole_catalog=True)
