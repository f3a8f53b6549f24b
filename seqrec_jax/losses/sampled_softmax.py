"""Sampled softmax with the logQ correction (InfoNCE), SRT's training loss."""

from collections.abc import Callable

import gin
import jax
import jax.numpy as jnp

from seqrec_jax.losses.cross_entropy import MASKED_LOGIT, check_softmax, cross_entropy
from seqrec_jax.losses.loss import Loss
from seqrec_jax.losses.negatives import AnyProposal, Keys, Negatives, Predictions, local, score_history


@gin.configurable
def sampled_softmax(
    n_negatives: int = 300,
    negatives: Callable[[Keys], jax.Array] = local,
    temperature: float = 1.0,
    label_smoothing: float = 0.0,
    correct_positive: bool = True,
    history_negatives: bool = False,
) -> Loss:
    """Cross entropy of the target among negatives drawn from q, each logit corrected by -log q.

    A negative that equals its target is masked. Bengio and Senecal, 2008; SRT, SIGIR 2024.

    Args:
        n_negatives: for each target (`local`) or for all (`shared`).
        negatives: `local` or `shared`.
        temperature: divides the corrected logits.
        label_smoothing: share of the label spread over all candidates.
        correct_positive: True corrects the target's logit by its own -log q too, as SRT and TensorFlow do; the gradient
            then tends to that of the full softmax divided by 1 - p(target) as negatives grow. False adds log n to it
            instead, which makes the sum an unbiased estimate of the catalog's, and the gradient tends to that of the
            full softmax.
        history_negatives: also set each target against its own history, for the price of one more attention product.
            For data in which nobody buys an item twice: a model of texts ranks what the user has already, or what reads
            like it, first, and few draws ever tell it otherwise. Such an item counts as n draws of it would, once more
            than in the catalog. A model with a repeat offset learns it here.

    Raises:
        InputError: temperature or label_smoothing is out of range.
    """
    check_softmax("sampled_softmax", temperature, label_smoothing)
    sample = Negatives(n_negatives, negatives, "sampled_softmax")

    def losses(keys: Keys, predictions: Predictions, proposal: AnyProposal) -> jax.Array:
        scored = sample.score(keys, predictions, proposal)
        negative = jnp.where(scored.hit, MASKED_LOGIT, scored.negative - scored.negative_log_q)
        positive = scored.positive + (-scored.positive_log_q if correct_positive else jnp.log(n_negatives))
        if history_negatives:
            logits, items, counts = score_history(predictions)
            is_target = items == predictions.observed.targets[:, None]
            if predictions.repeat_offset is not None:
                logits += predictions.repeat_offset
                positive += jnp.where((counts & is_target).any(1), predictions.repeat_offset, 0)
            history = jnp.where(counts & ~is_target, logits + jnp.log(n_negatives), MASKED_LOGIT)
            negative = jnp.concatenate([negative, history], 1)
        return cross_entropy(positive, negative, temperature, label_smoothing)

    return Loss(sample.check, sample.draw, losses, scores_history=history_negatives)
