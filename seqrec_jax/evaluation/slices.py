"""Parts of the targets that users of a figure ask about."""

import itertools
from collections.abc import Mapping

import numpy as np

from seqrec_jax.data.split import Targets
from seqrec_jax.data.store import Dataset

HISTORY_LENGTHS = (5, 10, 20, 50)
"""Most items of a history in each slice but the last, which holds the longer ones."""
SHORT = f"history_1_to_{HISTORY_LENGTHS[0]}"
"""The slice of the shortest histories."""
HEAD, TAIL = 1 / 3, 2 / 3
"""Shares of the training interactions at which the middle begins and ends, the most popular items first."""


def by_history(targets: Targets) -> dict[str, np.ndarray]:
    """Targets by the number of items before them: per slice [n] bool; each target is in one."""
    edges = (0, *HISTORY_LENGTHS)
    slices = {
        f"history_{low + 1}_to_{high}": (targets.positions > low) & (targets.positions <= high)
        for low, high in itertools.pairwise(edges)
    }
    slices[f"history_above_{edges[-1]}"] = targets.positions > edges[-1]
    return slices


def by_popularity(items: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
    """Targets by how popular their items are in training: per slice [n] bool; each target is in one.

    Head, middle and tail make a third of the training interactions each; `cold_items` none.

    Args:
        items: [n] int32, of the targets.
        counts: [n_items + 1] training interactions of each item.
    """
    order = np.argsort(-counts, kind="stable")
    before = np.empty(len(counts))
    before[order] = (np.cumsum(counts[order]) - counts[order]) / max(1, counts.sum())
    place, cold = before[items], counts[items] == 0
    return {
        "head_items": ~cold & (place < HEAD),
        "middle_items": ~cold & (place >= HEAD) & (place < TAIL),
        "tail_items": ~cold & (place >= TAIL),
        "cold_items": cold,
    }


def slices_of(data: Dataset, targets: Targets, counts: np.ndarray) -> Mapping[str, np.ndarray]:
    """Targets by history and by popularity: per slice [n] bool.

    Args:
        data: of the targets.
        targets: to predict.
        counts: [n_items + 1] training interactions of each item.
    """
    items = data.items.take(data.offsets[targets.users] + targets.positions)
    return by_history(targets) | by_popularity(items, counts)


def gini(counts: np.ndarray) -> float:
    """How unevenly recommendations fall on items: 0 where all have as many, near 1 where one has all.

    Args:
        counts: [n_items] times that each was recommended.
    """
    ordered = np.sort(counts).astype(np.float64)
    total = ordered.sum()
    if not total:
        return 0.0
    places = np.arange(1, len(ordered) + 1)
    return float((2 * places - len(ordered) - 1) @ ordered / (len(ordered) * total))
