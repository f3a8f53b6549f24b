"""Negatives that the batch itself gives: other targets, and points around the target."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from seqrec_jax.data.split import TrainInteractions
from seqrec_jax.errors import InputError
from seqrec_jax.losses.loss import ModelOutputs, Scored
from seqrec_jax.losses.proposals.by_count import LEAST_Q
from seqrec_jax.losses.scores import dot, map_targets, not_negative, positive_logits


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Similarity:
    """The batch's targets, each as probable as it is similar to the sequence output."""

    per_target: ClassVar[bool] = True
    least_rows: ClassVar[int] = 2

    def score(self, keys: jax.Array, model: ModelOutputs, n: int) -> Scored:
        """Logits of the targets and their negatives: a draw is a place in the running sum of the batch's weights."""
        targets, embeddings = model.inputs.targets, model.target_embeddings
        in_order = jnp.sort(targets)
        times = jnp.searchsorted(in_order, targets, side="right") - jnp.searchsorted(in_order, targets)
        unit = jax.lax.stop_gradient(embeddings.astype(jnp.float32))
        unit = unit / jnp.maximum(jnp.linalg.norm(unit, axis=1, keepdims=True), 1e-12)

        def of_target(output: jax.Array, ordinal: jax.Array, key: jax.Array):
            at_output = jax.lax.stop_gradient(output.astype(jnp.float32))
            cosine = unit @ at_output / jnp.maximum(jnp.linalg.norm(at_output), 1e-12)
            weight = jnp.where(targets > 0, (1 + cosine) / 2, 0)
            running = jnp.cumsum(weight)
            draw = jax.random.uniform(key, (n,)) * running[-1]
            drawn = jnp.minimum(jnp.searchsorted(running, draw, side="right"), len(targets) - 1)
            log_q = jnp.log(weight * times / running[-1] + LEAST_Q)
            return dot(embeddings, output)[drawn], log_q[drawn], log_q[ordinal], targets[drawn]

        logits, log_q, positive_log_q, items = map_targets(of_target, model.outputs, jnp.arange(len(targets)), keys)
        return Scored(positive_logits(model), logits, positive_log_q, log_q, not_negative(model, items))


def similarity(train: TrainInteractions) -> Similarity:
    """Targets of the batch, in proportion to (1 + cosine with the sequence output) / 2 (SRT: without a softmax).

    An item that is the target of several positions is as many times as probable; the own target is among them, and
    masked when it is drawn, as everywhere. `train` is not used.
    """
    return Similarity()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PositiveMixing:
    """Points at a distance of `mixing_factor` around the target's embedding; all targets may share the directions."""

    mixing_factor: float = dataclasses.field(metadata={"static": True})
    per_target: ClassVar[bool] = False
    least_rows: ClassVar[int] = 1

    def score(self, keys: jax.Array, model: ModelOutputs, n: int) -> Scored:
        """Logits of the targets and of n points around each."""
        outputs, positive, none = model.outputs, positive_logits(model), jnp.zeros((1, n))

        def directions(key: jax.Array) -> jax.Array:
            points = jax.random.normal(key, (n, outputs.shape[1]))
            return points / jnp.linalg.norm(points, axis=1, keepdims=True)

        if len(keys) == 1:
            along = dot(outputs.astype(jnp.float32), directions(keys[0]).T)
        else:
            along = map_targets(lambda output, key: dot(directions(key), output.astype(jnp.float32)), outputs, keys)
        negative = positive[:, None] + self.mixing_factor * along
        return Scored(positive, negative, jnp.zeros(len(outputs)), none, none > 0)


def positive_mixing(train: TrainInteractions, mixing_factor: float = 1.0) -> PositiveMixing:
    """The target's embedding plus a random direction of length `mixing_factor` (SRT); no items, so no logQ correction.

    Alone it sets no item against another, and ranks them no better than chance; the reference's own does not run.
    `train` is not used.
    """
    if not mixing_factor > 0:
        raise InputError(f"positive_mixing.mixing_factor = {mixing_factor} is not above 0")
    return PositiveMixing(mixing_factor)
