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


def bootstrap_interval(ranks: np.ndarray, metric: str, draws: int, seed: int) -> tuple[float, float]:
    """The 95 % interval of a mean over users, by the bootstrap (Efron, 1979).

    A draw of users matters only by how many have each rank up to the cut-off, so the counts are drawn: memory and time
    go with draws x k, whatever the number of users.

    Args:
        ranks: [n] int, 0 for the top.
        metric: `<metric>_at_<k>`.
        draws: of users.
        seed: of the draws.
    """
    if not len(ranks):
        return 0.0, 0.0
    k, gains = _gains(metric)
    counts = np.bincount(np.minimum(ranks, k), minlength=k + 1)
    drawn = np.random.default_rng(seed).multinomial(len(ranks), counts / len(ranks), draws)
    low, high = np.percentile(drawn @ gains / len(ranks), WITHIN)
    return float(low), float(high)


def intervals(ranks: np.ndarray, summary: Mapping[str, float], draws: int, seed: int) -> dict[str, list[float]]:
    """The 95 % interval of each figure of a summary, under its name: [low, high]."""
    return {metric: list(bootstrap_interval(ranks, metric, draws, seed)) for metric in summary}


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


def compare(first: np.ndarray, second: np.ndarray, metric: str, draws: int, seed: int) -> Difference:
    """Compares two models user by user: a paired bootstrap, and a permutation test (Smucker et al., CIKM 2007).

    Under the null hypothesis a user's two values could as well be the other way round. As in bootstrap_interval, only
    the number of users with each pair of ranks matters.

    Args:
        first: [n] int, ranks by one model, 0 for the top.
        second: [n] int, ranks of the same targets by the other.
        metric: `<metric>_at_<k>`.
        draws: of users, and permutations.
        seed: of both.
    """
    k, gains = _gains(metric)
    n, generator = max(1, len(first)), np.random.default_rng(seed)
    pairs, counts = np.unique(np.minimum(np.stack([first, second], 1), k), axis=0, return_counts=True)
    gained = gains[pairs[:, 1]] - gains[pairs[:, 0]]
    difference = float(counts @ gained / n)
    drawn = generator.multinomial(n, counts / n, draws) @ gained / n
    low, high = np.percentile(drawn, WITHIN)
    turned = generator.binomial(counts, 0.5, (draws, len(counts)))
    permuted = (counts - 2 * turned) @ gained / n
    beyond = int((np.abs(permuted) >= abs(difference) * (1 - 1e-9)).sum())
    return Difference(
        float(counts @ gains[pairs[:, 0]] / n), float(counts @ gains[pairs[:, 1]] / n), difference, float(low),
        float(high), (beyond + 1) / (draws + 1), int(counts[gained > 0].sum()), int(counts[gained < 0].sum()),
    )  # fmt: skip
