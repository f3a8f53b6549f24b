import numpy as np
import pytest

from seqrec_jax.data.batches import PackedBatches, prefetch
from seqrec_jax.data.packing import all_positions, histories, pack
from seqrec_jax.data.split import leave_one_out


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


def test_prefetch_keeps_the_order_and_passes_errors_on():
    assert list(prefetch(lambda step: step * step, range(3, 9))) == [9, 16, 25, 36, 49, 64]
    assert list(prefetch(str, range(0))) == []
    with pytest.raises(ZeroDivisionError):
        list(prefetch(lambda step: 1 // (step - 4), range(6)))
