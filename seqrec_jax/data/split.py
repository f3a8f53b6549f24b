"""Which interactions train, and which are predicted in validation and test."""

from collections.abc import Callable, Iterator
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


def without_users(split: Split, left_out: np.ndarray) -> Split:
    """The split without some users, neither in training nor in evaluation.

    Args:
        split: of a dataset.
        left_out: [users] bool.
    """

    def kept(targets: Targets) -> Targets:
        inside = ~left_out[targets.users]
        return Targets(targets.users[inside], targets.positions[inside])

    return Split(np.where(left_out, 0, split.train_lengths), kept(split.valid), kept(split.test))


def share_of_users(split: Split, share: float, seed: int) -> Split:
    """Training and validation on a share of the users, drawn at random; test keeps all.

    The users of a smaller share of the same seed are among those of a larger one.

    Args:
        split: of a dataset.
        share: in (0, 1].
        seed: of the draw.
    """
    n_users = len(split.train_lengths)
    order = np.random.default_rng([seed, n_users]).permutation(n_users)
    left_out = np.zeros(n_users, bool)
    left_out[order[max(1, round(share * n_users)) :]] = True
    return without_users(split, left_out)._replace(test=split.test)


USERS_PER_BLOCK = 1 << 16


def _training_items(dataset: Dataset, split: Split) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Training items of a block of users after the other: lengths [users] and, user by user, items [sum of lengths]."""
    for first in range(0, dataset.n_users, USERS_PER_BLOCK):
        lengths = split.train_lengths[first : first + USERS_PER_BLOCK]
        yield lengths, dataset.items.take(ranges(dataset.offsets[first : first + len(lengths)], lengths))


def train_counts(dataset: Dataset, split: Split) -> np.ndarray:
    """Training interactions of each item: [n_items + 1] int64; row 0 is padding."""
    counts = np.zeros(dataset.n_items + 1, np.int64)
    for _, items in _training_items(dataset, split):
        counts += np.bincount(items, minlength=len(counts))
    return counts


class TrainingLog(NamedTuple):
    """What proposals of negatives are made from.

    Attributes:
        counts: [n_items + 1] training interactions of each item; row 0 is padding.
        blocks: gives the users' training items, block by block: lengths [users], items [sum of lengths] int32.
    """

    counts: np.ndarray
    blocks: Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]]


def training_log(dataset: Dataset, split: Split) -> TrainingLog:
    """The training part of a dataset."""
    return TrainingLog(train_counts(dataset, split), lambda: _training_items(dataset, split))


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Concatenated ranges starts[i] .. starts[i] + lengths[i]: [sum of lengths] int64."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)
