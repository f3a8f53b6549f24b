"""Sampled softmax with the logQ correction (InfoNCE), SRT's training loss."""

import jax
import jax.numpy as jnp

from seqrec_jax.losses.cross_entropy import MASKED_LOGIT, check_softmax, cross_entropy
from seqrec_jax.losses.loss import Loss, ModelOutputs, Scored
from seqrec_jax.losses.negatives import Negatives, Sets, local
from seqrec_jax.losses.scores import score_history


def sampled_softmax(
    n_negatives: int = 300, negatives: Sets = local, temperature: float = 1.0, label_smoothing: float = 0.0,
    correct_positive: bool = True, history_negatives: bool = False,
) -> Loss:  # fmt: skip
    """Cross entropy of the target among negatives drawn from q, each logit corrected by -log q.

    A negative that equals its target is masked. Bengio and Senecal, 2008; SRT, SIGIR 2024.

    Args:
        negatives: `local`, a set for each target, or `shared`, one for all.
        temperature: Divides the corrected logits.
        label_smoothing: Share of the label that is spread over all candidates.
        correct_positive: True corrects the target's logit by its own -log q too, as SRT and TensorFlow do; the gradient
            then tends to that of the full softmax divided by 1 - p(target) as negatives grow. False adds log n to it
            instead; the sum is then an unbiased estimate of the catalog's, and the gradient tends to that of the full
            softmax.
        history_negatives: Also set each target against its own history, for the price of one more attention product.
            For data in which nobody buys an item twice: a model of texts ranks what the user has already first, and
            few draws ever tell it otherwise. Such an item counts as n draws would. A repeat offset is learnt here.
    """
    check_softmax("sampled_softmax", temperature, label_smoothing)

    def losses(scored: Scored, model: ModelOutputs) -> jax.Array:
        negative = jnp.where(scored.hit, MASKED_LOGIT, scored.negative - scored.negative_log_q)
        positive = scored.positive + (-scored.positive_log_q if correct_positive else jnp.log(n_negatives))
        if history_negatives:
            logits, items, counts = score_history(model)
            is_target = items == model.inputs.targets[:, None]
            if model.history_offset is not None:
                logits += model.history_offset
                positive += jnp.where((counts & is_target).any(1), model.history_offset, 0)
            history = jnp.where(counts & ~is_target, logits + jnp.log(n_negatives), MASKED_LOGIT)
            negative = jnp.concatenate([negative, history], 1)
        return cross_entropy(positive, negative, temperature, label_smoothing)

    return Negatives(n_negatives, negatives, "sampled_softmax").make_loss(losses, scores_history=history_negatives)
