"""Which interactions train, and which are predicted in validation and test."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import gin
import numpy as np

from seqrec_jax.data.store import Dataset
from seqrec_jax.errors import InputError


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


@gin.configurable
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


@gin.configurable
def by_ratio(dataset: Dataset, valid: float = 0.1, test: float = 0.1) -> Split:
    """Each user's last interactions are test, those before them valid, the rest train (RecBole's ratio split, by time).

    Every one of them is a target, predicted from all before it. Users with fewer than three interactions train only;
    all others have at least one target in each part.

    Args:
        dataset: to split.
        valid: share of a user's interactions, rounded down.
        test: share of a user's interactions, rounded down.

    Raises:
        InputError: a share is not in (0, 1), or nothing is left to train on.
    """
    _check_shares("by_ratio", valid, test)
    lengths = np.diff(dataset.offsets)
    evaluated = lengths >= 3
    n_test, n_valid = (
        np.where(evaluated, np.clip((share * lengths).astype(np.int64), 1, None), 0) for share in (test, valid)
    )
    train = lengths - n_test - n_valid
    return Split(train, _targets_at(train, n_valid), _targets_at(train + n_valid, n_test))


def _check_shares(split: str, valid: float, test: float) -> None:
    for name, share in (("valid", valid), ("test", test)):
        if not 0 < share < 1:
            raise InputError(f"{split}.{name} = {share} is not in (0, 1)")
    if valid + test >= 1:
        raise InputError(f"{split}.valid = {valid} and {split}.test = {test} leave nothing to train on")


def _targets_at(firsts: np.ndarray, counts: np.ndarray) -> Targets:
    """Of each user the interactions from a place on: [users] int64 each."""
    return Targets(np.repeat(np.arange(len(firsts)), counts), ranges(firsts, counts))


PREDICTED = ("last", "first", "all")


@gin.configurable
def global_cut(dataset: Dataset, valid: float = 0.1, test: float = 0.1, predicts: str = "last") -> Split:
    """What came before a moment trains, what came in the time after it is valid, what came last is test.

    The moment is the same for all users, so that no model learns from what came later than what it predicts, as it does
    where each user's last interactions are left out (Ji et al., ACM TOIS 2023). A target is predicted from all that its
    user did before it, also after the moment. A user's first interaction of all is never a target.

    Args:
        dataset: to split.
        valid: share of all interactions that lies in the time of validation.
        test: share of all interactions that lies in the time of test, the latest.
        predicts: which of a user's interactions in each time are targets: `last`, `first` or `all`.

    Raises:
        InputError: a setting is wrong, or the dataset's timestamps are no times that users share.
    """
    _check_shares("global_cut", valid, test)
    if predicts not in PREDICTED:
        raise InputError(f"global_cut.predicts = {predicts!r} is not one of {', '.join(PREDICTED)}")
    if not has_times(dataset):
        raise InputError(
            f"{dataset.folder}: its timestamps number each user's interactions and are no times that users share, so "
            "there is no global cut; bind SPLIT = @leave_one_out or @by_ratio"
        )
    from_valid, from_test = _quantiles(dataset, (1 - valid - test, 1 - test))
    lengths = np.diff(dataset.offsets)
    train, before_test = np.zeros_like(lengths), np.zeros_like(lengths)
    for first, of_users, times in timestamps(dataset):
        place = slice(first, first + len(of_users))
        bounds = np.concatenate([[0], np.cumsum(of_users)])
        for counts, moment in ((train, from_valid), (before_test, from_test)):
            earlier = np.concatenate([[0], np.cumsum(times < moment)])
            counts[place] = earlier[bounds[1:]] - earlier[bounds[:-1]]
    return Split(train, _predicted(train, before_test, predicts), _predicted(before_test, lengths, predicts))


def _predicted(begins: np.ndarray, ends: np.ndarray, predicts: str) -> Targets:
    """Targets of each user among the interactions begins[u] .. ends[u] - 1, without the first of all."""
    begins = np.maximum(begins, 1)
    counts = np.maximum(ends - begins, 0)
    if predicts == "last":
        begins = ends - 1
    return _targets_at(begins, counts if predicts == "all" else np.minimum(counts, 1))


def timestamps(dataset: Dataset) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """A block of users after the other: the first of them, their lengths, and their timestamps, user by user."""
    first = 0
    for chunk in dataset.interactions_table["timestamps"].chunks:
        lengths = np.diff(dataset.offsets[first : first + len(chunk) + 1])
        yield first, lengths, chunk.flatten().to_numpy()
        first += len(chunk)


def has_times(dataset: Dataset) -> bool:
    """Whether timestamps are times that users share, and do not only number each user's interactions."""
    for _, lengths, times in timestamps(dataset):
        steps = ranges(np.zeros_like(lengths), lengths)
        if len(times) and not (times - steps == times[0]).all():
            return True
    return False


SAMPLED_TIMES = 10_000_000


def _quantiles(dataset: Dataset, shares: tuple[float, ...]) -> np.ndarray:
    """Timestamps below which those shares of all interactions lie; of a very large dataset, of evenly spaced ones."""
    step = -(-dataset.n_interactions // SAMPLED_TIMES)
    times = np.concatenate([times[::step] for _, _, times in timestamps(dataset)])
    return np.quantile(times, shares, method="higher")


def last_training_targets(split: Split, most: int, seed: int) -> Targets:
    """The last interaction that each user trains on, to tell how well a model fits what it has seen.

    Args:
        split: of a dataset.
        most: users, drawn at random where there are more.
        seed: of the draw.
    """
    users = np.flatnonzero(split.train_lengths >= 2)
    return some_targets(Targets(users, split.train_lengths[users] - 1), most, seed)


def some_targets(targets: Targets, most: int, seed: int) -> Targets:
    """At most so many of the targets, drawn at random."""
    if len(targets.users) <= most:
        return targets
    places = np.sort(np.random.default_rng(seed).choice(len(targets.users), most, replace=False))
    return Targets(targets.users[places], targets.positions[places])


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


def share_of_users(split: Split, share: float, seed: int, validates_all: bool = False) -> Split:
    """Training and validation on a share of the users, drawn at random; test keeps all.

    The users of a smaller share of the same seed are among those of a larger one.

    Args:
        split: of a dataset.
        share: in (0, 1].
        seed: of the draw.
        validates_all: whether validation keeps all users too.
    """
    n_users = len(split.train_lengths)
    order = np.random.default_rng([seed, n_users]).permutation(n_users)
    left_out = np.zeros(n_users, bool)
    left_out[order[max(1, round(share * n_users)) :]] = True
    some = without_users(split, left_out)._replace(test=split.test)
    return some._replace(valid=split.valid) if validates_all else some


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
