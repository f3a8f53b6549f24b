"""One training step: a pure jitted function over the parameter tree, data parallel over the mesh."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from seqrec_jax.data.batches import Batch
from seqrec_jax.devices import AXES, REPLICATED, SPLIT, add_over_devices, shardings, specs
from seqrec_jax.losses.loss import Loss
from seqrec_jax.losses.negatives import AnyProposal, Keys, Predictions
from seqrec_jax.losses.proposals.interface import Observed
from seqrec_jax.model.dropout import Noise
from seqrec_jax.training.tuning import Fixed, Tuning

ITEMS_PER_BLOCK = 1 << 14
COMPUTE_DTYPES = ("float32", "bfloat16")


class Catalog(NamedTuple):
    """What the step needs to know of the items.

    Attributes:
        features: per text feature [n_items + 1, tokens] of token ids, and `item_id` [n_items + 1] where the model has
            rows.
        proposal: of negatives.
        domains: [n_items + 1] int32, the dataset of each item, where targets compete within their own; None where they
            compete with all items.
    """

    features: Mapping[str, jax.Array | np.ndarray]
    proposal: AnyProposal
    domains: jax.Array | np.ndarray | None = None

    @property
    def n_items(self) -> int:
        """Items of the catalog, without padding."""
        return next(iter(self.features.values())).shape[0] - 1


class TrainState(NamedTuple):
    """What a step changes.

    Attributes:
        params: what is trained: the recommender, or what a Tuning trains of it.
        optimizer: its state.
        step: how many were taken.
        averaged: running average of `params`; None where none is kept.
        fixed: the rest of the model, where a Tuning divides it; then `params` is a dict by name.
    """

    params: Any
    optimizer: optax.OptState
    step: jax.Array | np.ndarray | np.int32
    averaged: Any = None
    fixed: Fixed | None = None

    @property
    def best_params(self) -> Any:
        """What is evaluated and kept: the average where there is one."""
        return self.params if self.averaged is None else self.averaged


class Measures(NamedTuple):
    """What a step tells: two numbers.

    Attributes:
        loss: mean over the batch's targets.
        grad_norm: of the whole gradient, before clipping.
    """

    loss: jax.Array
    grad_norm: jax.Array


class Precision(NamedTuple):
    """How a step computes and what it keeps.

    Attributes:
        compute_dtype: of matrix products and activations; parameters, tables, norms, softmaxes and sums stay float32.
            None computes in the parameters' own type.
        accumulation_steps: parts that a device's share of the batch is divided into, one after the other.
    """

    compute_dtype: str | None = None
    accumulation_steps: int = 1


FLOAT32 = Precision()


def _cast(params: nnx.State, dtype: str) -> nnx.State:
    """Matrices and biases in the given type; norms and tables as they are."""

    def cast(path, array):
        names = {str(getattr(key, "key", getattr(key, "name", key))) for key in path}
        return (
            array
            if names & {"norm", "tables", "repeat", "transitions", "recency", "scale", "trust"}
            else array.astype(dtype)
        )

    return jax.tree_util.tree_map_with_path(cast, params)


class Encoded(NamedTuple):
    """The distinct items of a device's share, each encoded once.

    Attributes:
        embeddings: [encoded, hidden].
        of_batch: [distinct] int32, rows of the batch's items.
        of_drawn: rows of the negatives, in their shape; None where there are none.
    """

    embeddings: jax.Array
    of_batch: jax.Array
    of_drawn: jax.Array | None


def encode_once(
    encode: Callable[[jax.Array], jax.Array],
    items: jax.Array,
    drawn: jax.Array | None,
    n_items: int,
    whole_catalog: bool,
) -> Encoded:
    """Encodes the batch's items and the negatives together; the whole catalog, in order, where that is less.

    Args:
        encode: embeds catalog items, [n] int32 -> [n, hidden].
        items: [distinct] int32, of the batch.
        drawn: [1 or targets, n] int32 catalog items, or None.
        n_items: of the catalog.
        whole_catalog: whether the loss needs all of it.
    """
    if whole_catalog or items.size + (0 if drawn is None else drawn.size) > n_items:
        rows = jnp.arange(n_items + 1, dtype=jnp.int32)
        if n_items < ITEMS_PER_BLOCK:
            return Encoded(encode(rows), items, drawn)
        blocks = jnp.pad(rows, (0, -len(rows) % ITEMS_PER_BLOCK)).reshape(-1, ITEMS_PER_BLOCK)
        embeddings = jax.lax.map(jax.checkpoint(encode), blocks)
        return Encoded(embeddings.reshape(-1, embeddings.shape[-1])[: n_items + 1], items, drawn)
    here = jnp.arange(len(items), dtype=jnp.int32)
    if drawn is None:
        return Encoded(encode(items), here, None)
    if len(drawn) == 1:
        of_drawn = len(items) + jnp.arange(drawn.size, dtype=jnp.int32)[None]
        return Encoded(encode(jnp.concatenate([items, drawn[0]])), here, of_drawn)
    distinct, where = jnp.unique(drawn, return_inverse=True, size=drawn.size, fill_value=0)
    embeddings = encode(jnp.concatenate([items, distinct]))
    return Encoded(embeddings, here, len(items) + where.reshape(drawn.shape).astype(jnp.int32))


def shard_loss(
    graph: nnx.GraphDef,
    loss: Loss,
    params: nnx.State,
    catalog: Catalog,
    batch: Batch,
    keys: Keys,
    noise: Noise | None,
    compute_dtype: str | None = None,
) -> jax.Array:
    """Sum of the losses of a device's share of the batch; computed in the parameters' own type unless one is given.

    Each distinct item of the share is encoded once, as input, as target and as negative.
    """
    model = nnx.merge(graph, params if compute_dtype is None else _cast(params, compute_dtype))
    of_sequences, of_items = (None, None) if noise is None else noise.split(2)
    items, slots, positions = jnp.asarray(batch.items), jnp.asarray(batch.slots), jnp.asarray(batch.positions)
    observed = Observed(items[batch.targets], slots, items[batch.inputs], positions)
    drawn = loss.draw(keys, observed, catalog.proposal)

    def encode(items: jax.Array) -> jax.Array:
        features = {name: jnp.asarray(values)[items] for name, values in catalog.features.items()}
        embeddings = model.encode_items(features, None if of_items is None else of_items.key)
        return embeddings if compute_dtype is None else embeddings.astype(compute_dtype)

    encoded = encode_once(encode, items, drawn, catalog.n_items, loss.whole_catalog)
    inputs, targets = encoded.of_batch[batch.inputs], encoded.of_batch[batch.targets]
    input_embeddings = encoded.embeddings[inputs]
    hidden = model.encode_sequences(input_embeddings, batch.segments, batch.positions, of_sequences)
    predictions = Predictions(
        observed=observed,
        hidden=hidden,
        inputs=input_embeddings,
        outputs=hidden.reshape(-1, hidden.shape[-1])[batch.slots],
        target_embeddings=encoded.embeddings[targets],
        n_items=catalog.n_items,
        embeddings=encoded.embeddings,
        repeat_offset=model.repeat_offset,
        drawn=drawn,
        drawn_rows=encoded.of_drawn,
        domains=None if catalog.domains is None else jnp.asarray(catalog.domains),
        n_learnt=model.hidden_size,
    )
    losses = loss.losses(keys, predictions, catalog.proposal)
    return jnp.where(batch.weights > 0, losses * batch.weights, 0).sum()


def _keys_and_rows(
    key: jax.Array, batch: Batch, shard: jax.Array, part: jax.Array | int, shards: int
) -> tuple[Keys, jax.Array]:
    """Random keys of a share's targets, and its rows, by their place in the whole batch, as PackedBatches deals them.

    Args:
        key: of the batch.
        batch: the share.
        shard: of the device.
        part: of the device's share.
        shards: all parts of all devices.
    """
    n_rows, length = batch.inputs.shape
    rows = jnp.arange(n_rows) * shards + shard + part
    return Keys(key, rows[batch.slots // length] * length + batch.slots % length), rows


def make_valid_loss(
    graph: nnx.GraphDef, loss: Loss, mesh: Mesh, seed: int, compute_dtype: str | None = None
) -> jax.stages.Wrapped:
    """The jitted sum of a batch's losses over all devices, without dropout: params, catalog, step, batch -> [].

    Args:
        graph: of the recommender.
        loss: of the targets.
        mesh: of devices.
        seed: of the negatives, which depend on it, the step and the place in the batch alone.
        compute_dtype: see Precision.
    """

    def over_shard(params, catalog, step, batch):
        key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), step)
        keys, _ = _keys_and_rows(key, batch, jax.lax.axis_index(AXES), 0, mesh.size)
        return jax.lax.psum(shard_loss(graph, loss, params, catalog, batch, keys, None, compute_dtype), AXES)

    def valid_loss(params, catalog, step, batch):
        in_specs = (specs(mesh, params), REPLICATED, REPLICATED, SPLIT)
        return jax.shard_map(over_shard, mesh=mesh, in_specs=in_specs, out_specs=REPLICATED, check_vma=False)(
            params, catalog, step, batch
        )

    return jax.jit(valid_loss)


def make_loss_and_grads(
    graph: nnx.GraphDef, loss: Loss, mesh: Mesh, precision: Precision = FLOAT32, tuning: Tuning | None = None
) -> Callable[..., tuple[jax.Array, Any]]:
    """The mean loss of a batch over all devices, and its gradient.

    Args:
        graph: of the recommender.
        loss: of the targets.
        mesh: of devices.
        precision: of the computation, and in how many parts it is made.
        tuning: makes the model of what is trained and what is fixed; None trains all.

    Returns:
        f(params, fixed or None, catalog, batch, negatives_key, dropout_key or None). Each device differentiates its own
        share of the mean; the shares and their gradients are then added over the devices, once. Random numbers follow
        the row of the batch and not the device, so that the devices' number changes nothing but rounding.
    """
    parts = precision.accumulation_steps

    def over_shard(params, fixed, catalog, batch, negatives_key, dropout_key):
        shard = jax.lax.axis_index(AXES)
        weight = jnp.maximum(jax.lax.psum(batch.weights.sum(), AXES), 1)

        def of_part(part: jax.Array, batch: Batch) -> tuple[jax.Array, nnx.State]:
            common = jax.random.fold_in(negatives_key, part) if parts > 1 else negatives_key
            keys, rows = _keys_and_rows(common, batch, shard * parts, part, mesh.size * parts)
            noise = None if dropout_key is None else Noise(dropout_key, rows.astype(jnp.uint32))

            def share(params):
                whole = params if tuning is None else tuning.whole(params, fixed)
                return shard_loss(graph, loss, whole, catalog, batch, keys, noise, precision.compute_dtype) / weight

            return jax.value_and_grad(share)(params)

        if parts == 1:
            total, grads = of_part(jnp.int32(0), batch)
        else:
            divided = jax.tree.map(lambda array: array.reshape(parts, -1, *array.shape[1:]), batch)
            none = (jnp.float32(0), jax.tree.map(jnp.zeros_like, params))

            def add(sums, part):
                return jax.tree.map(jnp.add, sums, of_part(*part)), None

            (total, grads), _ = jax.lax.scan(add, none, (jnp.arange(parts, dtype=jnp.int32), divided))
        return jax.lax.psum(total, AXES), add_over_devices(grads)

    def loss_and_grads(params, fixed, *rest):
        of_params = specs(mesh, params)
        in_specs = (of_params, specs(mesh, fixed), REPLICATED, SPLIT, REPLICATED, REPLICATED)
        return jax.shard_map(
            over_shard, mesh=mesh, in_specs=in_specs, out_specs=(REPLICATED, of_params), check_vma=False
        )(params, fixed, *rest)

    return loss_and_grads


def make_train_step(
    graph: nnx.GraphDef,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    seed: int,
    precision: Precision = FLOAT32,
    ema_decay: float | None = None,
    skip_nonfinite: bool = False,
    tuning: Tuning | None = None,
) -> jax.stages.Wrapped:
    """The jitted step: state, catalog, batch -> state, Measures. The state's buffers are donated.

    Random keys derive from (seed, step) alone.

    Args:
        graph: of the recommender.
        loss: of the targets; see `losses`.
        optimizer: from Optax.
        mesh: of devices.
        seed: of dropout and negatives.
        precision: of the computation, and in how many parts it is made.
        ema_decay: of the running average of the parameters, less at the start (at most (1 + step) / (10 + step)); None
            where none is kept.
        skip_nonfinite: leave parameters and optimizer as they are where the loss or the gradient is not finite.
        tuning: of a part of the model, or with a penalty; None trains all.
    """
    loss_and_grads = make_loss_and_grads(graph, loss, mesh, precision, tuning)

    def step(state: TrainState, catalog: Catalog, batch: Batch) -> tuple[TrainState, Measures]:
        negatives_key, dropout_key = jax.random.split(
            jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), state.step)
        )
        value, grads = loss_and_grads(state.params, state.fixed, catalog, batch, negatives_key, dropout_key)
        if tuning is not None and tuning.strength:
            penalty, of_penalty = jax.value_and_grad(tuning.penalty)(state.params, state.fixed)
            value, grads = value + penalty, jax.tree.map(jnp.add, grads, of_penalty)
        norm = optax.global_norm(grads)
        updates, optimizer_state = optimizer.update(grads, state.optimizer, state.params)
        kept = (optax.apply_updates(state.params, updates), optimizer_state)
        if skip_nonfinite:
            fine = jnp.isfinite(value) & jnp.isfinite(norm)
            kept = jax.tree.map(lambda new, old: jnp.where(fine, new, old), kept, (state.params, state.optimizer))
        params, averaged = kept[0], None
        if ema_decay is not None:
            decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
            averaged = jax.tree.map(lambda mean, new: mean + (1 - decay) * (new - mean), state.averaged, params)
        after = TrainState(params, kept[1], state.step + 1, averaged, state.fixed)
        return jax.lax.with_sharding_constraint(after, shardings(mesh, after)), Measures(value, norm)

    return jax.jit(step, donate_argnums=0)
