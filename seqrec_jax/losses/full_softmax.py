"""Softmax over the whole catalog."""

import functools

import jax
import jax.numpy as jnp

from seqrec_jax.losses.cross_entropy import MASKED_LOGIT, check_softmax
from seqrec_jax.losses.loss import AnyProposal, Keys, Loss, ModelOutputs
from seqrec_jax.losses.scores import dot, positive_logits, score_history, wide
from seqrec_jax.runs.step_flops import MADE_AGAIN

LOGITS_PER_BLOCK = 1 << 21


def _blocks(outputs: jax.Array, catalog: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Blocks whose logits take 8 MB, which a cache holds: embeddings [blocks, items, hidden], rows [blocks, items]."""
    n_rows, hidden = catalog.shape
    n_blocks = -(-n_rows // max(256, LOGITS_PER_BLOCK // len(outputs)))
    per_block = -(-n_rows // n_blocks)
    padded = jnp.pad(catalog, ((0, n_blocks * per_block - n_rows), (0, 0)))
    return padded.reshape(n_blocks, per_block, hidden), jnp.arange(n_blocks * per_block).reshape(n_blocks, per_block)


def _logits(outputs: jax.Array, block: tuple[jax.Array, jax.Array], n_rows: int, temperature: float) -> jax.Array:
    """Logits of a block's items, -inf for padding: [targets, items]."""
    embeddings, rows = block
    return jnp.where((rows > 0) & (rows < n_rows), dot(outputs, embeddings.T) / temperature, -jnp.inf)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def log_normalizer(
    outputs: jax.Array, catalog: jax.Array, temperature: float, n_learnt: int | None = None
) -> jax.Array:
    """log of the sum of exp(logit / temperature) over a catalog, in blocks of items: [targets] float32.

    Neither the logits [targets, items] nor their gradient is ever held whole: the running maximum and sum of online
    softmax (Milakov and Gimelshein, arXiv 1805.02867), and the logits made again for the gradient.

    `outputs` are [targets, hidden], `catalog` [n_items + 1, hidden], of which row 0, padding, is left out and the
    first `n_learnt` columns get a gradient (None for all).
    """

    def add(sums, block):
        highest, total = sums
        logits = _logits(outputs, block, len(catalog), temperature)
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
        with jax.named_scope(MADE_AGAIN):
            logits = _logits(outputs, block, n_rows, temperature)
        weights = (jnp.exp(logits - value[:, None]) * scale).astype(catalog.dtype)
        return to_outputs + dot(weights, block[0]), dot(weights.T, learnt).astype(catalog.dtype)

    start = jnp.zeros(outputs.shape, wide(outputs))
    to_outputs, to_catalog = jax.lax.scan(of_block, start, _blocks(outputs, catalog))
    to_catalog = to_catalog.reshape(-1, learnt.shape[1])[:n_rows]
    return to_outputs.astype(outputs.dtype), jnp.pad(to_catalog, ((0, 0), (0, hidden - learnt.shape[1])))


log_normalizer.defvjp(_forward, _backward)


def _add_history(
    model: ModelOutputs, normalizer: jax.Array, offset: jax.Array, temperature: float
) -> tuple[jax.Array, jax.Array]:
    """What the offset of the history's items adds to the log normalizer and to the target's logit: [targets] each."""
    logits, items, counts = score_history(model)
    counts &= items > 0
    share = jnp.exp(jnp.where(counts, logits / temperature - normalizer[:, None], MASKED_LOGIT)).sum(1)
    share = jnp.minimum(share, 1 - 1e-5)  # the history's share of the softmax, which rounding may lift to 1
    is_target = (counts & (items == model.inputs.targets[:, None])).any(1)
    return jnp.log1p(share * jnp.expm1(offset)), jnp.where(is_target, offset, 0)


def _members(model: ModelOutputs, group_ids: jax.Array) -> jax.Array:
    """1 where an item is of a group: [n_items + 1, n_groups], of the embeddings' type."""
    return (group_ids[:, None] == jnp.arange(1, model.n_groups + 1)).astype(model.embeddings.dtype)


def _competing(model: ModelOutputs, temperature: float) -> tuple[jax.Array, jax.Array]:
    """Outputs and catalog whose products are the logits, far below all others for items of another group."""
    outputs, catalog, group_ids = model.outputs, model.embeddings, model.group_ids
    if group_ids is None:
        return outputs, catalog
    # A column for each group: 1 for its items, and what a masked logit has for targets of the others. Padding has no
    # group, and must not end in logits far below its history's.
    own = group_ids[model.inputs.targets][:, None]
    foreign = (own != jnp.arange(1, model.n_groups + 1)) & (own > 0)
    columns = jnp.where(foreign, MASKED_LOGIT * temperature, 0).astype(outputs.dtype)
    return jnp.concatenate([outputs, columns], 1), jnp.concatenate([catalog, _members(model, group_ids)], 1)


def _mean_logit(model: ModelOutputs) -> jax.Array:
    """Mean logit of the items that each target competes with: [targets]."""
    if model.group_ids is None:
        return dot(model.outputs, model.embeddings[1:].mean(0))
    members = _members(model, model.group_ids)
    means = members.T @ model.embeddings / jnp.maximum(members.sum(0), 1)[:, None]
    return (model.outputs * means[model.group_ids[model.inputs.targets] - 1]).sum(-1)


def full_softmax(temperature: float = 1.0, label_smoothing: float = 0.0) -> Loss:
    """Cross entropy of the target among all items, in blocks of items.

    The temperature divides the logits; label_smoothing is the share of the label that is spread over all items.
    """
    check_softmax("full_softmax", temperature, label_smoothing)

    def losses(keys: Keys, model: ModelOutputs, proposal: AnyProposal) -> jax.Array:
        normalizer = log_normalizer(*_competing(model, temperature), temperature, model.n_learnt)
        positive = positive_logits(model) / temperature
        if model.history_offset is not None:
            more, repeated = _add_history(model, normalizer, model.history_offset / temperature, temperature)
            normalizer, positive = normalizer + more, positive + repeated
        if not label_smoothing:
            return normalizer - positive
        mean = _mean_logit(model) / temperature
        return normalizer - (1 - label_smoothing) * positive - label_smoothing * mean

    return Loss(lambda *_: None, lambda *_: None, losses, whole_catalog=True)
