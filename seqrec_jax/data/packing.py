"""Windows of users' sequences, and the rows that several short ones share.

A window is a stretch of one user's sequence that the transformer reads at once. Its inputs are the
flat positions start .. start + length - 1 and the targets the same shifted by one.
"""

from typing import NamedTuple

import numpy as np

from seqrec_jax.data.split import Split, Targets, ranges


class Windows(NamedTuple):
    """Stretches of users' sequences.

    Attributes:
        starts: [n] int64, flat position of the first input.
        lengths: [n] int64, inputs, from 1 to the model's max_length.
    """

    starts: np.ndarray
    lengths: np.ndarray


class Packing(NamedTuple):
    """Places for windows in rows, a place for each window and by length alone.

    Places are sorted by length, so a place takes any window of its length and the layout serves every epoch.

    Attributes:
        lengths: [n] int64, ascending.
        rows: [n] int64, the row that a place lies in.
        offsets: [n] int64, its first position in the row.
        n_rows: rows in all.
        row_length: positions of a row.
    """

    lengths: np.ndarray
    rows: np.ndarray
    offsets: np.ndarray
    n_rows: int
    row_length: int

    @property
    def fill(self) -> float:
        """Share of the rows' positions that hold an item."""
        return float(self.lengths.sum() / max(1, self.n_rows * self.row_length))


def all_positions(offsets: np.ndarray, split: Split, max_length: int) -> Windows:
    """Training windows for a loss at every position: each training target lies in exactly one of them.

    A user with t targets has ceil(t / max_length) windows. All but the first are full, so that the shortest
    histories are read by the window that starts at the sequence's beginning, as they will be in evaluation.

    Args:
        offsets: [users + 1] int64, of the dataset.
        split: of the dataset.
        max_length: most items that the model reads at once.
    """
    n_targets = np.maximum(split.train_lengths - 1, 0)
    n_windows = -(-n_targets // max_length)
    user = np.repeat(np.arange(len(n_targets)), n_windows)
    ordinal = ranges(np.zeros(len(n_windows), np.int64), n_windows)
    head = n_targets[user] - (n_windows[user] - 1) * max_length
    starts = offsets[user] + np.where(ordinal == 0, 0, head + (ordinal - 1) * max_length)
    return Windows(starts, np.where(ordinal == 0, head, max_length))


def prefixes(offsets: np.ndarray, split: Split, max_length: int) -> Windows:
    """Training windows for a loss at the last position: one per target, with the items before it (RecBole's scheme)."""
    n_targets = np.maximum(split.train_lengths - 1, 0)
    user = np.repeat(np.arange(len(n_targets)), n_targets)
    history = 1 + ranges(np.zeros(len(n_targets), np.int64), n_targets)
    lengths = np.minimum(history, max_length)
    return Windows(offsets[user] + history - lengths, lengths)


def histories(offsets: np.ndarray, targets: Targets, max_length: int) -> Windows:
    """Evaluation windows: the last max_length items before each target."""
    lengths = np.minimum(targets.positions, max_length)
    return Windows(offsets[targets.users] + targets.positions - lengths, lengths)


def one_per_row(lengths: np.ndarray, row_length: int) -> Packing:
    """Each window in a row of its own, padded to row_length."""
    ordered = np.sort(lengths)
    rows = np.arange(len(ordered))
    return Packing(ordered, rows, np.zeros_like(rows), len(rows), row_length)


def pack(lengths: np.ndarray, row_length: int) -> Packing:
    """Packs windows into rows, filling each row with the longest that still fit.

    Works on the histogram of lengths and repeats a row's pattern while windows for it remain, so the time depends
    on the number of distinct patterns and not on the number of windows.

    Args:
        lengths: [n] of windows, none above row_length.
        row_length: positions of a row.
    """
    left = np.bincount(lengths, minlength=row_length + 1)
    place_lengths, place_rows, place_offsets, n_rows = [], [], [], 0
    while left.any():
        pattern: list[int] = []
        room = row_length
        taken = np.zeros_like(left)
        while room > 0:
            fitting = np.flatnonzero((left - taken)[: room + 1])
            if not len(fitting):
                break
            length = int(fitting[-1])
            times = min(room // length, int(left[length] - taken[length]))
            pattern += [length] * times
            taken[length] += times
            room -= times * length
        used = taken > 0
        repeats = int((left[used] // taken[used]).min())
        left -= repeats * taken
        starts = np.cumsum([0, *pattern[:-1]])
        place_lengths.append(np.tile(pattern, repeats))
        place_offsets.append(np.tile(starts, repeats))
        place_rows.append(np.repeat(np.arange(n_rows, n_rows + repeats), len(pattern)))
        n_rows += repeats
    if not n_rows:
        empty = np.zeros(0, np.int64)
        return Packing(empty, empty, empty, 0, row_length)
    lengths_ = np.concatenate(place_lengths)
    order = np.argsort(lengths_, kind="stable")
    return Packing(
        lengths_[order], np.concatenate(place_rows)[order], np.concatenate(place_offsets)[order], n_rows, row_length
    )
