"""How far a metric may be off by the choice of users, and whether two models differ by more than that."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from seqrec_jax.evaluation.metrics import per_user

WITHIN = (2.5, 97.5)  # percentiles that bound an interval
USERS_PER_BLOCK = 1 << 16


def _gains(metric: str) -> tuple[int, np.ndarray]:
    """The cut-off k of `<metric>_at_<k>`, and the metric's value for each rank below k and beyond: [k + 1] float64."""
    name, _, k = metric.rpartition("_at_")
    return int(k), per_user(np.arange(int(k) + 1), int(k))[name]


def _if_repeated(users: np.ndarray | None) -> np.ndarray | None:
    """The users; None where none of them has several targets."""
    return None if users is None or len(np.unique(users)) == len(users) else users


def _sums_of_users(values: np.ndarray, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum of the values of each user's targets, and their number: [users] float64 each."""
    _, place = np.unique(users, return_inverse=True)
    return np.bincount(place, values), np.bincount(place).astype(np.float64)


def _draw_users(sums: np.ndarray, counts: np.ndarray, draws: int, generator: np.random.Generator) -> np.ndarray:
    """Means over the targets of drawn users: [draws] float64. A user is drawn a Poisson-distributed number of times."""
    totals, targets = np.zeros(draws), np.zeros(draws)
    for first in range(0, len(sums), USERS_PER_BLOCK):
        place = slice(first, first + USERS_PER_BLOCK)
        for draw in range(draws):
            times = generator.poisson(1.0, len(sums[place]))
            totals[draw] += times @ sums[place]
            targets[draw] += times @ counts[place]
    return totals / np.maximum(targets, 1)


def bootstrap_interval(
    ranks: np.ndarray, metric: str, draws: int, seed: int, users: np.ndarray | None = None
) -> tuple[float, float]:
    """The 95 % interval of a mean over targets, by the bootstrap over users (Efron, 1979).

    Where each user has one target, only the number of users of each rank matters, so those numbers are drawn: memory
    and time grow with draws x k and not with the users. Otherwise users are drawn with all of their targets.
    `ranks` are [n] int, 0 for the top; `metric` is `<metric>_at_<k>`; `seed` decides the samples, `draws` of them;
    `users`, [n] int, are the targets' users, None where each has one target.
    """
    k, gains = _gains(metric)
    places, generator, users = np.minimum(ranks, k), np.random.default_rng(seed), _if_repeated(users)
    if users is None:
        counts = np.bincount(places, minlength=k + 1)
        means = generator.multinomial(len(ranks), counts / len(ranks), draws) @ gains / len(ranks)
    else:
        means = _draw_users(*_sums_of_users(gains[places], users), draws, generator)
    low, high = np.percentile(means, WITHIN)
    return float(low), float(high)


def intervals(
    ranks: np.ndarray, metrics: Iterable[str], draws: int, seed: int, users: np.ndarray | None = None
) -> dict[str, list[float]]:
    """The 95 % interval [low, high] of each `<metric>_at_<k>`; the arguments are bootstrap_interval's."""
    users = _if_repeated(users)
    return {metric: list(bootstrap_interval(ranks, metric, draws, seed, users)) for metric in metrics}


class Difference(NamedTuple):
    """How much better one model is than another on the same targets."""

    first: float  # mean of the first model
    second: float  # mean of the second model
    difference: float  # second less first
    low: float  # end of the difference's 95 % interval
    high: float  # its other end
    p: float  # probability of a difference as large by chance, two-sided
    better: int  # users whom the second model serves better
    worse: int  # users whom it serves worse


def paired_difference(
    first: np.ndarray, second: np.ndarray, metric: str, draws: int, seed: int, users: np.ndarray | None = None
) -> Difference:
    """Compares two models user by user: a paired bootstrap, and a permutation test (Smucker et al., CIKM 2007).

    Under the null hypothesis a user's two values could as well be swapped. Where each user has one target, only the
    number of users with each pair of ranks matters.

    `first` and `second` are the ranks of the same targets by the two models, and there are `draws` samples and as many
    permutations; all else is as in bootstrap_interval.
    """
    k, gains = _gains(metric)
    n, generator, users = max(1, len(first)), np.random.default_rng(seed), _if_repeated(users)
    one, other = np.minimum(first, k), np.minimum(second, k)
    if users is None:
        pairs, counts = np.unique(np.stack([one, other], 1), axis=0, return_counts=True)
        gained = gains[pairs[:, 1]] - gains[pairs[:, 0]]
        drawn = generator.multinomial(n, counts / n, draws) @ gained / n
        swapped = generator.binomial(counts, 0.5, (draws, len(counts)))
        permuted = (counts - 2 * swapped) @ gained / n
    else:
        gained, targets = _sums_of_users(gains[other] - gains[one], users)
        counts = np.ones(len(gained), int)
        drawn = _draw_users(gained, targets, draws, generator)
        permuted = np.array([(1 - 2 * generator.integers(0, 2, len(gained))) @ gained for _ in range(draws)]) / n
    difference = float(counts @ gained / n)
    low, high = np.percentile(drawn, WITHIN)
    beyond = int((np.abs(permuted) >= abs(difference) * (1 - 1e-9)).sum())
    return Difference(
        float(gains[one].sum() / n), float(gains[other].sum() / n), difference, float(low), float(high),
        (beyond + 1) / (draws + 1), int(counts[gained > 0].sum()), int(counts[gained < 0].sum()),
    )  # fmt: skip
