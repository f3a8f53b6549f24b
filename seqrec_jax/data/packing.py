"""Windows of users' sequences, and the rows that several short ones share.

A window is a stretch of one user's sequence that the transformer reads at once. Its inputs are the
flat positions start .. start + length - 1 and the targets the same shifted by one.
"""

from typing import NamedTuple

import numpy as np

from seqrec_jax.data.split import Split, Targets
from seqrec_jax.data.store import ranges


class Windows(NamedTuple):
    """Stretches of users' sequences."""

    starts: np.ndarray  # [n] int64, flat position of the first input
    lengths: np.ndarray  # [n] int64, inputs, from 1 to the model's max_length


class Packing(NamedTuple):
    """A place in a row for each window, made by length alone: a place takes any window of its length, in any epoch."""

    lengths: np.ndarray  # [n] int64, ascending
    rows: np.ndarray  # [n] int64, the row that a place lies in
    offsets: np.ndarray  # [n] int64, its first position in the row
    n_rows: int
    row_length: int

    @property
    def fill(self) -> float:
        """Share of the rows' positions that hold an item."""
        return float(self.lengths.sum() / max(1, self.n_rows * self.row_length))


def all_positions(offsets: np.ndarray, split: Split, max_length: int) -> Windows:
    """Training windows for a loss at every position: each training target lies in exactly one of them.

    The model reads up to max_length items at once, so a user with t targets has ceil(t / max_length) windows. All but
    the first are full, so that the shortest histories are read by the window that starts at the sequence's beginning,
    as they will be in evaluation. `offsets` are the dataset's.
    """
    n_targets = np.maximum(split.train_lengths - 1, 0)
    n_windows = -(-n_targets // max_length)
    user = np.repeat(np.arange(len(n_targets)), n_windows)
    ordinal = ranges(np.zeros_like(n_windows), n_windows)
    head = n_targets[user] - (n_windows[user] - 1) * max_length
    starts = offsets[user] + np.where(ordinal == 0, 0, head + (ordinal - 1) * max_length)
    return Windows(starts, np.where(ordinal == 0, head, max_length))


def prefixes(offsets: np.ndarray, split: Split, max_length: int) -> Windows:
    """Training windows for a loss at the last position: one per target, with the items before it (RecBole's scheme)."""
    n_targets = np.maximum(split.train_lengths - 1, 0)
    user = np.repeat(np.arange(len(n_targets)), n_targets)
    history = 1 + ranges(np.zeros_like(n_targets), n_targets)
    lengths = np.minimum(history, max_length)
    return Windows(offsets[user] + history - lengths, lengths)


def histories(offsets: np.ndarray, targets: Targets, max_length: int) -> Windows:
    """Evaluation windows: the last max_length items before each target."""
    lengths = np.minimum(targets.positions, max_length)
    return Windows(offsets[targets.users] + targets.positions - lengths, lengths)


def one_per_row(lengths: np.ndarray, row_length: int) -> Packing:
    """Each window in a row of its own, padded to row_length."""
    rows = np.arange(len(lengths))
    return Packing(np.sort(lengths), rows, np.zeros_like(rows), len(rows), row_length)


def pack(lengths: np.ndarray, row_length: int) -> Packing:
    """Packs windows of [n] int64 lengths, none above row_length, filling each row with the longest that still fit.

    Works on the histogram of lengths and repeats a row's pattern while windows for it remain, so the time depends
    on the number of distinct patterns and not on the number of windows.
    """
    left, n_rows = np.bincount(lengths, minlength=row_length + 1), 0
    places = [np.zeros((3, 0), np.int64)]  # their lengths, rows and offsets
    while left.any():
        pattern: list[int] = []
        room, taken = row_length, np.zeros_like(left)
        while room > 0 and len(fitting := np.flatnonzero((left - taken)[: room + 1])):
            length = int(fitting[-1])
            times = min(room // length, int(left[length] - taken[length]))
            pattern += [length] * times
            taken[length] += times
            room -= times * length
        used = taken > 0
        repeats = int((left[used] // taken[used]).min())
        left -= repeats * taken
        rows = np.repeat(np.arange(n_rows, n_rows + repeats), len(pattern))
        places.append(np.stack([np.tile(pattern, repeats), rows, np.tile(np.cumsum([0, *pattern[:-1]]), repeats)]))
        n_rows += repeats
    found = np.concatenate(places, axis=1)
    ordered, rows, offsets = found.take(np.argsort(found[0], kind="stable"), axis=1)
    return Packing(ordered, rows, offsets, n_rows, row_length)
