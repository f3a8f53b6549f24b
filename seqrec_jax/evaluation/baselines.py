"""What a model has to beat: scores of the catalog that nobody trains."""

from collections.abc import Callable, Mapping

import numpy as np
import scipy.sparse
from absl import logging

from seqrec_jax.data.corpus import Corpus
from seqrec_jax.data.split import Split, Targets, TrainInteractions, has_times, items_before, some_targets, timestamps
from seqrec_jax.data.store import Dataset, ranges
from seqrec_jax.evaluation.ranking import Ranking, TargetRanker, popularity_ranks
from seqrec_jax.evaluation.ranks import TIE
from seqrec_jax.items.lexical import lexical_vectors
from seqrec_jax.model.terms.transitions import REMEMBERED, Transitions, count_transitions, recency_weights

MOST_SCORES = 1_000_000_000  # targets times items of a baseline that scores each history apart; a sample above that
SCORES_PER_BLOCK = 1 << 24  # of a block of targets, at most, unless the block is a single target
TARGETS_PER_BLOCK = 4096
RECENT = 0.2  # share of the training interactions, the latest, that recent popularity counts
TEXT_SIZE = 512  # of the vectors of an item's words
EDGE_WEIGHT = 0.5  # what the relative frequency of a transition adds to the likeness of two texts
PLACES = (7, 2, 1)  # items of each ring, nearest first, that are shown before all others

Scores = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""f(histories [sum of lengths] int32, lengths [n]) -> scores of the catalog [n, n_items + 1] float32; of each history
the latest REMEMBERED items."""


def recent_counts(data: Dataset, split: Split) -> np.ndarray:
    """Training interactions of each item among the latest RECENT of all: [n_items + 1] int64."""
    places = ranges(data.offsets[:-1], split.train_lengths)
    times = np.concatenate([of_block for _, _, of_block in timestamps(data)])[places]
    latest = times >= np.quantile(times, 1 - RECENT)
    return np.bincount(data.items.take(places[latest]), minlength=data.n_items + 1)


def by_transitions(transitions: Transitions) -> Scores:
    """What followed the history's items in training (item-to-item: Linden et al., IEEE Internet Computing 2003)."""
    matrix = transitions.matrix()
    return lambda histories, lengths: (recency_weights(histories, lengths, matrix.shape[0]) @ matrix).toarray()


def by_text(vectors: np.ndarray) -> Scores:
    """How like the history's texts are, by the lexical vectors of items: [n_items + 1, size], of length 1."""
    vectors = vectors.astype(np.float32)
    return lambda histories, lengths: (recency_weights(histories, lengths, len(vectors)) @ vectors) @ vectors.T


def _next_items(train: TrainInteractions) -> scipy.sparse.csr_matrix:
    """How often each item came next after each: [n_items + 1, n_items + 1] float32."""
    total = scipy.sparse.csr_matrix((len(train.counts), len(train.counts)), dtype=np.float32)
    for lengths, items in train.blocks():
        users = np.repeat(np.arange(len(lengths)), lengths)
        same = users[:-1] == users[1:]
        pairs = (items[:-1][same], items[1:][same])
        total += scipy.sparse.csr_matrix((np.ones(int(same.sum()), np.float32), pairs), total.shape)
    return total.tocsr()


def _next_ring(
    inside: np.ndarray, reached: np.ndarray, goes_to: scipy.sparse.csr_matrix, comes_from: scipy.sparse.csr_matrix
) -> np.ndarray:
    """Items that a transition leads to from those `inside`, and that were not `reached` before: [n, n_items + 1] bool.

    Follows the edges out of the one or into what is left, whichever are fewer (Beamer et al., Direction-Optimizing
    Breadth-First Search, SC 2012): the third ring of a popular item leads nearly everywhere.
    """
    found, out_of, into = np.zeros_like(inside), np.diff(goes_to.indptr), np.diff(comes_from.indptr)
    for row, from_here in enumerate(inside):
        here, left = np.flatnonzero(from_here), np.flatnonzero(~reached[row] & (into > 0))
        if out_of[here].sum() <= into[left].sum():
            found[row, goes_to.indices[ranges(goes_to.indptr[here], out_of[here])]] = True
            found[row] &= ~reached[row]
        else:
            sources = from_here[comes_from.indices[ranges(comes_from.indptr[left], into[left])]]
            found[row, left] = np.logical_or.reduceat(sources, np.cumsum(into[left]) - into[left])
    return found


