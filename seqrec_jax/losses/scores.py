"""Logits: of targets, of negatives, and of a target's own history."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from seqrec_jax.losses.loss import ModelOutputs
from seqrec_jax.model.network import items_read

TARGETS_PER_BLOCK = 64


def wide(array: jax.Array) -> jax.typing.DTypeLike:
    """The type to sum and exponentiate in: float32, or float64 where the array has it."""
    return jnp.promote_types(array.dtype, jnp.float32)


def dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """A matrix product whose result is float32 or wider, whatever the inputs' type."""
    return jnp.matmul(a, b, preferred_element_type=wide(a))


def map_targets(function: Callable[..., Any], *arrays: jax.Array) -> Any:
    """function(*rows of the arrays) for each target, in blocks; the gradient computes its inner values again."""
    function = jax.checkpoint(function)
    return jax.lax.map(lambda rows: function(*rows), arrays, batch_size=min(TARGETS_PER_BLOCK, len(arrays[0])))


def positive_logits(model: ModelOutputs) -> jax.Array:
    """Dot products of the outputs with their targets: [targets] float32."""
    kind = wide(model.outputs)
    return (model.outputs.astype(kind) * model.target_embeddings.astype(kind)).sum(-1)


def not_negative(model: ModelOutputs, drawn: jax.Array) -> jax.Array:
    """Which of the drawn items [1 or targets, n] are no negatives of the targets: [targets, n] bool."""
    targets, groups = model.inputs.targets[:, None], model.group_ids
    same = drawn == targets
    return same if groups is None else same | (groups[drawn] != groups[targets])


def score_history(model: ModelOutputs) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Each target's own history: logits [targets, length] float32; items and which of them count, as `items_read`."""
    (_, slots, inputs, positions), hidden = model.inputs, model.hidden
    logits = jnp.einsum("rqh,rkh->rqk", hidden, model.input_embeddings, preferred_element_type=wide(hidden))
    return logits.reshape(-1, inputs.shape[1])[slots], *items_read(inputs, positions, slots)


def score_rows(outputs: jax.Array, embeddings: jax.Array, rows: jax.Array) -> jax.Array:
    """Dot products of each output with its own set of embeddings, in blocks of targets: [targets, n] float32.

    The gathered embeddings [targets, n, hidden] are never held whole, forward or backward: `rows` [targets, n] int32
    are those of the embeddings [items, hidden].
    """

    def of_target(output: jax.Array, row: jax.Array) -> jax.Array:
        return jnp.einsum("h,nh->n", output, embeddings[row], preferred_element_type=wide(output))

    return map_targets(of_target, outputs, rows)
