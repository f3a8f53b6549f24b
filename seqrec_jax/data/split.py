"""Which interactions train, and which are predicted in validation and test."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from seqrec_jax.data.store import Dataset, ranges
from seqrec_jax.errors import InputError

PREDICTED = ("last", "first", "all")
SAMPLED_TIMES = 10_000_000
USERS_PER_BLOCK = 1 << 16


class Targets(NamedTuple):
    """Interactions to predict, each from what its user did before."""

    users: np.ndarray  # [n] int64, rows of the dataset
    positions: np.ndarray  # [n] int64, the target's place in its user's sequence


class Split(NamedTuple):
    """A split by time into what trains and the targets of validation and test."""

    train_lengths: np.ndarray  # [users] int64; a user's first train_lengths[u] interactions train
    valid: Targets
    test: Targets


def leave_one_out(dataset: Dataset) -> Split:
    """Each user's last interaction is test, the one before valid, the rest train; users of one or two train only."""
    lengths = np.diff(dataset.offsets)
    evaluated = np.flatnonzero(lengths >= 3)
    valid, test = (Targets(evaluated, lengths[evaluated] - back) for back in (2, 1))
    return Split(np.where(lengths >= 3, lengths - 2, lengths), valid, test)


def by_ratio(dataset: Dataset, valid: float = 0.1, test: float = 0.1) -> Split:
    """Each user's last interactions are test, those before them valid, the rest train (RecBole's ratio split, by time).

    Every one of them is a target, predicted from all before it. Users with fewer than three interactions train only;
    all others have at least one target in each part. `valid` and `test` are shares of a user's interactions, rounded
    down; an InputError where one is not in (0, 1), or nothing is left to train on.
    """
    _check_shares("by_ratio", valid, test)
    lengths = np.diff(dataset.offsets)
    n_test, n_valid = (np.where(lengths >= 3, np.maximum((share * lengths).astype(np.int64), 1), 0)
                       for share in (test, valid))  # fmt: skip
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


def global_cut(dataset: Dataset, valid: float = 0.1, test: float = 0.1, predicts: str = "last") -> Split:
    """Interactions before one moment train, those after a second one are test, those between are valid.

    The moments are the same for all users, so that no model learns from what came later than what it predicts, as it
    does where each user's last interactions are left out (Ji et al., ACM TOIS 2023). A target is predicted from all
    that its user did before it, also after the first moment. A user's first interaction of all is never a target.

    `valid` and `test` are shares of all interactions; `predicts` says which of a user's interactions in each time are
    targets: `last`, `first` or `all`. An InputError where a setting is wrong, or users do not share their times.
    """
    _check_shares("global_cut", valid, test)
    if predicts not in PREDICTED:
        raise InputError(f"global_cut.predicts = {predicts!r} is not one of {', '.join(PREDICTED)}")
    if not has_times(dataset):
        raise InputError(f"{dataset.folder}: its timestamps number each user's interactions and are no times that users"
                         " share, so there is no global cut; bind SPLIT = @leave_one_out or @by_ratio")  # fmt: skip
    step = -(-dataset.n_interactions // SAMPLED_TIMES)
    sampled = np.concatenate([times[::step] for _, _, times in timestamps(dataset)])
    moments = np.quantile(sampled, (1 - valid - test, 1 - test), method="higher")
    if len({sampled.min(), *moments}) < 3:
        raise InputError(f"{dataset.folder}: so many interactions share a time that no two moments divide them into "
                         "what trains, valid and test; bind SPLIT = @leave_one_out or @by_ratio")  # fmt: skip
    lengths = np.diff(dataset.offsets)
    train, before_test = np.zeros_like(lengths), np.zeros_like(lengths)
    for first, of_users, times in timestamps(dataset):
        bounds = np.concatenate([[0], np.cumsum(of_users)])
        for counts, moment in zip((train, before_test), moments, strict=True):
            earlier = np.concatenate([[0], np.cumsum(times < moment)])
            counts[first : first + len(of_users)] = np.diff(earlier[bounds])
    return Split(train, _predicted(train, before_test, predicts), _predicted(before_test, lengths, predicts))


def _predicted(begins: np.ndarray, ends: np.ndarray, predicts: str) -> Targets:
    """Targets of each user among the interactions begins[u] .. ends[u] - 1, without the first of all."""
    begins = np.maximum(begins, 1)
    counts = np.maximum(ends - begins, 0)
    if predicts == "all":
        return _targets_at(begins, counts)
    return _targets_at(ends - 1 if predicts == "last" else begins, np.minimum(counts, 1))


def timestamps(dataset: Dataset) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yields blocks of users: the first user, the users' lengths, and their timestamps, user by user."""
    first = 0
    for chunk in dataset.interactions_table["timestamps"].chunks:
        lengths = np.diff(dataset.offsets[first : first + len(chunk) + 1])
        yield first, lengths, chunk.flatten().to_numpy()
        first += len(chunk)


def has_times(dataset: Dataset) -> bool:
    """Whether timestamps are times that users share, and do not only number each user's interactions."""
    return any(len(times) and not (times - ranges(np.zeros_like(lengths), lengths) == times[0]).all()
               for _, lengths, times in timestamps(dataset))  # fmt: skip


def items_before(dataset: Dataset, targets: Targets) -> list[np.ndarray]:
    """Of each target the distinct items that its user had before, ascending: int32."""
    before: list[np.ndarray] = [np.zeros(0, np.int32)] * len(targets.users)
    if not before:
        return before
    order = np.argsort(targets.users, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(targets.users[order])) + 1):
        start, lengths = dataset.offsets[targets.users[rows[0]]], targets.positions[rows]
        items, first = np.unique(dataset.items.take(np.arange(start, start + lengths.max())), return_index=True)
        for row, length in zip(rows, lengths, strict=True):
            before[row] = items[first < length]
    return before


