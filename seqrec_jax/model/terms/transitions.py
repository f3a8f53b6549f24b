"""Which items followed which: counted in the training log, and added to a model's scores."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import scipy.sparse
from flax import nnx

from seqrec_jax.errors import InputError, in_short
from seqrec_jax.files import read_arrays, write_arrays
from seqrec_jax.model.parameters import Knob
from seqrec_jax.model.terms.interface import ScoreAdjustments, ScoreTerm

if TYPE_CHECKING:
    from seqrec_jax.data.split import TrainInteractions

GAPS = 20  # places, at most, between an item and one that follows it
GAP_DECAY = 0.9  # what a pair weighs, for each item more that lies between
AGE_DECAY = 0.7  # what an item of a history weighs, for each item that came after it
REMEMBERED = 300  # latest items of a history; what is older weighs 0 in float32
SHRINKAGE = 3.0  # added to what both items of a pair have in all
MOST_KEPT, MOST_FOLLOWERS = 32, 256  # of an item, and of a history


def strongest(
    rows: np.ndarray, columns: np.ndarray, values: np.ndarray, most: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The entries of greatest value of each row of a sparse matrix, `most` at most; of equal ones the lower columns.

    Takes rows, columns and values [n]; returns rows, ascending, columns, values, and each entry's place in its row,
    from the greatest: [kept] each.
    """
    order = np.lexsort((columns, -values, rows))
    rows, columns, values = rows[order], columns[order], values[order]
    places = np.arange(len(rows)) - np.searchsorted(rows, rows)
    kept = places < most
    return rows[kept], columns[kept], values[kept], places[kept]


def recency_weights(histories: np.ndarray, lengths: np.ndarray, n_rows: int) -> scipy.sparse.csr_matrix:
    """What each of n histories holds, the latest item weighing most: [n, n_rows of the catalog] float32.

    `histories` [sum of lengths] int32 are items in time order, one history after the other.
    """
    rows = np.repeat(np.arange(len(lengths)), lengths)
    ages = np.repeat(np.cumsum(lengths), lengths) - 1 - np.arange(len(histories))
    return scipy.sparse.csr_matrix(((AGE_DECAY**ages).astype(np.float32), (rows, histories)), (len(lengths), n_rows))


