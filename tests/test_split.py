"""Splits: what trains, what is validation and what is test."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from seqrec_jax.data.split import (
    PREDICTED,
    Targets,
    by_ratio,
    global_cut,
    items_before,
    last_training_targets,
    leave_one_out,
    share_of_users,
    some_targets,
)
from seqrec_jax.errors import InputError

LENGTHS = np.array([1, 2, 3, 10, 25, 9])


def dataset_of(data, lengths, times=None):
    """A dataset of users with so many interactions, whose timestamps may be given."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    times = np.arange(offsets[-1]) if times is None else times
    lists = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(times, pa.int64()))
    table = pa.table({"timestamps": lists})
    return dataclasses.replace(data, offsets=offsets, interactions_table=table)


def parts_of(data, split):
    """Flat positions that train, validate and test."""
    train = np.concatenate([o + np.arange(n) for o, n in zip(data.offsets, split.train_lengths, strict=False)])
    return train, *(data.offsets[of.users] + of.positions for of in (split.valid, split.test))


def times_of(data):
    return np.concatenate([chunk.flatten().to_numpy() for chunk in data.interactions_table["timestamps"].chunks])


@pytest.mark.parametrize("how", [leave_one_out, by_ratio])
def test_each_interaction_is_in_one_part_and_later_parts_come_later(shop, how):
    data = dataset_of(shop, LENGTHS)
    split = how(data)
    parts = parts_of(data, split)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(data.offsets[-1]))
    np.testing.assert_array_equal(split.train_lengths[:2], [1, 2])  # too short to evaluate
    for earlier, later in ((split.valid, split.test),):
        for user in np.unique(later.users):
            assert earlier.positions[earlier.users == user].max() < later.positions[later.users == user].min()


def test_a_ratio_is_of_each_user_and_leaves_no_part_empty(shop):
    split = by_ratio(dataset_of(shop, LENGTHS), valid=0.1, test=0.2)
    np.testing.assert_array_equal(split.train_lengths, [1, 2, 1, 7, 18, 7])
    np.testing.assert_array_equal(np.bincount(split.valid.users, minlength=6), [0, 0, 1, 1, 2, 1])
    np.testing.assert_array_equal(np.bincount(split.test.users, minlength=6), [0, 0, 1, 2, 5, 1])


@pytest.mark.parametrize("predicts", PREDICTED)
def test_a_global_cut_trains_on_nothing_that_is_later_than_a_target(shop, predicts):
    split, times = global_cut(shop, valid=0.15, test=0.1, predicts=predicts), times_of(shop)
    train, valid, test = parts_of(shop, split)
    assert times[train].max() < times[valid].min()
    assert times[valid].max() < times[test].min()
    assert (split.valid.positions >= 1).all()
    assert len(np.intersect1d(train, valid)) == len(np.intersect1d(train, test)) == 0
    of_test = times >= times[test].min()
    assert of_test.mean() == pytest.approx(0.1, abs=0.01)
    users = np.repeat(np.arange(shop.n_users), np.diff(shop.offsets))
    firsts = np.concatenate([[True], users[1:] != users[:-1]])
    if predicts == "all":
        np.testing.assert_array_equal(np.sort(test), np.flatnonzero(of_test & ~firsts))
    else:
        late = [np.flatnonzero((users == user) & of_test & ~firsts) for user in range(shop.n_users)]
        wanted = [of[-1 if predicts == "last" else 0] for of in late if len(of)]
        np.testing.assert_array_equal(test, wanted)


def test_a_global_cut_of_many_chunks_equals_that_of_one(shop):
    chunked = shop.interactions_table["timestamps"].combine_chunks()
    parts = pa.chunked_array([chunked.slice(0, 70), chunked.slice(70, 100), chunked.slice(170)])
    other = dataclasses.replace(shop, interactions_table=pa.table({"timestamps": parts}))
    first, second = global_cut(shop), global_cut(other)
    np.testing.assert_array_equal(first.train_lengths, second.train_lengths)
    np.testing.assert_array_equal(first.test.positions, second.test.positions)


def test_timestamps_that_are_no_times_have_no_global_cut(shop):
    ordinal = np.concatenate([np.arange(n) for n in LENGTHS])
    with pytest.raises(InputError, match=r"number each user's interactions .* bind SPLIT"):
        global_cut(dataset_of(shop, LENGTHS, ordinal))


def test_times_that_do_not_divide_have_no_global_cut(shop):
    mostly = np.where(np.arange(sum(LENGTHS)) % 10, 5000, 10)
    for times in (np.full(sum(LENGTHS), 7), mostly):
        with pytest.raises(InputError, match=r"share a time that no two moments divide them .* bind SPLIT"):
            global_cut(dataset_of(shop, LENGTHS, times))


def test_what_a_user_had_before_each_target(shop):
    split = by_ratio(shop, test=0.4)
    for row, items in enumerate(items_before(shop, split.test)):
        history = shop.user_items(split.test.users[row])[: split.test.positions[row]]
        np.testing.assert_array_equal(items, np.unique(history))
    assert items_before(shop, Targets(*np.zeros((2, 0), np.int64))) == []


def test_settings_that_make_no_split_are_refused(shop):
    for how, settings, message in (
        (by_ratio, {"valid": 0}, r"by_ratio\.valid = 0"),
        (by_ratio, {"valid": 0.6, "test": 0.4}, "leave nothing to train on"),
        (global_cut, {"test": 1.0}, r"global_cut\.test = 1"),
        (global_cut, {"valid": 0.6, "test": 0.5}, "leave nothing to train on"),
        (global_cut, {"predicts": "some"}, r"global_cut\.predicts = 'some'"),
    ):
        with pytest.raises(InputError, match=message):
            how(shop, **settings)


def test_a_share_of_the_users_trains_and_all_may_validate(shop):
    whole = leave_one_out(shop)
    half, quarter = (share_of_users(whole, share, 7, validate_all=True) for share in (0.5, 0.25))
    assert (half.train_lengths > 0).sum() == 150
    assert not (quarter.train_lengths[half.train_lengths == 0]).any()  # the smaller share is within the larger
    np.testing.assert_array_equal(half.valid.users, whole.valid.users)
    assert len(share_of_users(whole, 0.5, 7).valid.users) < len(whole.valid.users)


def test_targets_of_training_are_the_last_that_train(shop):
    split = leave_one_out(shop)
    every = last_training_targets(split, 10_000, 0)
    np.testing.assert_array_equal(every.positions, split.train_lengths[every.users] - 1)
    assert (every.positions >= 1).all()
    some = last_training_targets(split, 40, 0)
    assert len(np.unique(some.users)) == 40
    assert set(some.users) <= set(every.users)
    few = some_targets(split.valid, 17, 1)
    assert len(np.unique(few.users)) == 17
    np.testing.assert_array_equal(few.positions, split.valid.positions[np.isin(split.valid.users, few.users)])