def last_training_targets(split: Split, most: int, seed: int) -> Targets:
    """The last interaction that each of at most `most` users trains on, to measure the fit on what a model has seen."""
    users = np.flatnonzero(split.train_lengths >= 2)
    return some_targets(Targets(users, split.train_lengths[users] - 1), most, seed)


def some_targets(targets: Targets, most: int, seed: int) -> Targets:
    """At most so many of the targets, drawn at random."""
    if len(targets.users) <= most:
        return targets
    places = np.sort(np.random.default_rng(seed).choice(len(targets.users), most, replace=False))
    return Targets(targets.users[places], targets.positions[places])


def without_users(split: Split, left_out: np.ndarray) -> Split:
    """The split without some users ([users] bool), neither in training nor in evaluation."""
    valid, test = (Targets(*(values[~left_out[targets.users]] for values in targets))
                   for targets in (split.valid, split.test))  # fmt: skip
    return Split(np.where(left_out, 0, split.train_lengths), valid, test)


def share_of_users(split: Split, share: float, seed: int, validate_all: bool = False) -> Split:
    """Training and validation on a share in (0, 1] of the users, drawn at random; test, or also validation, keeps all.

    The users of a smaller share of the same seed are among those of a larger one.
    """
    n_users = len(split.train_lengths)
    left_out = np.zeros(n_users, bool)
    left_out[np.random.default_rng([seed, n_users]).permutation(n_users)[max(1, round(share * n_users)) :]] = True
    some = without_users(split, left_out)
    return some._replace(valid=split.valid if validate_all else some.valid, test=split.test)


def _train_items(dataset: Dataset, split: Split) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields blocks of users: the lengths of their training parts [users], and their items [sum of lengths]."""
    for first in range(0, dataset.n_users, USERS_PER_BLOCK):
        lengths = split.train_lengths[first : first + USERS_PER_BLOCK]
        yield lengths, dataset.items.take(ranges(dataset.offsets[first : first + len(lengths)], lengths))


def train_counts(dataset: Dataset, split: Split) -> np.ndarray:
    """Training interactions of each item: [n_items + 1] int64; row 0 is padding."""
    counts = np.zeros(dataset.n_items + 1, np.int64)
    for _, items in _train_items(dataset, split):
        counts += np.bincount(items, minlength=len(counts))
    return counts


class TrainInteractions(NamedTuple):
    """The interactions to train on, which proposals of negatives and score terms are made from."""

    counts: np.ndarray  # [n_items + 1] int64, training interactions of each item; row 0 is padding
    blocks: Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]]  # of users: lengths [users], items [their sum] int32


def train_interactions(dataset: Dataset, split: Split) -> TrainInteractions:
    """The training part of a dataset."""
    return TrainInteractions(train_counts(dataset, split), lambda: _train_items(dataset, split))
