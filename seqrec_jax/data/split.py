"""Which interactions train, and which are predicted in validation and test."""

from typing import NamedTuple

import numpy as np

from seqrec_jax.data.store import Dataset


class Targets(NamedTuple):
    """Interactions to predict, each from what its user did before.

    Attributes:
        users: [n] int64, rows of the dataset.
        positions: [n] int64, the target's place in its user's sequence.
    """

    users: np.ndarray
    positions: np.ndarray


class Split(NamedTuple):
    """A split by time.

    Attributes:
        train_lengths: [users] int64; a user's first train_lengths[u] interactions train.
        valid: targets of validation.
        test: targets of test.
    """

    train_lengths: np.ndarray
    valid: Targets
    test: Targets


def leave_one_out(dataset: Dataset) -> Split:
    """Each user's last interaction is test, the one before valid, the rest train.

    Users with fewer than three interactions train only.
    """
    lengths = np.diff(dataset.offsets)
    evaluated = np.flatnonzero(lengths >= 3)
    train_lengths = np.where(lengths >= 3, lengths - 2, lengths)
    return Split(
        train_lengths=train_lengths,
        valid=Targets(evaluated, lengths[evaluated] - 2),
        test=Targets(evaluated, lengths[evaluated] - 1),
    )


def train_counts(dataset: Dataset, split: Split) -> np.ndarray:
    """Training interactions of each item: [n_items + 1] int64; row 0 is padding."""
    counts = np.zeros(dataset.n_items + 1, np.int64)
    users_per_block = 1 << 16
    for first in range(0, dataset.n_users, users_per_block):
        lengths = split.train_lengths[first : first + users_per_block]
        flat = ranges(dataset.offsets[first : first + len(lengths)], lengths)
        counts += np.bincount(dataset.items.take(flat), minlength=len(counts))
    return counts


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Concatenated ranges starts[i] .. starts[i] + lengths[i]: [sum of lengths] int64."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)