class Transitions(NamedTuple):
    """How strongly each item is followed by others, as a sparse matrix: items x items in compressed rows.

    Attributes:
        starts: [n_items + 2] int64, where each item's followers begin; row 0 is padding and has none.
        items: [n] int32, followers.
        scores: [n] float32, of each.
        catalog_sha256: of the catalog whose rows the items are.
    """

    starts: np.ndarray
    items: np.ndarray
    scores: np.ndarray
    catalog_sha256: str

    @property
    def n_rows(self) -> int:
        """Rows of the catalog, that of padding among them."""
        return len(self.starts) - 1

    def matrix(self) -> scipy.sparse.csr_matrix:
        """The scores of followers: [n_items + 1, n_items + 1] float32."""
        return scipy.sparse.csr_matrix((self.scores, self.items, self.starts), (self.n_rows, self.n_rows))

    def prepare(self, histories: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What followed the items of each history, the latest weighing most, without those items themselves.

        Items [n, MOST_FOLLOWERS] int32, distinct, 0 where there are fewer, and their scores, float32.
        """
        n, n_rows = len(lengths), self.n_rows
        history = np.repeat(np.arange(n), lengths)
        found = (recency_weights(histories, lengths, n_rows) @ self.matrix()).tocoo()
        own = np.isin(found.row * np.int64(n_rows) + found.col, history * np.int64(n_rows) + histories)
        rows, columns, values, places = strongest(found.row[~own], found.col[~own], found.data[~own], MOST_FOLLOWERS)
        items, scores = np.zeros((n, MOST_FOLLOWERS), np.int32), np.zeros((n, MOST_FOLLOWERS), np.float32)
        items[rows, places], scores[rows, places] = columns, values
        return items, scores

    def write(self, path: Path) -> None:
        """Writes an `.npz` and renames it into place."""
        write_arrays(path, self._asdict())

    @classmethod
    def read(cls, path: Path) -> "Transitions":
        """The inverse of write; an InputError where it is missing, damaged, or holds what would be no transitions."""
        try:
            arrays = read_arrays(path)
            found = cls(arrays["starts"], arrays["items"], arrays["scores"], str(arrays["catalog_sha256"]))
            found._check()
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                f"{path}: is missing or damaged ({in_short(error)}), and the checkpoint's scores need it; copy the "
                "whole RUN_DIR, or fine-tune again"
            ) from error
        return found

    def _check(self) -> None:
        """Raises a ValueError unless the arrays are a matrix: they are used as places in memory."""
        for name, kind in (("starts", np.int64), ("items", np.int32), ("scores", np.float32)):
            array = getattr(self, name)
            if array.ndim != 1 or array.dtype != kind:
                raise ValueError(f"{name} are no numbers of {np.dtype(kind).name}")
        n_rows, n = self.n_rows, len(self.items)
        if n_rows < 1 or self.starts[0] != 0 or self.starts[-1] != n or (self.starts[1:] < self.starts[:-1]).any():
            raise ValueError("starts do not rise from 0 to the number of items")
        if len(self.scores) != n or not np.isfinite(self.scores).all():
            raise ValueError("scores are not finite, or not one an item")
        if n and not 1 <= self.items.min() <= self.items.max() < n_rows:
            raise ValueError(f"items are not all of 1 to {n_rows - 1}")


def _pairs(train: "TrainInteractions") -> Iterator[scipy.sparse.csr_matrix]:
    """Weighted counts of pairs [n_items + 1, n_items + 1], of one gap after the other in each block of users."""
    n_rows = len(train.counts)
    for lengths, items in train.blocks():
        users = np.repeat(np.arange(len(lengths)), lengths)
        for gap in range(1, min(GAPS, int(lengths.max(initial=1)) - 1) + 1):
            before, after = items[:-gap], items[gap:]
            together = (users[:-gap] == users[gap:]) & (before != after)
            weights = np.full(int(together.sum()), GAP_DECAY ** (gap - 1), np.float32)
            yield scipy.sparse.csr_matrix((weights, (before[together], after[together])), (n_rows, n_rows))


def count_transitions(train: "TrainInteractions", catalog_sha256: str) -> Transitions:
    """Counts how often each item followed each other one within a user's training sequence.

    A pair weighs less the more lies between, and is divided by the square root of what both have in all, with
    SHRINKAGE added, which keeps pairs of items that are seldom seen from weighing most. (Item-to-item neighbours after
    Linden et al., IEEE Internet Computing 2003, in the order of time.) Memory goes with the number of distinct pairs.
    """
    n_rows = len(train.counts)
    total = scipy.sparse.csr_matrix((n_rows, n_rows), dtype=np.float32)
    for pairs in _pairs(train):
        total += pairs
    of_first, of_second = (np.asarray(total.sum(axis)).ravel() + SHRINKAGE for axis in (1, 0))
    entries = total.tocoo()
    values = entries.data / np.sqrt(of_first[entries.row] * of_second[entries.col])
    rows, columns, values, _ = strongest(entries.row, entries.col, values.astype(np.float32), MOST_KEPT)
    starts = np.searchsorted(rows, np.arange(n_rows + 1)).astype(np.int64)
    return Transitions(starts, columns.astype(np.int32), values, catalog_sha256)


class TransitionWeight(ScoreTerm):
    """By how much what followed the history's items in training raises scores.

    Embeddings of few dimensions cannot hold which of thousands of items followed which; counts can. The loss does not
    see them, as a training sequence is among those that were counted; the weight is chosen on validation. Kept in
    tenths, as the repeat offset.
    """

    name = "transitions"
    statistic = Transitions
    grids = {"weight": (0.0, 0.4, 0.8, 1.2, 1.6, 2.4, 3.2, 4.8, 6.4)}  # noqa: RUF012

    @classmethod
    def is_in(cls, architecture: Any) -> bool:
        """See ScoreTerm."""
        return architecture.transitions

    def __init__(self, architecture: Any, *, rngs: nnx.Rngs):
        self.weight = Knob(jnp.zeros(()))

    def adjustments(self, prepared: Any) -> Iterator[ScoreAdjustments]:
        """See ScoreTerm; `prepared` are items and scores, as Transitions.prepare gives them."""
        items, scores = prepared
        yield ScoreAdjustments(items, 10 * self.weight[...] * scores)
