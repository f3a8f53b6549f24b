"""One training step: a pure jitted function over the parameters, data parallel over the mesh."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from seqrec_jax.data.batches import Batch
from seqrec_jax.devices import AXES, REPLICATED, SPLIT, add_over_devices, shardings, specs
from seqrec_jax.dropout import DropoutKeys
from seqrec_jax.losses.loss import AnyProposal, Keys, Loss, LossInputs, ModelOutputs
from seqrec_jax.model.graph import Graph
from seqrec_jax.model.parameters import Params
from seqrec_jax.training.config import TrainConfig
from seqrec_jax.training.tuning import Fixed, Tuning

ITEMS_PER_BLOCK = 1 << 14


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Catalog:
    """What the step needs to know of the items; those of one group compete."""

    features: Mapping[str, jax.Array | np.ndarray]  # by name, [n_items + 1, ...] each
    proposal: AnyProposal
    group_ids: jax.Array | np.ndarray | None = None  # [n_items + 1] int32, 0 for padding; None where all compete
    n_groups: int = dataclasses.field(default=1, metadata={"static": True})

    @property
    def n_items(self) -> int:
        """Items of the catalog, without padding."""
        return next(iter(self.features.values())).shape[0] - 1


class TrainState(NamedTuple):
    """What a step changes, and in `fixed` the rest of the model."""

    params: Params  # what is trained; see Tuning
    optimizer: optax.OptState
    step: jax.Array | np.ndarray | np.int32  # steps taken
    averaged: Params | None = None  # running average of `params`; None where none is kept
    fixed: Fixed = Fixed()

    @property
    def best_params(self) -> Params:
        """What is evaluated and kept: the average where there is one."""
        return self.params if self.averaged is None else self.averaged

    @property
    def bytes(self) -> int:
        """Bytes of its arrays."""
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(self))


class StepMetrics(NamedTuple):
    """Two numbers of a step, [] float32 each."""

    loss: jax.Array  # mean over the batch's targets
    grad_norm: jax.Array  # of the whole gradient before clipping


class Encoded(NamedTuple):
    """The distinct items of a device's share, each encoded once."""

    embeddings: jax.Array  # [encoded, size]
    of_batch: jax.Array  # [distinct] int32, rows of the batch's items
    of_drawn: jax.Array | None  # rows of the negatives, in their shape; None where there are none


def encode_once(
    encode: Callable[[jax.Array], jax.Array],
    items: jax.Array,
    drawn: jax.Array | None,
    n_items: int,
    whole_catalog: bool,
) -> Encoded:
    """Encodes the batch's items and the negatives together; the whole catalog, in order, where needed or where less.

    `encode` embeds items, [n] int32 -> [n, size]; `items` are [distinct] int32, `drawn` [1 or targets, n] int32.
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
    graph: Graph, loss: Loss, params: Params, catalog: Catalog, batch: Batch, keys: Keys,
    dropout: DropoutKeys | None = None, compute_dtype: str | None = None,
) -> jax.Array:  # fmt: skip
    """Sum of the losses of a device's share of the batch: [].

    Each distinct item of the share is encoded once, as input, as target and as negative. The keys are those of the
    negatives; without keys of the dropout there is none, and without a type it is computed in the parameters' own.
    """
    network = graph.merge(params if compute_dtype is None else graph.cast(params, compute_dtype))
    of_sequences, of_items = (None, None) if dropout is None else dropout.split(2)
    items, slots, positions = jnp.asarray(batch.items), jnp.asarray(batch.slots), jnp.asarray(batch.positions)
    inputs = LossInputs(items[batch.targets], slots, items[batch.inputs], positions)
    drawn = loss.draw(keys, inputs, catalog.proposal)

    def encode(items: jax.Array) -> jax.Array:
        features = {name: jnp.asarray(values)[items] for name, values in catalog.features.items()}
        embeddings = network.encode_items(features, None if of_items is None else of_items.key)
        return embeddings if compute_dtype is None else embeddings.astype(compute_dtype)

    encoded = encode_once(encode, items, drawn, catalog.n_items, loss.whole_catalog)
    input_embeddings = encoded.embeddings[encoded.of_batch[batch.inputs]]
    hidden = network.encode_sequences(input_embeddings, jnp.asarray(batch.segments), positions, of_sequences)
    outputs = ModelOutputs(
        inputs=inputs, hidden=hidden, input_embeddings=input_embeddings,
        outputs=hidden.reshape(-1, hidden.shape[-1])[batch.slots],
        target_embeddings=encoded.embeddings[encoded.of_batch[batch.targets]],
        n_items=catalog.n_items, embeddings=encoded.embeddings, history_offset=network.history_offset,
        drawn=drawn, drawn_rows=encoded.of_drawn,
        group_ids=None if catalog.group_ids is None else jnp.asarray(catalog.group_ids),
        n_groups=catalog.n_groups, n_learnt=network.hidden_size,
    )  # fmt: skip
    losses = loss.losses(keys, outputs, catalog.proposal)
    return jnp.where(batch.weights > 0, losses * batch.weights, 0).sum()


def _keys_and_rows(
    key: jax.Array, batch: Batch, shard: jax.Array, part: jax.Array | int, shards: int
) -> tuple[Keys, jax.Array]:
    """Keys of a share's targets, and its rows, by their place in the whole batch; `shards` parts of all devices."""
    n_rows, length = batch.inputs.shape
    rows = jnp.arange(n_rows) * shards + shard + part
    return Keys(key, rows[batch.slots // length] * length + batch.slots % length), rows


def make_valid_loss(
    graph: Graph, loss: Loss, mesh: Mesh, seed: int, compute_dtype: str | None = None
) -> jax.stages.Wrapped:
    """The jitted sum of a batch's losses over all devices, without dropout: params, catalog, step, batch -> [].

    The negatives depend on the seed, the step and the place in the batch alone.
    """

    def over_shard(params, catalog, step, batch):
        key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), step)
        keys, _ = _keys_and_rows(key, batch, jax.lax.axis_index(AXES), 0, mesh.size)
        return jax.lax.psum(shard_loss(graph, loss, params, catalog, batch, keys, None, compute_dtype), AXES)

    def valid_loss(params, catalog, step, batch):
        in_specs = (specs(mesh, params, graph.tables), REPLICATED, REPLICATED, SPLIT)
        summed = jax.shard_map(over_shard, mesh=mesh, in_specs=in_specs, out_specs=REPLICATED, check_vma=False)
        return summed(params, catalog, step, batch)

    return jax.jit(valid_loss)


