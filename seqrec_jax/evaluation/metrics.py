"""Ranking metrics of targets, one to a user, from their ranks."""

from collections.abc import Sequence

import numpy as np

METRICS = ("recall", "mrr", "ndcg", "hit", "precision")


def per_user(ranks: np.ndarray, k: int) -> dict[str, np.ndarray]:
    """Each metric of each target at a cut-off.

    With one relevant item a user, recall and hit agree, and NDCG's ideal gain is 1.

    Args:
        ranks: [n] int, 0 for the top.
        k: places that count.

    Returns:
        Per metric [n] float64.
    """
    hit = (ranks < k).astype(np.float64)
    return {
        "recall": hit,
        "mrr": hit / (ranks + 1),
        "ndcg": hit / np.log2(ranks + 2),
        "hit": hit,
        "precision": hit / k,
    }


def standard_error(ranks: np.ndarray, metric: str) -> float:
    """Standard error of the mean over users of `<metric>_at_<k>`; 0 for a single user.

    Args:
        ranks: [n] int, 0 for the top.
        metric: its name.
    """
    name, _, k = metric.rpartition("_at_")
    values = per_user(ranks.astype(np.int64), int(k))[name]
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


def summarize(ranks: np.ndarray, ks: Sequence[int]) -> dict[str, float]:
    """Means over users, under the names `<metric>_at_<k>`."""
    ranks = ranks.astype(np.int64)
    return {
        f"{metric}_at_{k}": float(values.mean()) if len(values) else 0.0
        for k in ks
        for metric, values in per_user(ranks, k).items()
    }
