import numpy as np
import pytest

from seqrec_jax.data.packing import all_positions, histories, one_per_row, pack, prefixes
from seqrec_jax.data.split import Split, Targets
from seqrec_jax.data.store import ranges


def split_of(train_lengths):
    none = Targets(np.zeros(0, int), np.zeros(0, int))
    return Split(np.array(train_lengths), none, none)


TRAIN = [1, 2, 0, 51, 52, 120, 7]
OFFSETS = np.concatenate([[0], np.cumsum([length + 2 for length in TRAIN])])


def test_every_training_target_is_in_exactly_one_window():
    windows = all_positions(OFFSETS, split_of(TRAIN), 50)
    targets = ranges(windows.starts + 1, windows.lengths)
    expected = np.concatenate([np.arange(o + 1, o + n) for o, n in zip(OFFSETS, TRAIN, strict=False) if n > 1])
    np.testing.assert_array_equal(np.sort(targets), expected)
    assert windows.lengths.max() == 50
    assert windows.lengths.min() == 1


def test_prefixes_hold_the_latest_items_before_each_target():
    windows = prefixes(OFFSETS, split_of(TRAIN), 50)
    assert len(windows.lengths) == sum(max(n - 1, 0) for n in TRAIN)
    of_long_user = windows.starts >= OFFSETS[5]
    of_long_user &= windows.starts < OFFSETS[6]
    np.testing.assert_array_equal(windows.lengths[of_long_user], np.minimum(np.arange(1, 120), 50))
    np.testing.assert_array_equal((windows.starts + windows.lengths)[of_long_user], OFFSETS[5] + np.arange(1, 120))


def test_histories_end_before_the_target():
    windows = histories(OFFSETS, Targets(np.array([3, 6]), np.array([52, 8])), 50)
    np.testing.assert_array_equal(windows.lengths, [50, 8])
    np.testing.assert_array_equal(windows.starts, [OFFSETS[3] + 2, OFFSETS[6]])


@pytest.mark.parametrize("row_length", [50, 64])
def test_packed_windows_do_not_overlap_and_fill_the_rows(row_length):
    rng = np.random.default_rng(0)
    lengths = np.minimum(2 + rng.geometric(0.25, 22_000), 50)  # about Amazon Beauty's
    packing = pack(lengths, row_length)
    np.testing.assert_array_equal(np.bincount(packing.lengths), np.bincount(lengths))
    cells = ranges(packing.rows * row_length + packing.offsets, packing.lengths)
    assert len(np.unique(cells)) == len(cells) == lengths.sum()
    assert (packing.offsets + packing.lengths <= row_length).all()
    assert packing.fill > 0.95


def test_packing_nothing():
    assert pack(np.zeros(0, int), 50).n_rows == 0


def test_one_per_row():
    packing = one_per_row(np.array([3, 1, 2]), 5)
    np.testing.assert_array_equal(packing.lengths, [1, 2, 3])
    np.testing.assert_array_equal(packing.rows, [0, 1, 2])
    assert packing.n_rows == 3
