"""One pass over packed rows gives what the prefixes give, on one device or four."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from seqrec_jax.data.batches import PackedBatches
from seqrec_jax.data.packing import all_positions, one_per_row, pack, prefixes
from seqrec_jax.data.split import leave_one_out, training_log
from seqrec_jax.devices import device_mesh, place, replicate, shardings, split_rows
from seqrec_jax.losses.negatives import Keys, local, shared
from seqrec_jax.losses.proposals.by_count import popularity
from seqrec_jax.losses.sampled_softmax import sampled_softmax
from seqrec_jax.model import parameters
from seqrec_jax.model.recommender import Architecture, build, graph_of
from seqrec_jax.training.optimizer import adam, adamw
from seqrec_jax.training.schedules import constant
from seqrec_jax.training.step import (
    FLOAT32,
    Catalog,
    Precision,
    TrainState,
    encode_once,
    make_loss_and_grads,
    make_train_step,
)

LENGTH = 20  # longer than any training sequence of the shop, so that a window is a whole user

ARCHITECTURE = Architecture(n_layers=2, n_heads=2, hidden_size=16, inner_size=32, max_length=LENGTH)


@pytest.fixture
def setting(shop):
    split = leave_one_out(shop)
    graph, params = build(ARCHITECTURE, dict.fromkeys(shop.features, shop.vocab_size), seed=5)
    params = jax.tree.map(lambda array: 4 * array, params)  # so that differences would show
    tokens = {name: jnp.asarray(shop.tokens(name)) for name in shop.features}
    catalog = Catalog(tokens, jax.tree.map(jnp.asarray, popularity(training_log(shop, split))))
    return shop, split, graph, params, catalog


def batches_of(shop, windows, layout, rows, shards=1, last_only=False):
    return PackedBatches(shop.items.take, windows, layout, rows=rows, shards=shards, last_only=last_only, seed=0)


def epoch_loss(setting, batches, n_devices=1, precision=FLOAT32):
    """Sum over an epoch of loss and gradient, each batch weighted by its targets; negatives fixed by a common key."""
    _, _, graph, params, catalog = setting
    mesh = device_mesh(jax.devices()[:n_devices])

    drawn = sampled_softmax(30, shared)
    fixed = Keys(jax.random.key(7), jnp.zeros(0, int))
    loss = drawn._replace(draw=lambda keys, *args: drawn.draw(fixed, *args))
    mean = jax.jit(make_loss_and_grads(graph, loss, mesh, precision))
    params, catalog = replicate(mesh, params), replicate(mesh, catalog)
    total, grads, count = 0.0, None, 0.0
    for step in range(batches.steps_per_epoch):
        batch = batches.batch(step)
        value, grad = mean(params, None, catalog, split_rows(mesh, batch), jax.random.key(0), None)
        weight = float(batch.weights.sum())
        total, count = total + weight * float(value), count + weight
        scaled = {name: weight * np.asarray(array) for name, array in parameters.named(grad).items()}
        grads = scaled if grads is None else {name: grads[name] + scaled[name] for name in grads}
    return count, total / count, {name: array / count for name, array in grads.items()}


def assert_same(one, other):
    assert one[0] == other[0]
    assert abs(one[1] - other[1]) < 1e-5
    for name in one[2]:
        np.testing.assert_allclose(one[2][name], other[2][name], atol=1e-5, err_msg=name)


def test_single_pass_equals_mean_of_prefix_losses(setting):
    shop, split, *_ = setting
    windows = all_positions(shop.offsets, split, LENGTH)
    one_pass = epoch_loss(setting, batches_of(shop, windows, pack(windows.lengths, LENGTH), rows=16))
    windows = prefixes(shop.offsets, split, LENGTH)
    by_prefix = epoch_loss(
        setting, batches_of(shop, windows, one_per_row(windows.lengths, LENGTH), rows=128, last_only=True)
    )
    assert one_pass[0] == (split.train_lengths - 1).sum()
    assert_same(one_pass, by_prefix)


def test_packed_equals_unpacked(setting):
    shop, split, *_ = setting
    windows = all_positions(shop.offsets, split, LENGTH)
    packed = batches_of(shop, windows, pack(windows.lengths, 2 * LENGTH), rows=8)
    unpacked = batches_of(shop, windows, one_per_row(windows.lengths, LENGTH), rows=32)
    assert packed.packing.fill > 0.95 > 0.9 > unpacked.packing.fill
    assert_same(epoch_loss(setting, packed), epoch_loss(setting, unpacked))


def test_four_devices_equal_one(setting):
    shop, split, *_ = setting
    windows = all_positions(shop.offsets, split, LENGTH)
    layout = pack(windows.lengths, LENGTH)
    assert_same(
        epoch_loss(setting, batches_of(shop, windows, layout, rows=16, shards=4), n_devices=4),
        epoch_loss(setting, batches_of(shop, windows, layout, rows=16)),
    )


def test_a_batch_in_parts_equals_the_whole(setting):
    shop, split, *_ = setting
    windows = all_positions(shop.offsets, split, LENGTH)
    layout = pack(windows.lengths, LENGTH)
    assert_same(
        epoch_loss(setting, batches_of(shop, windows, layout, rows=16, shards=4), precision=Precision(None, 4)),
        epoch_loss(setting, batches_of(shop, windows, layout, rows=16)),
    )
    assert_same(
        epoch_loss(setting, batches_of(shop, windows, layout, rows=16, shards=4), 2, Precision(None, 2)),
        epoch_loss(setting, batches_of(shop, windows, layout, rows=16)),
    )


def test_rematerialized_activations_give_the_same_gradients(setting):
    shop, split, _, params, catalog = setting
    again = graph_of(ARCHITECTURE, dict.fromkeys(shop.features, shop.vocab_size), rematerialize=True)
    windows = all_positions(shop.offsets, split, LENGTH)
    batches = batches_of(shop, windows, pack(windows.lengths, LENGTH), rows=16)
    assert_same(epoch_loss(setting, batches), epoch_loss((shop, split, again, params, catalog), batches))


def test_bfloat16_is_near_float32(setting):
    shop, split, *_ = setting
    windows = all_positions(shop.offsets, split, LENGTH)
    batches = batches_of(shop, windows, pack(windows.lengths, LENGTH), rows=16)
    exact = epoch_loss(setting, batches)
    rounded = epoch_loss(setting, batches, precision=Precision("bfloat16"))
    assert rounded[1] == pytest.approx(exact[1], rel=0.01)
    assert rounded[1] != exact[1]
    for name, grad in exact[2].items():
        assert rounded[2][name].dtype == np.float32
        assert np.linalg.norm(rounded[2][name] - grad) < 0.1 * np.linalg.norm(grad) + 1e-4, name


@pytest.mark.parametrize("n_items", [8, 1000, 40_000])
@pytest.mark.parametrize("sets", [0, 1, 5])
@pytest.mark.parametrize("whole", [False, True])
def test_each_item_of_a_step_is_encoded_once(n_items, sets, whole):
    rng = np.random.default_rng(0)
    table, encoded = jnp.asarray(rng.normal(size=(n_items + 1, 3)), jnp.float32), []

    def encode(items):
        encoded.append(items.size)
        return table[items]

    items = jnp.asarray(rng.choice(np.arange(1, n_items + 1), 7, replace=False), jnp.int32)
    drawn = jnp.asarray(rng.integers(1, n_items + 1, (sets, 11)), jnp.int32) if sets else None
    got = encode_once(encode, items, drawn, n_items, whole)
    np.testing.assert_array_equal(got.embeddings[got.of_batch], table[items])
    if drawn is not None:
        np.testing.assert_array_equal(got.embeddings[got.of_drawn], table[drawn])
    if whole:
        np.testing.assert_array_equal(got.embeddings, table)
    assert len(encoded) == 1
    assert len(got.embeddings) <= n_items + 1


def sharded(setting, architecture, steps, mesh_shape, **encoder):
    """Losses of training with dropout and local negatives over a mesh of (data, model) devices."""
    shop, split, _, _, catalog = setting
    mesh = device_mesh(jax.devices()[: np.prod(mesh_shape)], mesh_shape[1])
    catalog = catalog._replace(features=dict(catalog.features) | encoder)
    vocab_sizes = dict.fromkeys(shop.features, shop.vocab_size) | dict.fromkeys(encoder, shop.n_items + 1)
    graph = graph_of(architecture, vocab_sizes, table_axis="model" if mesh_shape[1] > 1 else None)
    _, params = build(architecture, vocab_sizes, 5, lambda like: shardings(mesh, like))
    windows = all_positions(shop.offsets, split, LENGTH)
    batches = batches_of(shop, windows, pack(windows.lengths, LENGTH), rows=16, shards=mesh.size)
    optimizer = adamw(constant(steps, learning_rate=3e-3), max_grad_norm=1.0)
    step = make_train_step(graph, sampled_softmax(20, local), optimizer, mesh, seed=3, ema_decay=0.9)
    state = TrainState(params, optimizer.init(params), np.int32(0), jax.tree.map(jnp.copy, params))
    state, catalog, losses = place(mesh, state), replicate(mesh, catalog), []
    for index in range(steps):
        state, measures = step(state, catalog, split_rows(mesh, batches.batch(index)))
        losses.append(float(measures.loss))
    assert step._cache_size() == 1
    return losses, state


def test_the_number_of_devices_changes_nothing_but_rounding(setting):
    one, _ = sharded(setting, ARCHITECTURE, 50, (1, 1))
    for mesh_shape in ((4, 1), (2, 2)):
        several, state = sharded(setting, ARCHITECTURE, 50, mesh_shape)
        np.testing.assert_allclose(several, one, rtol=1e-5)
        table = parameters.named(state.params)["item_encoder/tables/title"]
        assert {piece.data.shape[1] for piece in table.addressable_shards} == {16 // mesh_shape[1]}


def test_item_rows_and_their_optimizer_state_are_divided_too(setting):
    architecture = dataclasses.replace(ARCHITECTURE, item_encoder="text_and_id", id_dropout=0.3, pooling="max")
    items = {"item_id": jnp.arange(setting[0].n_items + 1, dtype=jnp.int32)}
    one, _ = sharded(setting, architecture, 5, (1, 1), **items)
    several, state = sharded(setting, architecture, 5, (2, 2), **items)
    np.testing.assert_allclose(several, one, rtol=1e-5)
    divided = [leaf for leaf in jax.tree.leaves(state) if leaf.sharding.spec == PartitionSpec(None, "model")]
    assert len(divided) == 3 * 4  # title, brand and rows; parameters, both moments and the average


def train(setting, steps, n_devices, negatives):
    shop, split, graph, params, catalog = setting
    mesh = device_mesh(jax.devices()[:n_devices])
    windows = all_positions(shop.offsets, split, LENGTH)
    batches = batches_of(shop, windows, pack(windows.lengths, LENGTH), rows=16, shards=n_devices)
    optimizer = adam(constant(steps, learning_rate=3e-3))

    step = make_train_step(graph, sampled_softmax(20, negatives), optimizer, mesh, seed=3)
    fresh = jax.tree.map(jnp.array, params)
    state = replicate(mesh, TrainState(fresh, optimizer.init(fresh), np.int32(0)))
    catalog = replicate(mesh, catalog)
    losses, on_device = [], [split_rows(mesh, batches.batch(index)) for index in range(steps)]
    with jax.transfer_guard("disallow"):
        for batch in on_device:
            state, measures = step(state, catalog, batch)
            losses.append(measures.loss)
    assert step._cache_size() == 1
    return [float(value) for value in losses], parameters.sha256(state.params)


@pytest.mark.parametrize("negatives", [local, shared])
def test_training_lowers_the_loss_and_repeats_bit_for_bit(setting, negatives):
    losses, digest = train(setting, 60, 2, negatives)
    assert np.mean(losses[-10:]) < 0.87 * np.mean(losses[:10])
    assert train(setting, 60, 2, negatives) == (losses, digest)
