"""One training step: a pure jitted function over the parameter tree, data parallel over the mesh."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from seqrec_jax.data.batches import Batch
from seqrec_jax.losses.negatives import Keys, Proposal
from seqrec_jax.training.devices import DATA_AXIS, REPLICATED, SPLIT

Loss = Callable[..., jax.Array]


class Catalog(NamedTuple):
    """What the step needs to know of the items.

    Attributes:
        tokens: per text feature [n_items + 1, tokens] of token ids.
        proposal: of negatives.
    """

    tokens: Mapping[str, jax.Array | np.ndarray]
    proposal: Proposal


class TrainState(NamedTuple):
    """What a step changes."""

    params: nnx.State
    optimizer: optax.OptState
    step: jax.Array | np.ndarray | np.int32


def shard_loss(
    graph: nnx.GraphDef,
    loss: Loss,
    params: nnx.State,
    catalog: Catalog,
    batch: Batch,
    keys: Keys,
    dropout_key: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """Sum of the losses of a device's share of the batch, and the number of its targets.

    Each distinct item of the share is encoded once, as input and as target.
    """
    model = nnx.merge(graph, params)

    def encode(items: jax.Array | np.ndarray) -> jax.Array:
        return model.encode_items({name: tokens[items] for name, tokens in catalog.tokens.items()})

    embeddings = encode(batch.items)
    hidden = model.encode_sequences(embeddings[batch.inputs], batch.segments, batch.positions, dropout_key)
    outputs = hidden.reshape(-1, hidden.shape[-1])[batch.slots]
    losses = loss(keys, outputs, batch.items[batch.targets], embeddings[batch.targets], encode, catalog.proposal)
    return (losses * batch.weights).sum(), batch.weights.sum()


def make_loss_and_grads(graph: nnx.GraphDef, loss: Loss, mesh: Mesh) -> Callable[..., tuple[jax.Array, nnx.State]]:
    """The mean loss of a batch over all devices, and its gradient.

    Returns:
        f(params, catalog, batch, negatives_key, dropout_key or None). Each device differentiates the sum over its own
        share; sums and gradients are then added over the devices, once.
    """

    def over_shard(params, catalog, batch, negatives_key, dropout_key):
        shard = jax.lax.axis_index(DATA_AXIS)
        keys = Keys(negatives_key, jax.random.fold_in(negatives_key, shard))
        dropout_key = None if dropout_key is None else jax.random.fold_in(dropout_key, shard)

        def share(params):
            return shard_loss(graph, loss, params, catalog, batch, keys, dropout_key)

        (total, weight), grads = jax.value_and_grad(share, has_aux=True)(params)
        total, weight, grads = jax.lax.psum((total, weight, grads), DATA_AXIS)
        weight = jnp.maximum(weight, 1)
        return total / weight, jax.tree.map(lambda grad: grad / weight, grads)

    specs = (REPLICATED, REPLICATED, SPLIT, REPLICATED, REPLICATED)
    return jax.shard_map(over_shard, mesh=mesh, in_specs=specs, out_specs=REPLICATED, check_vma=False)


def make_train_step(
    graph: nnx.GraphDef,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    seed: int,
    dropout_generator: str = "threefry2x32",
) -> jax.stages.Wrapped:
    """The jitted step: state, catalog, batch -> state, mean loss. The state's buffers are donated.

    Random keys derive from (seed, step) alone.

    Args:
        graph: of the recommender.
        loss: of the targets; see `losses`.
        optimizer: from Optax.
        mesh: with a `data` axis.
        seed: of dropout and negatives.
        dropout_generator: a JAX PRNG implementation; on a CPU `rbg` takes several times as long as `threefry2x32`.
    """
    loss_and_grads = make_loss_and_grads(graph, loss, mesh)

    def step(state: TrainState, catalog: Catalog, batch: Batch) -> tuple[TrainState, jax.Array]:
        negatives_key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), state.step)
        dropout_key = jax.random.fold_in(jax.random.key(seed, impl=dropout_generator), state.step)
        value, grads = loss_and_grads(state.params, catalog, batch, negatives_key, dropout_key)
        updates, optimizer_state = optimizer.update(grads, state.optimizer, state.params)
        return TrainState(optax.apply_updates(state.params, updates), optimizer_state, state.step + 1), value

    return jax.jit(step, donate_argnums=0)