def make_loss_and_grads(
    graph: Graph, loss: Loss, mesh: Mesh, config: TrainConfig = TrainConfig(), tuning: Tuning = Tuning()
) -> Callable[..., tuple[jax.Array, Params]]:
    """The mean loss of a batch over all devices, and its gradient.

    It is f(params, fixed, catalog, batch, negatives_key, dropout_key or None), in the type and the number of parts that
    the configuration says. Each device differentiates its own share of the mean; the shares and their gradients are
    then added over the devices, once. Random numbers follow the row of the batch and not the device, so that the
    devices' number changes nothing but rounding.
    """
    parts = config.accumulation_steps

    def over_shard(params, fixed, catalog, batch, negatives_key, dropout_key):
        shard = jax.lax.axis_index(AXES)
        weight = jnp.maximum(jax.lax.psum(batch.weights.sum(), AXES), 1)

        def of_part(part: jax.Array, batch: Batch) -> tuple[jax.Array, Params]:
            common = jax.random.fold_in(negatives_key, part) if parts > 1 else negatives_key
            keys, rows = _keys_and_rows(common, batch, shard * parts, part, mesh.size * parts)
            dropout = None if dropout_key is None else DropoutKeys(dropout_key, rows.astype(jnp.uint32))

            def share(params):
                whole = tuning.whole(params, fixed)
                return shard_loss(graph, loss, whole, catalog, batch, keys, dropout, config.compute_dtype) / weight

            return jax.value_and_grad(share)(params)

        if parts == 1:
            total, grads = of_part(jnp.int32(0), batch)
        else:  # optax.microbatch cuts a batch otherwise, and knows nothing of the parts' random keys.
            divided = jax.tree.map(lambda array: array.reshape(parts, -1, *array.shape[1:]), batch)
            none = (jnp.float32(0), jax.tree.map(jnp.zeros_like, params))

            def add(sums, part):
                return jax.tree.map(jnp.add, sums, of_part(*part)), None

            (total, grads), _ = jax.lax.scan(add, none, (jnp.arange(parts, dtype=jnp.int32), divided))
        return jax.lax.psum(total, AXES), add_over_devices(grads, graph.tables)

    def loss_and_grads(params, fixed, *rest):
        of_params, of_fixed = specs(mesh, (params, fixed), graph.tables)
        in_specs, out_specs = (of_params, of_fixed, REPLICATED, SPLIT, REPLICATED, REPLICATED), (REPLICATED, of_params)
        mean = jax.shard_map(over_shard, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
        return mean(params, fixed, *rest)

    return loss_and_grads


def make_train_step(
    graph: Graph, loss: Loss, optimizer: optax.GradientTransformation, mesh: Mesh,
    config: TrainConfig = TrainConfig(), tuning: Tuning = Tuning(),
) -> jax.stages.Wrapped:  # fmt: skip
    """The jitted step: state, catalog, batch -> state, StepMetrics. The state's buffers are donated.

    Random keys derive from (config.seed, step) alone. The running average of the parameters decays less at the start,
    by at most (1 + step) / (10 + step). With config.skip_nonfinite, a step whose loss or gradient's norm is not finite
    changes neither parameters nor optimizer.
    """
    loss_and_grads = make_loss_and_grads(graph, loss, mesh, config, tuning)

    def step(state: TrainState, catalog: Catalog, batch: Batch) -> tuple[TrainState, StepMetrics]:
        key = jax.random.fold_in(jax.random.key(config.seed, impl="threefry2x32"), state.step)
        value, grads = loss_and_grads(state.params, state.fixed, catalog, batch, *jax.random.split(key))
        if tuning.strength:
            penalty, of_penalty = jax.value_and_grad(tuning.penalty)(state.params, state.fixed)
            value, grads = value + penalty, jax.tree.map(jnp.add, grads, of_penalty)
        norm = optax.global_norm(grads)
        if config.skip_nonfinite:  # optax.apply_if_finite looks at the gradients alone.
            finite = jnp.isfinite(value) & jnp.isfinite(norm)
            grads = jax.tree.map(lambda grad: jnp.where(finite, grad, jnp.nan), grads)
        updates, optimizer_state = optimizer.update(grads, state.optimizer, state.params)
        params, averaged = optax.apply_updates(state.params, updates), None
        if config.ema_decay is not None:  # optax.incremental_update rounds otherwise.
            decay = jnp.minimum(config.ema_decay, (1 + state.step) / (10 + state.step))
            averaged = jax.tree.map(lambda mean, new: mean + (1 - decay) * (new - mean), state.averaged, params)
        after = TrainState(params, optimizer_state, state.step + 1, averaged, state.fixed)
        return jax.lax.with_sharding_constraint(after, shardings(mesh, after, graph.tables)), StepMetrics(value, norm)

    return jax.jit(step, donate_argnums=0)