def by_rings(train: TrainInteractions, vectors: np.ndarray) -> Scores:
    """The transition graph of one source (Han et al., arXiv 2605.07125), with our vectors of texts.

    Items one, two and three transitions from the last item, each ring by likeness of texts to it, the first also by the
    frequency of the transition; PLACES of each ring come first, then what is left, ring by ring. `vectors` are the
    lexical ones of items, of length 1: [n_items + 1, size].
    """
    vectors, counted = vectors.astype(np.float32), _next_items(train)
    comes_from, frequency = counted.T.tocsr(), counted.log1p()
    greatest = np.maximum(frequency.max(axis=1).toarray().ravel(), 1e-9)
    frequency = scipy.sparse.diags(EDGE_WEIGHT / greatest) @ frequency

    def scores(histories: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        last = histories[np.cumsum(lengths) - 1]
        likeness = vectors[last] @ vectors.T + frequency[last].toarray()
        found = likeness / 10 - 1  # out of all rings
        inside = reached = np.arange(likeness.shape[1]) == last[:, None]
        for ring, places in enumerate(PLACES):
            inside = _next_ring(inside, reached, counted, comes_from)
            reached = reached | inside
            of_ring = np.where(inside, likeness, -np.inf)
            worst = min(places, of_ring.shape[1]) - 1
            bar = -np.partition(-of_ring, worst, axis=1)[:, worst, None]
            found = np.where(inside, 10.0 * (len(PLACES) - ring) + of_ring, found)
            found += 100.0 * (inside & (of_ring >= bar))
        return found

    return scores


def ranks(scores: Scores, data: Dataset, targets: Targets, counts: np.ndarray, mask_seen: bool = False) -> np.ndarray:
    """Ranks of targets among the whole catalog by scores, each from all that its user did before: [n] int64, 0 the top.

    Popularity, the [n_items + 1] training interactions of each item, decides between equals; ties that are left count
    against the target, and so does a score that is no number. `mask_seen` leaves the items of the history out (the
    target never is).
    """
    found = np.zeros(len(targets.users), np.int64)
    size = min(TARGETS_PER_BLOCK, max(1, SCORES_PER_BLOCK // len(counts)))
    for first in range(0, len(found), size):
        users, positions = targets.users[first : first + size], targets.positions[first : first + size]
        starts, rows, read = data.offsets[users], np.arange(len(users)), np.minimum(positions, REMEMBERED)
        histories = data.items.take(ranges(starts + positions - read, read))
        block, items = scores(histories, read), data.items.take(starts + positions)
        score = block[rows, items][:, None]
        tie = TIE * (1 + np.abs(score))
        beats = (block > score + tie) | ((block >= score - tie) & (counts >= counts[items][:, None]))
        beats |= ~np.isfinite(score)
        if mask_seen:
            for row, seen in enumerate(items_before(data, Targets(users, positions))):
                beats[row, seen] = False
        beats[:, 0] = beats[rows, items] = False
        found[first : first + size] = beats.sum(1)
    return found


def baselines_of(corpus: Corpus) -> Mapping[str, Scores]:
    """Those that score each history apart, by name; those of texts where there are texts."""
    data, train = corpus.data, corpus.train
    found = {"item-to-item transitions": by_transitions(count_transitions(train, data.catalog_sha256()))}
    if texts := [data.tokens(name) for name in data.features]:
        vectors = lexical_vectors(texts, data.vocab_size, TEXT_SIZE)
        found |= {"text neighbours": by_text(vectors), "transition graph": by_rings(train, vectors)}
    return found


def baseline_ranks(
    corpus: Corpus, ranking: Ranking, ranker: TargetRanker, seed: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Ranks of the test targets of a corpus of one, which `ranker` ranks, by each baseline, and the targets' users.

    [n] int64 each, rank 0 for the top. Popularity stands alone where a sample of the catalog is ranked; recent
    popularity, equals by popularity, is there where there are times. Above MOST_SCORES those that score each history
    apart are measured on fewer targets, drawn by `seed`, and their names say on how many.
    """
    test, counts, data = corpus.division.test, corpus.train.counts, corpus.data
    found = {"popularity": (popularity_ranks(ranker, counts), test.users)}
    if ranking.n_sampled(data.n_items) is not None:
        logging.warning("Ranking.mode = %r orders models differently than the whole catalog does (Krichene and Rendle, "
                        "KDD 2020)", ranking.mode)  # fmt: skip
        return found
    if has_times(data):
        by_both = recent_counts(data, corpus.division) * (counts.max() + 1) + counts
        found["recent popularity"] = popularity_ranks(ranker, by_both), test.users
    some = some_targets(test, max(1, MOST_SCORES // data.n_items), seed)
    drawn = f", {len(some.users):,} targets" if len(some.users) < len(test.users) else ""
    for name, scores in baselines_of(corpus).items():
        found[name + drawn] = ranks(scores, data, some, counts, ranking.mask_seen), some.users
    return found
