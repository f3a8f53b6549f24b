"""How much each parameter matters to what was learnt before: the diagonal of the Fisher information, as in SRT."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from seqrec_jax.data.batches import Batch
from seqrec_jax.model import parameters
from seqrec_jax.training.step import Catalog


def fisher(
    loss_and_grads: Callable[..., tuple[jax.Array, nnx.State]],
    params: nnx.State,
    catalog: Catalog,
    batches: Iterable[Batch],
    seed: int,
) -> dict[str, jax.Array]:
    """Mean over batches of the squared gradient of the batch's loss, without dropout.

    Args:
        loss_and_grads: from make_loss_and_grads, for the whole model.
        params: of the model.
        catalog: of the pre-training dataset.
        batches: of pre-training, on the devices.
        seed: of the negatives.

    Returns:
        For each parameter, by name, an array of its shape.
    """

    @jax.jit
    def add(total: Any, index: jax.Array, batch: Batch, params: nnx.State, catalog: Catalog) -> Any:
        key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), index)
        _, grads = loss_and_grads(params, None, catalog, batch, key, None)
        return jax.tree.map(lambda old, grad: old + grad.astype(jnp.float32) ** 2, total, grads)

    total, n = jax.tree.map(lambda array: jnp.zeros_like(array, jnp.float32), params), 0
    for n, batch in enumerate(batches, 1):
        total = jax.block_until_ready(add(total, jnp.int32(n), batch, params, catalog))
    assert n, "no batch to take the Fisher information over"
    return {name: array / n for name, array in parameters.named(total).items()}
