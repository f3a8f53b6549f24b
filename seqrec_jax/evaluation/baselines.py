"""What a model has to beat."""

import numpy as np

from seqrec_jax.evaluation.ranking import TargetRanker


def popularity_ranks(ranker: TargetRanker, counts: np.ndarray) -> np.ndarray:
    """Ranks of a ranker's targets when every user is shown the items most often seen in training.

    Args:
        ranker: of the targets.
        counts: [n_items + 1] training interactions of each item.

    Returns:
        [n] int64, 0 for the top; items of equal count rank before the target.
    """
    return ranker.ranks_by_item(np.unique(counts, return_inverse=True)[1])
