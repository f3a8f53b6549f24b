"""Ranking metrics of targets, from their ranks. A target is one relevant item, so recall and hit agree."""

from collections.abc import Sequence

import numpy as np

METRICS = ("recall", "mrr", "ndcg", "hit", "precision")


def per_user(ranks: np.ndarray, k: int) -> dict[str, np.ndarray]:
    """Values of every metric at cut-off k for [n] int ranks, 0 for the top: [n] float64 each."""
    hit = (ranks < k).astype(np.float64)
    return {"recall": hit, "mrr": hit / (ranks + 1), "ndcg": hit / np.log2(ranks + 2), "hit": hit, "precision": hit / k}


def standard_error(ranks: np.ndarray, metric: str) -> float:
    """Standard error of the mean of `<metric>_at_<k>` over [n] ranks; 0 for a single one."""
    name, _, k = metric.rpartition("_at_")
    values = per_user(ranks.astype(np.int64), int(k))[name]
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


def summarize(ranks: np.ndarray, ks: Sequence[int]) -> dict[str, float]:
    """Means over [n] ranks at each cut-off, under the names `<metric>_at_<k>`; empty where there is no rank."""
    if not len(ranks):
        return {}
    of_each = {k: per_user(ranks.astype(np.int64), k) for k in ks}
    return {f"{metric}_at_{k}": float(values.mean()) for k in ks for metric, values in of_each[k].items()}
