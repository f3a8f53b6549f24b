"""Losses that compare the target with one negative at a time: BCE, gBCE and BPR.

Each takes the number of negatives in a set, of which those that equal the target do not count, and whether sets are
`local` (one for each target) or `shared` (one for all).
"""

import jax
import jax.numpy as jnp

from seqrec_jax.errors import InputError
from seqrec_jax.losses.loss import Loss, ModelOutputs, Scored
from seqrec_jax.losses.negatives import Negatives, Sets, local


def _sum_over_negatives(scored: Scored, logits: jax.Array) -> jax.Array:
    """Sum of softplus(logit) over the negatives that are none of the targets: [targets]."""
    return jnp.where(scored.hit, 0, jax.nn.softplus(logits)).sum(-1)


def bce(n_negatives: int = 1, negatives: Sets = local) -> Loss:
    """Binary cross entropy: -log s(positive) - sum of log(1 - s(negative)), s the sigmoid.

    SASRec (Kang and McAuley, ICDM 2018), which draws one uniform negative a target.
    """
    return Negatives(n_negatives, negatives, "bce").make_loss(
        lambda scored, _: jax.nn.softplus(-scored.positive) + _sum_over_negatives(scored, scored.negative)
    )


def gbce(n_negatives: int = 256, negatives: Sets = local, t: float = 0.75) -> Loss:
    """Generalised binary cross entropy: -(b log s(positive) + sum of log(1 - s(negative))) / (n + 1).

    b = a (t (1 - 1/a) + 1/a), with a = n / (n_items - 1). At t = 0 it is BCE; at t = 1 the scores are calibrated, as
    they would be without sampling. gSASRec (Petrov and Macdonald, RecSys 2023), for uniform negatives.
    An InputError where t is not from 0 to 1.
    """
    if not 0 <= t <= 1:
        raise InputError(f"gbce.t = {t} is not in [0, 1]")

    def losses(scored: Scored, model: ModelOutputs) -> jax.Array:
        rate = n_negatives / max(model.n_items - 1, 1)
        beta = rate * (t * (1 - 1 / rate) + 1 / rate)
        against = _sum_over_negatives(scored, scored.negative)
        return (beta * jax.nn.softplus(-scored.positive) + against) / (n_negatives + 1)

    return Negatives(n_negatives, negatives, "gbce").make_loss(losses)


def bpr(n_negatives: int = 1, negatives: Sets = local) -> Loss:
    """Bayesian personalised ranking: the mean of -log s(positive - negative), s the sigmoid.

    Rendle et al., UAI 2009, for one negative; the mean over several as in GRU4Rec (Hidasi et al., ICLR 2016).
    """
    return Negatives(n_negatives, negatives, "bpr").make_loss(
        lambda scored, _: _sum_over_negatives(scored, scored.negative - scored.positive[:, None]) / n_negatives
    )
