"""Softmax over the whole catalog."""

import gin
import jax
import jax.numpy as jnp

from seqrec_jax.losses.cross_entropy import cross_entropy
from seqrec_jax.losses.negatives import Encode, Keys, Proposal

TARGETS_PER_BLOCK = 128


@gin.configurable
def full_softmax(
    keys: Keys,
    outputs: jax.Array,
    targets: jax.Array,
    target_embeddings: jax.Array,
    encode: Encode,
    proposal: Proposal,
    *,
    temperature: float = 1.0,
    label_smoothing: float = 0.0,
) -> jax.Array:
    """Cross entropy of the target among all items, in blocks of targets; the blocks' logits are made again backward.

    Args:
        keys: unused, as nothing is drawn.
        outputs: [targets, hidden], of the transformer.
        targets: [targets] int32, catalog items.
        target_embeddings: [targets, hidden].
        encode: embeds catalog items.
        proposal: gives the size of the catalog.
        temperature: divides the logits.
        label_smoothing: share of the label spread over all items.

    Returns:
        [targets] float32.
    """
    del keys
    catalog = encode(jnp.arange(1, proposal.n_items + 1, dtype=jnp.int32))

    @jax.checkpoint
    def block(output: jax.Array, target: jax.Array, target_embedding: jax.Array) -> jax.Array:
        logits = catalog @ output
        others = jnp.where(jnp.arange(1, proposal.n_items + 1) == target, -jnp.inf, logits)
        positive = output @ target_embedding
        loss = cross_entropy(positive[None], others[None], temperature)[0]
        if label_smoothing:
            mean_logit = logits.mean() / temperature
            loss = loss + label_smoothing * (positive / temperature - mean_logit)
        return loss

    return jax.lax.map(
        lambda parts: block(*parts),
        (outputs, targets, target_embeddings),
        batch_size=min(TARGETS_PER_BLOCK, len(outputs)),
    )
