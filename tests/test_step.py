"""One pass over packed rows gives what the prefixes give, on one device or four."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqrec_jax.data.batches import PackedBatches
from seqrec_jax.data.packing import all_positions, one_per_row, pack, prefixes
from seqrec_jax.data.split import leave_one_out, train_counts
from seqrec_jax.losses.negatives import Keys, local, popularity, shared
from seqrec_jax.losses.sampled_softmax import sampled_softmax
from seqrec_jax.model import parameters
from seqrec_jax.model.recommender import Architecture, build
from seqrec_jax.training.devices import data_mesh, replicate, split_rows
from seqrec_jax.training.optimizer import adam, constant
from seqrec_jax.training.step import Catalog, TrainState, make_loss_and_grads, make_train_step

LENGTH = 20  # longer than any training sequence of the shop, so that a window is a whole user


@pytest.fixture
def setting(shop):
    split = leave_one_out(shop)
    architecture = Architecture(n_layers=2, n_heads=2, hidden_size=16, inner_size=32, max_length=LENGTH)
    graph, params = build(architecture, dict.fromkeys(shop.features, shop.vocab_size), seed=5)
    params = jax.tree.map(lambda array: 4 * array, params)  # so that differences would show
    tokens = {name: jnp.asarray(shop.tokens(name)) for name in shop.features}
    catalog = Catalog(tokens, jax.tree.map(jnp.asarray, popularity(train_counts(shop, split))))
    return shop, split, graph, params, catalog


def batches_of(shop, windows, layout, rows, shards=1, last_only=False):
    return PackedBatches(shop.items.take, windows, layout, rows=rows, shards=shards, last_only=last_only, seed=0)


def epoch_loss(setting, batches, n_devices=1):
    """Sum over an epoch of loss and gradient, each batch weighted by its targets; negatives fixed by a common key."""
    _, _, graph, params, catalog = setting
    mesh = data_mesh(jax.devices()[:n_devices])

    def loss(keys, *args):
        return sampled_softmax(Keys(jax.random.key(7), keys.own), *args, negatives=shared, n_negatives=30)

    mean = jax.jit(make_loss_and_grads(graph, loss, mesh))
    params, catalog = replicate(mesh, params), replicate(mesh, catalog)
    total, grads, count = 0.0, None, 0.0
    for step in range(batches.steps_per_epoch):
        batch = batches.batch(step)
        value, grad = mean(params, catalog, split_rows(mesh, batch), jax.random.key(0), None)
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


@pytest.mark.parametrize("kind", ["common", "own"])
def test_each_device_has_its_own_key_beside_the_common_one(setting, kind):
    shop, split, graph, params, catalog = setting
    mesh, key = data_mesh(jax.devices()), jax.random.key(11)
    windows = all_positions(shop.offsets, split, LENGTH)
    batch = batches_of(shop, windows, pack(windows.lengths, LENGTH), rows=16, shards=4).batch(0)

    def loss(keys, outputs, *_):
        return jnp.broadcast_to(jax.random.uniform(getattr(keys, kind)), outputs.shape[:1])

    step = jax.jit(make_loss_and_grads(graph, loss, mesh))
    value, _ = step(replicate(mesh, params), replicate(mesh, catalog), split_rows(mesh, batch), key, None)
    weights = batch.weights.reshape(4, -1).sum(1)
    keys = [key if kind == "common" else jax.random.fold_in(key, device) for device in range(4)]
    expected = np.average([float(jax.random.uniform(key)) for key in keys], weights=weights)
    assert float(value) == pytest.approx(expected, rel=1e-5)


def train(setting, steps, n_devices, negatives):
    shop, split, graph, params, catalog = setting
    mesh = data_mesh(jax.devices()[:n_devices])
    windows = all_positions(shop.offsets, split, LENGTH)
    batches = batches_of(shop, windows, pack(windows.lengths, LENGTH), rows=16, shards=n_devices)
    optimizer = adam(constant(steps, learning_rate=3e-3))

    def loss(*args):
        return sampled_softmax(*args, negatives=negatives, n_negatives=20)

    step = make_train_step(graph, loss, optimizer, mesh, seed=3)
    fresh = jax.tree.map(jnp.array, params)
    state = replicate(mesh, TrainState(fresh, optimizer.init(fresh), np.int32(0)))
    catalog = replicate(mesh, catalog)
    losses, on_device = [], [split_rows(mesh, batches.batch(index)) for index in range(steps)]
    with jax.transfer_guard("disallow"):
        for batch in on_device:
            state, value = step(state, catalog, batch)
            losses.append(value)
    assert step._cache_size() == 1
    return [float(value) for value in losses], parameters.sha256(state.params)


@pytest.mark.parametrize("negatives", [local, shared])
def test_training_lowers_the_loss_and_repeats_bit_for_bit(setting, negatives):
    losses, digest = train(setting, 60, 2, negatives)
    assert np.mean(losses[-10:]) < 0.87 * np.mean(losses[:10])
    assert train(setting, 60, 2, negatives) == (losses, digest)
