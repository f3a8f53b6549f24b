"""How far a figure may be off by the choice of users, and whether two models differ by more than that."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from seqrec_jax.evaluation.metrics import per_user

WITHIN = (2.5, 97.5)
"""Percentiles that bound an interval."""


def _gains(metric: str) -> tuple[int, np.ndarray]:
    """The cut-off of `<metric>_at_<k>`, and its value for each rank below it and beyond: [k + 1] float64."""
    name, _, k = metric.rpartition("_at_")
    return int(k), per_user(np.arange(int(k) + 1), int(k))[name]


USERS_PER_BLOCK = 1 << 16


def _sums_of_users(values: np.ndarray, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each user the sum of its targets' values and their number: [users] float64 each."""
    _, place = np.unique(users, return_inverse=True)
    return np.bincount(place, values), np.bincount(place).astype(np.float64)


def _draw_users(sums: np.ndarray, counts: np.ndarray, draws: int, generator: np.random.Generator) -> np.ndarray:
    """Means over the targets of drawn users: [draws] float64. Each user comes a Poisson's number of times."""
    totals, targets = np.zeros(draws), np.zeros(draws)
    for first in range(0, len(sums), USERS_PER_BLOCK):
        place = slice(first, first + USERS_PER_BLOCK)
        for draw in range(draws):
            times = generator.poisson(1.0, len(sums[place]))
            totals[draw] += times @ sums[place]
            targets[draw] += times @ counts[place]
    return totals / np.maximum(targets, 1)


def _one_each(users: np.ndarray | None) -> bool:
    """Whether no user has several targets."""
    return users is None or len(np.unique(users)) == len(users)


def bootstrap_interval(
    ranks: np.ndarray, metric: str, draws: int, seed: int, users: np.ndarray | None = None
) -> tuple[float, float]:
    """The 95 % interval of a mean over targets, by the bootstrap over users (Efron, 1979).

    Where each user has one target, a draw matters only by how many have each rank up to the cut-off, so the counts are
    drawn: memory and time go with draws x k, whatever the number of users. Otherwise users are drawn with all of their
    targets.

    Args:
        ranks: [n] int, 0 for the top.
        metric: `<metric>_at_<k>`.
        draws: of users.
        seed: of the draws.
        users: [n] int, whose the targets are; None where each user has one.
    """
    if not len(ranks):
        return 0.0, 0.0
    k, gains = _gains(metric)
    places, generator = np.minimum(ranks, k), np.random.default_rng(seed)
    if users is None or _one_each(users):
        counts = np.bincount(places, minlength=k + 1)
        means = generator.multinomial(len(ranks), counts / len(ranks), draws) @ gains / len(ranks)
    else:
        means = _draw_users(*_sums_of_users(gains[places], users), draws, generator)
    low, high = np.percentile(means, WITHIN)
    return float(low), float(high)


def intervals(
    ranks: np.ndarray, summary: Mapping[str, float], draws: int, seed: int, users: np.ndarray | None = None
) -> dict[str, list[float]]:
    """The 95 % interval of each figure of a summary, under its name: [low, high]; see bootstrap_interval."""
    users = None if _one_each(users) else users
    return {metric: list(bootstrap_interval(ranks, metric, draws, seed, users)) for metric in summary}


class Difference(NamedTuple):
    """How much better one model is than another on the same users.

    Attributes:
        first: mean of the first.
        second: mean of the second.
        difference: second less first.
        low: end of its 95 % interval.
        high: end of its 95 % interval.
        p: of a difference as large by chance, two-sided.
        better: users that the second serves better.
        worse: users that the second serves worse.
    """

    first: float
    second: float
    difference: float
    low: float
    high: float
    p: float
    better: int
    worse: int


def compare(
    first: np.ndarray, second: np.ndarray, metric: str, draws: int, seed: int, users: np.ndarray | None = None
) -> Difference:
    """Compares two models user by user: a paired bootstrap, and a permutation test (Smucker et al., CIKM 2007).

    Under the null hypothesis a user's two values could as well be the other way round. As in bootstrap_interval, only
    the number of users with each pair of ranks matters where each has one target.

    Args:
        first: [n] int, ranks by one model, 0 for the top.
        second: [n] int, ranks of the same targets by the other.
        metric: `<metric>_at_<k>`.
        draws: of users, and permutations.
        seed: of both.
        users: [n] int, whose the targets are; None where each user has one.
    """
    k, gains = _gains(metric)
    n, generator = max(1, len(first)), np.random.default_rng(seed)
    if users is None or _one_each(users):
        pairs, counts = np.unique(np.minimum(np.stack([first, second], 1), k), axis=0, return_counts=True)
        gained = gains[pairs[:, 1]] - gains[pairs[:, 0]]
        drawn = generator.multinomial(n, counts / n, draws) @ gained / n
        turned = generator.binomial(counts, 0.5, (draws, len(counts)))
        permuted = (counts - 2 * turned) @ gained / n
    else:
        each = gains[np.minimum(second, k)] - gains[np.minimum(first, k)]
        gained, targets = _sums_of_users(each, users)
        counts = np.ones(len(gained), int)
        drawn = _draw_users(gained, targets, draws, generator)
        permuted = np.array([(1 - 2 * generator.integers(0, 2, len(gained))) @ gained for _ in range(draws)]) / n
    difference = float(counts @ gained / n)
    low, high = np.percentile(drawn, WITHIN)
    beyond = int((np.abs(permuted) >= abs(difference) * (1 - 1e-9)).sum())
    return Difference(
        float(gains[np.minimum(first, k)].sum() / n), float(gains[np.minimum(second, k)].sum() / n), difference,
        float(low), float(high), (beyond + 1) / (draws + 1),
        int(counts[gained > 0].sum()), int(counts[gained < 0].sum()),
    )  # fmt: skip
