"""Sampled softmax with the logQ correction (InfoNCE), SRT's training loss."""

from collections.abc import Callable

import gin
import jax
import jax.numpy as jnp

from seqrec_jax.losses.cross_entropy import MASKED_LOGIT, cross_entropy
from seqrec_jax.losses.negatives import Encode, Keys, Negatives, Proposal, local


@gin.configurable
def sampled_softmax(
    keys: Keys,
    outputs: jax.Array,
    targets: jax.Array,
    target_embeddings: jax.Array,
    encode: Encode,
    proposal: Proposal,
    *,
    n_negatives: int = 300,
    negatives: Callable[[Keys, int, Proposal, jax.Array, Encode], Negatives] = local,
    temperature: float = 1.0,
    label_smoothing: float = 0.0,
) -> jax.Array:
    """Cross entropy of the target among negatives drawn from q, each logit corrected by -log q.

    A negative that equals its target is masked. Bengio and Senecal, 2008; SRT, SIGIR 2024.

    Args:
        keys: of the negatives.
        outputs: [targets, hidden], of the transformer.
        targets: [targets] int32, catalog items.
        target_embeddings: [targets, hidden].
        encode: embeds catalog items.
        proposal: q.
        n_negatives: for each target (`local`) or for all (`shared`).
        negatives: `local` or `shared`.
        temperature: divides the corrected logits.
        label_smoothing: share of the label spread over all candidates.

    Returns:
        [targets] float32.
    """
    drawn = negatives(keys, n_negatives, proposal, outputs, encode)
    positive = (outputs * target_embeddings).sum(-1) - proposal.log_q[targets]
    negative = drawn.logits - proposal.log_q[drawn.items]
    negative = jnp.where(drawn.items == targets[:, None], MASKED_LOGIT, negative)
    return cross_entropy(positive, negative, temperature, label_smoothing)
