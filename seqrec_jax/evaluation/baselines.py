"""What a model has to beat: scores of the catalog that nobody trains."""

from collections.abc import Callable, Mapping

import numpy as np
import scipy.sparse

from seqrec_jax.data.split import Split, Targets, TrainingLog, has_times, ranges, timestamps
from seqrec_jax.data.store import Dataset
from seqrec_jax.data.transitions import Transitions, recency_weights
from seqrec_jax.evaluation.ranking import TIE, TargetRanker

SCORES_PER_BLOCK = 1 << 24
"""Of a block of users, at most, but for a single user."""
RECENT = 0.2
"""Share of the training interactions, the latest, that recent popularity counts."""
EDGE_WEIGHT = 0.5
"""What the relative frequency of a transition adds to the likeness of two texts."""
PLACES = (7, 2, 1)
"""Items of each ring, nearest first, that are shown before all others."""

Scores = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""f(histories [sum of lengths] int32, lengths [n]) -> scores of the catalog [n, n_items + 1] float32."""


def popularity_ranks(ranker: TargetRanker, counts: np.ndarray) -> np.ndarray:
    """Ranks of a ranker's targets when every user is shown the items most often seen in training.

    Args:
        ranker: of the targets.
        counts: [n_items + 1] training interactions of each item.

    Returns:
        [n] int64, 0 for the top; items of equal count rank before the target.
    """
    return ranker.ranks_by_item(np.unique(counts, return_inverse=True)[1])


def recent_counts(data: Dataset, split: Split) -> np.ndarray:
    """Training interactions of each item among the latest RECENT of all: [n_items + 1] int64."""
    places = ranges(data.offsets[:-1], split.train_lengths)
    times = np.concatenate([of_block for _, _, of_block in timestamps(data)])[places]
    latest = times >= np.quantile(times, 1 - RECENT)
    return np.bincount(data.items.take(places[latest]), minlength=data.n_items + 1)


def by_item(counts: np.ndarray) -> Scores:
    """The same for everybody: the count of each item [n_items + 1]."""

    def scores(histories: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        del histories
        return np.broadcast_to(counts.astype(np.float32), (len(lengths), len(counts)))

    return scores


def by_transitions(transitions: Transitions) -> Scores:
    """What followed the history's items in training (item-to-item: Linden et al., IEEE Internet Computing 2003)."""
    matrix = transitions.matrix()

    def scores(histories: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        return (recency_weights(histories, lengths, matrix.shape[0]) @ matrix).toarray()

    return scores


def by_text(vectors: np.ndarray) -> Scores:
    """How like the history's texts are: cosine of TF-IDF, see lexical_vectors.

    Args:
        vectors: [n_items + 1, size], of length 1.
    """
    vectors = vectors.astype(np.float32)

    def scores(histories: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        return (recency_weights(histories, lengths, len(vectors)) @ vectors) @ vectors.T

    return scores


def _next_items(log: TrainingLog) -> scipy.sparse.csr_matrix:
    """How often each item came next after each: [n_items + 1, n_items + 1] float32."""
    n_rows = len(log.counts)
    total = scipy.sparse.csr_matrix((n_rows, n_rows), dtype=np.float32)
    for lengths, items in log.blocks():
        users = np.repeat(np.arange(len(lengths)), lengths)
        same = users[:-1] == users[1:]
        pairs = (items[:-1][same], items[1:][same])
        total += scipy.sparse.csr_matrix((np.ones(int(same.sum()), np.float32), pairs), (n_rows, n_rows))
    return total.tocsr()


def by_rings(log: TrainingLog, vectors: np.ndarray) -> Scores:
    """The transition-graph heuristic of one source (Han et al., arXiv 2605.07125), with our vectors of texts.

    Items one, two and three transitions from the last item, each ring by likeness of texts to it, the first also by the
    frequency of the transition; PLACES of each ring come first, then what is left, ring by ring.

    Args:
        log: of training.
        vectors: [n_items + 1, size], of length 1.
    """
    vectors, counted = vectors.astype(np.float32), _next_items(log)
    edges = (counted > 0).astype(np.float32)
    frequency = counted.copy()
    frequency.data = np.log1p(frequency.data)
    greatest = np.maximum(frequency.max(axis=1).toarray().ravel(), 1e-9)
    frequency = scipy.sparse.diags(EDGE_WEIGHT / greatest) @ frequency

    def scores(histories: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        last = histories[np.cumsum(lengths) - 1]
        likeness = vectors[last] @ vectors.T + frequency[last].toarray()
        found = -np.ones_like(likeness) + likeness / 10  # out of all rings
        reached = np.zeros(likeness.shape, bool)
        reached[np.arange(len(last)), last] = True
        step = edges[last]
        for ring, places in enumerate(PLACES):
            inside = (step.toarray() > 0) & ~reached
            reached |= inside
            of_ring = np.where(inside, likeness, -np.inf)
            bar = -np.partition(-of_ring, places - 1, axis=1)[:, places - 1 : places]
            first = inside & (of_ring >= bar)
            found = np.where(inside, 10.0 * (len(PLACES) - ring) + of_ring, found)
            found += 100.0 * first
            step = step @ edges
        return found

    return scores


def ranks(scores: Scores, data: Dataset, targets: Targets, counts: np.ndarray, mask_seen: bool = False) -> np.ndarray:
    """Ranks of targets among the whole catalog by scores, in blocks of users; popularity decides between equals.

    Args:
        scores: of the catalog for histories.
        data: of the targets.
        targets: to rank, each from all that its user did before.
        counts: [n_items + 1] training interactions of each item.
        mask_seen: leave the items of the history out (the target never is).

    Returns:
        [n] int64, 0 for the top; ties that are left count against the target.
    """
    found = np.zeros(len(targets.users), np.int64)
    size = max(1, SCORES_PER_BLOCK // len(counts))
    for first in range(0, len(found), size):
        users, positions = targets.users[first : first + size], targets.positions[first : first + size]
        starts, rows = data.offsets[users], np.arange(len(users))
        histories = data.items.take(ranges(starts, positions))
        block, items = scores(histories, positions), data.items.take(starts + positions)
        score = block[rows, items][:, None]
        tie = TIE * (1 + np.abs(score))
        beats = (block > score + tie) | ((block >= score - tie) & (counts >= counts[items][:, None]))
        if mask_seen:
            beats[np.repeat(rows, positions), histories] = False
        beats[:, 0] = beats[rows, items] = False
        found[first : first + size] = beats.sum(1)
    return found


def baselines_of(
    data: Dataset, split: Split, log: TrainingLog, transitions: Transitions, vectors: np.ndarray | None
) -> Mapping[str, Scores]:
    """All of them, by name; those of texts where there are texts, that of times where there are times."""
    found = {"popularity": by_item(log.counts)}
    if has_times(data):
        found["recent popularity"] = by_item(recent_counts(data, split))
    found["item-to-item transitions"] = by_transitions(transitions)
    if vectors is not None:
        found |= {"text neighbours": by_text(vectors), "transition graph": by_rings(log, vectors)}
    return found
