import numpy as np
import pytest

from seqrec_jax.data.batches import Mixture, PackedBatches, prefetch, training_batches
from seqrec_jax.data.corpus import Corpus
from seqrec_jax.data.packing import Windows, all_positions, histories, pack
from seqrec_jax.data.split import leave_one_out
from seqrec_jax.errors import InputError


def make(shop, seed=0, shards=1, rows=8):
    windows = all_positions(shop.offsets, leave_one_out(shop), 20)
    return PackedBatches(shop.items.take, windows, pack(windows.lengths, 20), rows=rows, shards=shards, seed=seed)


def pairs(batch, shards=1):
    """(position, input item, target item) of every target of a batch."""
    found = []
    for part in zip(*(np.split(array, shards) for array in batch), strict=True):
        items, inputs, segments, positions, slots, targets, weights = part
        for slot, target, weight in zip(slots, targets, weights, strict=True):
            if weight:
                cell = np.unravel_index(slot, inputs.shape)
                assert segments[cell] > 0
                found.append((int(positions[cell]), int(items[inputs[cell]]), int(items[target])))
    return sorted(found)


@pytest.mark.parametrize("shards", [1, 4])
def test_an_epoch_holds_every_training_pair_once(shop, shards):
    batches = make(shop, shards=shards)
    found = sorted(pair for step in range(batches.steps_per_epoch) for pair in pairs(batches.batch(step), shards))
    split = leave_one_out(shop)
    expected = sorted(
        (i, int(items[i]), int(items[i + 1]))
        for user in range(shop.n_users)
        for items in [shop.user_items(user)[: split.train_lengths[user]]]
        for i in range(len(items) - 1)
    )
    assert found == expected
    assert batches.n_targets == len(expected)


def test_each_distinct_item_of_a_step_is_listed_once(shop):
    batch = make(shop).batch(3)
    real = batch.items[batch.items > 0]
    assert len(np.unique(real)) == len(real)


def test_batches_depend_on_seed_and_step_alone(shop):
    batches, again = make(shop), make(shop)
    last = 2 * batches.steps_per_epoch + 1
    again.batch(5)
    for one, other in zip(batches.batch(last), again.batch(last), strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(batches.batch(last).items, make(shop, seed=1).batch(last).items)
    assert not np.array_equal(batches.batch(1).items, batches.batch(1 + batches.steps_per_epoch).items)


def test_all_batches_have_the_same_shapes(shop):
    batches = make(shop)
    shapes = {tuple(array.shape for array in batches.batch(step)) for step in range(2 * batches.steps_per_epoch)}
    assert len(shapes) == 1


def test_evaluation_batches_score_each_history_once(shop):
    split = leave_one_out(shop)
    windows = histories(shop.offsets, split.test, 20)
    batches = PackedBatches(
        shop.items.take, windows, pack(windows.lengths, 20), rows=8, shards=2, last_only=True, seed=None
    )
    seen = []
    for step in range(batches.steps_per_epoch):
        batch, per_shard = batches.batch(step), batches.windows_of(step)
        for shard, of_shard in enumerate(per_shard):
            items, targets, weights = (
                np.split(array, 2)[shard] for array in (batch.items, batch.targets, batch.weights)
            )
            assert weights.sum() == len(of_shard)
            np.testing.assert_array_equal(
                items[targets[: len(of_shard)]], [shop.user_items(split.test.users[w])[-1] for w in of_shard]
            )
            seen += list(of_shard)
    assert sorted(seen) == list(range(len(split.test.users)))


def test_windows_of_a_length_take_turns():
    lengths = np.array([2, 2, 2, 3, 2])
    mixture = Mixture(np.array([0, 0, 0, 0, 1]), np.array([0.5, 3.0]))
    windows = Windows(np.arange(0, 50, 10), lengths)
    places = mixture.lengths_of_places(lengths)
    assert sorted(places) == [2, 2, 2, 2, 2]  # half of three, rounded to 2; half of one, to none; three times one
    batches = PackedBatches(lambda at: at + 1, windows, pack(places, 3), rows=5, seed=0, mixture=mixture)
    seen = np.zeros(5)
    for step in range(20):
        for shard in batches.windows_of(step):
            seen += np.bincount(shard, minlength=5)
    assert seen[4] == 60
    assert seen[3] == 0
    assert seen[:3].sum() == 40
    assert seen[:3].min() > 5


SETTINGS = {"batch_size": 160, "loss_positions": "all", "max_length": 20, "shards": 1, "seed": 0}


@pytest.mark.parametrize("loss_positions", ["all", "last"])
def test_both_ways_to_place_the_loss_train_on_the_same_targets(shop, loss_positions):
    batches = training_batches(Corpus(shop), **SETTINGS | {"loss_positions": loss_positions})
    expected = int((leave_one_out(shop).train_lengths - 1).sum())
    assert batches.n_targets == expected
    targets = [(batches.batch(step).weights > 0).sum() for step in range(batches.steps_per_epoch)]
    assert sum(targets) == expected
    assert max(targets) <= 160


@pytest.mark.parametrize("loss_positions", ["all", "last"])
@pytest.mark.parametrize("shards", [3, 4, 7])
def test_any_number_of_devices_has_the_same_batches(shop, loss_positions, shards):
    settings = SETTINGS | {"loss_positions": loss_positions, "batch_size": 200 if loss_positions == "all" else 10}
    one, many = (training_batches(Corpus(shop), **settings | {"shards": n}) for n in (1, shards))
    assert (one.rows, many.rows, one.steps_per_epoch) == (10, -(-10 // shards) * shards, many.steps_per_epoch)
    for step in (0, 1, one.steps_per_epoch + 2):
        assert pairs(one.batch(step)) == pairs(many.batch(step), shards)
        assert sorted(np.concatenate(many.windows_of(step))) == sorted(one.windows_of(step)[0])


def test_accumulation_makes_more_shards_of_the_same_targets(shop):
    one, two = (training_batches(Corpus(shop), **SETTINGS, accumulation_steps=steps) for steps in (1, 2))
    assert (one.shards, two.shards, one.rows, two.rows) == (1, 2, 8, 8)
    assert pairs(one.batch(3)) == pairs(two.batch(3), shards=2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss_positions": "first"}, r"TrainConfig\.loss_positions = 'first' is neither 'all' nor 'last'"),
        ({"batch_size": 30, "shards": 2}, r"= 30 is less than a row for each of 2 devices; set at least 40"),
        ({"batch_size": 30, "accumulation_steps": 2}, r"devices and TrainConfig\.accumulation_steps; set at least 40"),
        ({"batch_size": 3, "shards": 4, "loss_positions": "last"}, r"for each of 4 devices; set at least 4"),
    ],
)  # fmt: skip
def test_a_batch_that_leaves_a_device_without_rows_is_refused(shop, settings, message):
    with pytest.raises(InputError, match=message):
        training_batches(Corpus(shop), **SETTINGS | settings)


def test_prefetch_keeps_the_order_and_passes_errors_on():
    assert list(prefetch(lambda step: step * step, range(3, 9))) == [9, 16, 25, 36, 49, 64]
    assert list(prefetch(str, range(0))) == []
    with pytest.raises(ZeroDivisionError):
        list(prefetch(lambda step: 1 // (step - 4), range(6)))
