"""One pass over packed rows gives what the prefixes give, on one device or four."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from seqrec_jax.data.batches import PackedBatches
from seqrec_jax.data.corpus import Corpus
from seqrec_jax.data.packing import all_positions, one_per_row, pack, prefixes
from seqrec_jax.devices import device_mesh, place, replicate, shardings, split_rows
from seqrec_jax.losses.loss import Keys
from seqrec_jax.losses.negatives import local, shared
from seqrec_jax.losses.proposals.by_count import popularity
from seqrec_jax.losses.sampled_softmax import sampled_softmax
from seqrec_jax.model import parameters
from seqrec_jax.model.spec import Architecture, Spec
from seqrec_jax.training.config import TrainConfig
from seqrec_jax.training.optimizers import adam, adamw, build_optimizer
from seqrec_jax.training.schedules import constant
from seqrec_jax.training.step import Catalog, TrainState, encode_once, make_loss_and_grads, make_train_step
from seqrec_jax.training.tuning import Fixed

LENGTH = 20  # longer than any training sequence of the shop, so that a window is a whole user

ARCHITECTURE = Architecture(n_layers=2, n_heads=2, hidden_size=16, inner_size=32, max_length=LENGTH)
SMALL = dataclasses.replace(ARCHITECTURE, n_layers=1)


@pytest.fixture(scope="module")
def setting(shop_folder):
    corpus = Corpus(shop_folder)
    graph = Spec.of(ARCHITECTURE, corpus.data).graph()
    params = {name: 4 * array for name, array in graph.init(5).items()}  # so that differences would show
    tokens = {name: jnp.asarray(corpus.data.tokens(name)) for name in corpus.data.features}
    catalog = Catalog(tokens, jax.tree.map(jnp.asarray, popularity(corpus.train)))
    return corpus.data, corpus.division, graph, params, catalog


@pytest.fixture(scope="module")
def whole(setting):
    """An epoch of packed rows, in one piece, on one device."""
    return epoch_loss(setting, packed_batches(setting))


def packed_batches(setting, rows=16, shards=1):
    shop, split, *_ = setting
    windows = all_positions(shop.offsets, split, LENGTH)
    return batches_of(shop, windows, pack(windows.lengths, LENGTH), rows=rows, shards=shards)


def batches_of(shop, windows, layout, rows, shards=1, last_only=False):
    return PackedBatches(shop.items.take, windows, layout, rows=rows, shards=shards, last_only=last_only, seed=0)


def epoch_loss(setting, batches, n_devices=1, config=TrainConfig()):
    """Sum over an epoch of loss and gradient, each batch weighted by its targets; negatives fixed by a common key."""
    _, _, graph, params, catalog = setting
    mesh = device_mesh(jax.devices()[:n_devices])

    drawn = sampled_softmax(30, shared)
    fixed = Keys(jax.random.key(7), jnp.zeros(0, int))
    loss = drawn._replace(draw=lambda keys, *args: drawn.draw(fixed, *args))
    mean = jax.jit(make_loss_and_grads(graph, loss, mesh, config))
    params, catalog = replicate(mesh, params), replicate(mesh, catalog)
    total, grads, count = 0.0, None, 0.0
    for step in range(batches.steps_per_epoch):
        batch = batches.batch(step)
        value, grad = mean(params, Fixed(), catalog, split_rows(mesh, batch), jax.random.key(0), None)
        weight = float(batch.weights.sum())
        total, count = total + weight * float(value), count + weight
        scaled = {name: weight * np.asarray(array) for name, array in grad.items()}
        grads = scaled if grads is None else {name: grads[name] + scaled[name] for name in grads}
    return count, total / count, {name: array / count for name, array in grads.items()}


def assert_same(one, other):
    assert one[0] == other[0]
    assert abs(one[1] - other[1]) < 1e-5
    for name in one[2]:
        np.testing.assert_allclose(one[2][name], other[2][name], atol=1e-5, err_msg=name)


def test_single_pass_equals_mean_of_prefix_losses(setting, whole):
    shop, split, *_ = setting
    windows = prefixes(shop.offsets, split, LENGTH)
    by_prefix = epoch_loss(
        setting, batches_of(shop, windows, one_per_row(windows.lengths, LENGTH), rows=128, last_only=True)
    )
    assert whole[0] == (split.train_lengths - 1).sum()
    assert_same(whole, by_prefix)


def test_packed_equals_unpacked(setting, whole):
    shop, split, *_ = setting
    windows = all_positions(shop.offsets, split, LENGTH)
    unpacked = batches_of(shop, windows, one_per_row(windows.lengths, LENGTH), rows=32)
    assert packed_batches(setting).packing.fill > 0.9 > unpacked.packing.fill
    assert_same(whole, epoch_loss(setting, unpacked))


def test_four_devices_equal_one(setting, whole):
    assert_same(epoch_loss(setting, packed_batches(setting, shards=4), n_devices=4), whole)


@pytest.mark.parametrize(("n_devices", "parts"), [(1, 4), (2, 2)])
def test_a_batch_in_parts_equals_the_whole(setting, whole, n_devices, parts):
    config = TrainConfig(accumulation_steps=parts)
    assert_same(epoch_loss(setting, packed_batches(setting, shards=4), n_devices, config), whole)


def test_rematerialized_activations_give_the_same_gradients(setting, whole):
    shop, split, _, params, catalog = setting
    again = Spec.of(ARCHITECTURE, shop).graph(rematerialize=True)
    assert_same(whole, epoch_loss((shop, split, again, params, catalog), packed_batches(setting)))


def test_bfloat16_is_near_float32(setting, whole):
    rounded = epoch_loss(setting, packed_batches(setting), config=TrainConfig(compute_dtype="bfloat16"))
    assert rounded[1] == pytest.approx(whole[1], rel=0.01)
    assert rounded[1] != whole[1]
    for name, grad in whole[2].items():
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
    shop, catalog = setting[0], setting[-1]
    mesh = device_mesh(jax.devices()[: np.prod(mesh_shape)], mesh_shape[1])
    catalog = dataclasses.replace(catalog, features=dict(catalog.features) | encoder)
    graph = Spec.of(architecture, shop).graph(table_axis="model" if mesh_shape[1] > 1 else None)
    params = graph.init(5, lambda like: shardings(mesh, like, graph.tables))
    batches = packed_batches(setting, shards=mesh.size)
    config = TrainConfig(seed=3, optimizer=adamw, max_grad_norm=1.0, ema_decay=0.9)
    optimizer = build_optimizer(config, constant(steps, learning_rate=3e-3))
    step = make_train_step(graph, sampled_softmax(20, local), optimizer, mesh, config)
    state = TrainState(params, optimizer.init(params), np.int32(0), jax.tree.map(jnp.copy, params))
    state, catalog, losses = place(mesh, state, graph.tables), replicate(mesh, catalog), []
    for index in range(steps):
        state, metrics = step(state, catalog, split_rows(mesh, batches.batch(index)))
        losses.append(float(metrics.loss))
    assert step._cache_size() == 1
    return losses, state


@pytest.mark.slow
def test_the_number_of_devices_changes_nothing_but_rounding(setting):
    one, _ = sharded(setting, SMALL, 20, (1, 1))
    for mesh_shape in ((4, 1), (2, 2)):
        several, state = sharded(setting, SMALL, 20, mesh_shape)
        np.testing.assert_allclose(several, one, rtol=1e-5)
        table = state.params["item_encoder/tables/title"]
        assert {piece.data.shape[1] for piece in table.addressable_shards} == {16 // mesh_shape[1]}


@pytest.mark.slow
def test_item_rows_and_their_optimizer_state_are_divided_too(setting):
    architecture = dataclasses.replace(ARCHITECTURE, item_encoder="text_and_id", id_dropout=0.3, pooling="max")
    items = {"item_id": jnp.arange(setting[0].n_items + 1, dtype=jnp.int32)}
    one, _ = sharded(setting, architecture, 5, (1, 1), **items)
    several, state = sharded(setting, architecture, 5, (2, 2), **items)
    np.testing.assert_allclose(several, one, rtol=1e-5)
    divided = [leaf for leaf in jax.tree.leaves(state) if leaf.sharding.spec == PartitionSpec(None, "model")]
    assert len(divided) == 3 * 4  # title, brand and rows; parameters, both moments and the average


def train(setting, steps, n_devices, negatives):
    _, _, graph, params, catalog = setting
    mesh = device_mesh(jax.devices()[:n_devices])
    batches = packed_batches(setting, shards=n_devices)
    optimizer = adam(constant(steps, learning_rate=3e-3))

    step = make_train_step(graph, sampled_softmax(20, negatives), optimizer, mesh, TrainConfig(seed=3))
    fresh = jax.tree.map(jnp.array, params)
    state = replicate(mesh, TrainState(fresh, optimizer.init(fresh), np.int32(0)))
    catalog = replicate(mesh, catalog)
    losses, on_device = [], [split_rows(mesh, batches.batch(index)) for index in range(steps)]
    with jax.transfer_guard("disallow"):
        for batch in on_device:
            state, metrics = step(state, catalog, batch)
            losses.append(metrics.loss)
    assert step._cache_size() == 1
    return [float(value) for value in losses], parameters.sha256(state.params)


@pytest.mark.parametrize("negatives", [local, pytest.param(shared, marks=pytest.mark.slow)])
def test_training_lowers_the_loss_and_repeats_bit_for_bit(setting, negatives):
    losses, digest = train(setting, 60, 2, negatives)
    assert np.mean(losses[-10:]) < 0.87 * np.mean(losses[:10])
    assert train(setting, 60, 2, negatives) == (losses, digest)


@pytest.mark.parametrize("skips", [0, 1])
def test_a_loss_that_is_not_finite_is_skipped_where_its_gradient_is_finite(setting, skips):
    _, _, graph, params, catalog = setting
    mesh, config = device_mesh(jax.devices()[:1]), TrainConfig(skip_nonfinite=skips)
    optimizer = build_optimizer(config, constant(2, learning_rate=1e-3))
    loss = sampled_softmax(20, shared)
    broken = loss._replace(losses=lambda *args: loss.losses(*args) + jax.lax.stop_gradient(jnp.inf))
    state = replicate(mesh, TrainState(jax.tree.map(jnp.array, params), optimizer.init(params), np.int32(0)))
    step = make_train_step(graph, broken, optimizer, mesh, config)
    after, metrics = step(state, replicate(mesh, catalog), split_rows(mesh, packed_batches(setting).batch(0)))
    assert np.isinf(metrics.loss)
    assert np.isfinite(metrics.grad_norm)
    assert int(after.step) == 1
    same = [np.array_equal(after.params[name], array) for name, array in params.items()]
    assert all(same) if skips else not any(same)
    if skips:
        fresh = optimizer.init(params).inner_state
        jax.tree.map(np.testing.assert_array_equal, after.optimizer.inner_state, fresh)
