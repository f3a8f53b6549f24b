"""Losses that compare the target with one negative at a time: BCE, gBCE and BPR."""

from collections.abc import Callable

import gin
import jax
import jax.numpy as jnp

from seqrec_jax.errors import InputError
from seqrec_jax.losses.loss import Loss
from seqrec_jax.losses.negatives import AnyProposal, Keys, Negatives, Predictions, local


@gin.configurable
def bce(n_negatives: int = 1, negatives: Callable[[Keys], jax.Array] = local) -> Loss:
    """Binary cross entropy: -log s(positive) - sum of log(1 - s(negative)), s the sigmoid.

    SASRec (Kang and McAuley, ICDM 2018), which draws one uniform negative a target.

    Args:
        n_negatives: for each target (`local`) or for all (`shared`); those that equal the target do not count.
        negatives: `local` or `shared`.
    """
    sample = Negatives(n_negatives, negatives, "bce")

    def losses(keys: Keys, predictions: Predictions, proposal: AnyProposal) -> jax.Array:
        scored = sample.score(keys, predictions, proposal)
        against = jnp.where(scored.hit, 0, jax.nn.softplus(scored.negative)).sum(-1)
        return jax.nn.softplus(-scored.positive) + against

    return Loss(sample.check, sample.draw, losses)


@gin.configurable
def gbce(n_negatives: int = 256, negatives: Callable[[Keys], jax.Array] = local, t: float = 0.75) -> Loss:
    """Generalised binary cross entropy: -(b log s(positive) + sum of log(1 - s(negative))) / (n + 1).

    b = a (t (1 - 1/a) + 1/a), with a = n / (n_items - 1). At t = 0 it is BCE; at t = 1 the scores are calibrated, as
    they would be without sampling. gSASRec (Petrov and Macdonald, RecSys 2023), for uniform negatives.

    Args:
        n_negatives: for each target (`local`) or for all (`shared`); those that equal the target do not count.
        negatives: `local` or `shared`.
        t: calibration, from 0 to 1.

    Raises:
        InputError: t is out of range.
    """
    if not 0 <= t <= 1:
        raise InputError(f"gbce.t = {t} is not in [0, 1]")
    sample = Negatives(n_negatives, negatives, "gbce")

    def losses(keys: Keys, predictions: Predictions, proposal: AnyProposal) -> jax.Array:
        scored = sample.score(keys, predictions, proposal)
        rate = n_negatives / max(predictions.n_items - 1, 1)
        beta = rate * (t * (1 - 1 / rate) + 1 / rate)
        against = jnp.where(scored.hit, 0, jax.nn.softplus(scored.negative)).sum(-1)
        return (beta * jax.nn.softplus(-scored.positive) + against) / (n_negatives + 1)

    return Loss(sample.check, sample.draw, losses)


@gin.configurable
def bpr(n_negatives: int = 1, negatives: Callable[[Keys], jax.Array] = local) -> Loss:
    """Bayesian personalised ranking: the mean of -log s(positive - negative), s the sigmoid.

    Rendle et al., UAI 2009, for one negative; the mean over several as in GRU4Rec's BPR loss (Hidasi et al., ICLR
    2016).

    Args:
        n_negatives: for each target (`local`) or for all (`shared`); those that equal the target do not count.
        negatives: `local` or `shared`.
    """
    sample = Negatives(n_negatives, negatives, "bpr")

    def losses(keys: Keys, predictions: Predictions, proposal: AnyProposal) -> jax.Array:
        scored = sample.score(keys, predictions, proposal)
        against = jnp.where(scored.hit, 0, jax.nn.softplus(scored.negative - scored.positive[:, None]))
        return against.sum(-1) / n_negatives

    return Loss(sample.check, sample.draw, losses)
