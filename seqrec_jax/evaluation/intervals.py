"""How far a metric may be off by the choice of users, and whether two models differ by more than that."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from seqrec_jax.data.store import ranges
from seqrec_jax.evaluation.metrics import per_user

WITHIN = (2.5, 97.5)  # percentiles that bound an interval
NUMBERS_PER_BLOCK = 1 << 20  # that are drawn at a time


def _gains(metric: str) -> tuple[int, np.ndarray]:
    """The cut-off k of `<metric>_at_<k>`, and the metric's value for each rank below k and beyond: [k + 1] float64."""
    name, _, k = metric.rpartition("_at_")
    return int(k), per_user(np.arange(int(k) + 1), int(k))[name]


def _if_repeated(users: np.ndarray | None) -> np.ndarray | None:
    """The users; None where none of them has several targets."""
    return None if users is None or len(np.unique(users)) == len(users) else users


class _Alike(NamedTuple):
    """Users whose targets are worth the same, which draws do not tell apart."""

    users: np.ndarray  # [n] int64, how many there are of each kind
    targets: np.ndarray  # [n] float64, that each of these users has
    sums: np.ndarray  # [n, metrics] float64, of the values of those targets

    @staticmethod
    def of(kinds: np.ndarray, values: np.ndarray, users: np.ndarray) -> "_Alike":
        """Groups users, [targets], by the kinds of their targets, [targets] int, worth `values` [kinds, metrics]."""
        _, user = np.unique(users, return_inverse=True)
        mixed = np.random.default_rng(0).integers(0, 1 << 63, len(values), np.uint64)[kinds]
        order = np.argsort(user, kind="stable")
        starts = np.flatnonzero(np.diff(user[order], prepend=-1))
        of_user = np.add.reduceat(mixed[order], starts)  # equal for equal targets, in whatever order
        _, first, n = np.unique(of_user, return_index=True, return_counts=True)
        ends = np.append(starts, len(order))
        targets = np.diff(ends)[first]
        rows = order[ranges(starts[first], targets)]
        sums = np.add.reduceat(values[kinds[rows]], np.cumsum(targets) - targets)
        return _Alike(n, targets.astype(np.float64), sums)

    def draw(self, draws: int, generator: np.random.Generator) -> np.ndarray:
        """Means over the targets of drawn users, each a Poisson-distributed number of times: [draws, metrics].

        Draws of nobody have no mean, and are left out; they come where there are a few users.
        """
        means = []
        for n in _blocks(draws, len(self.users)):
            times = generator.poisson(self.users, (n, len(self.users)))
            some = times[times.any(axis=1)]
            means.append((some @ self.sums) / (some @ self.targets)[:, None])
        return np.concatenate(means)


def _blocks(draws: int, size: int) -> Iterator[int]:
    """How many of so many draws of `size` numbers are made at a time."""
    at_a_time = max(1, NUMBERS_PER_BLOCK // size)
    yield from (min(at_a_time, draws - first) for first in range(0, draws, at_a_time))


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
        means = _Alike.of(places, gains[:, None], users).draw(draws, generator)
    low, high = np.percentile(means, WITHIN)
    return float(low), float(high)


def intervals(
    ranks: np.ndarray, metrics: Iterable[str], draws: int, seed: int, users: np.ndarray | None = None
) -> dict[str, list[float]]:
    """The 95 % interval [low, high] of each `<metric>_at_<k>`; the arguments are bootstrap_interval's.

    Where users have several targets, all metrics are of the same draws.
    """
    names, users = list(metrics), _if_repeated(users)
    if users is None or not names:
        return {metric: list(bootstrap_interval(ranks, metric, draws, seed)) for metric in names}
    most = max(_gains(name)[0] for name in names)
    values = np.stack([gains[np.minimum(np.arange(most + 1), k)] for k, gains in map(_gains, names)], axis=1)
    means = _Alike.of(np.minimum(ranks, most), values, users).draw(draws, np.random.default_rng(seed))
    bounds = np.percentile(means, WITHIN, axis=0).T
    return {metric: [float(low), float(high)] for metric, (low, high) in zip(names, bounds, strict=True)}


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
        values = np.subtract.outer(gains, gains).T.reshape(-1, 1)  # of the second's rank less the first's
        alike = _Alike.of(one * (k + 1) + other, values, users)
        gained, counts = alike.sums[:, 0], alike.users
        drawn = alike.draw(draws, generator)
        permuted = np.concatenate([
            (counts - 2 * generator.binomial(counts, 0.5, (some, len(counts)))) @ gained
            for some in _blocks(draws, len(counts))
        ]) / n  # fmt: skip
    difference = float(counts @ gained / n)
    low, high = np.percentile(drawn, WITHIN)
    beyond = int((np.abs(permuted) >= abs(difference) * (1 - 1e-9)).sum())
    return Difference(
        float(gains[one].sum() / n), float(gains[other].sum() / n), difference, float(low), float(high),
        (beyond + 1) / (draws + 1), int(counts[gained > 0].sum()), int(counts[gained < 0].sum()),
    )  # fmt: skip
