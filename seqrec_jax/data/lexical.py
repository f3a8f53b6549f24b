"""What an item's words are, beside what a model learns of them: fixed vectors that only shared words make alike."""

from collections.abc import Iterable, Sequence

import numpy as np

ITEMS_PER_BLOCK = 1 << 16
SEED = 20240714


def _times(tokens: Iterable[np.ndarray], weights: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Sum of the vectors of an item's distinct tokens, each times its weight: [items, size] float32."""
    together = np.sort(np.concatenate(list(tokens), 1), axis=1)
    again = np.zeros(together.shape, bool)
    again[:, 1:] = together[:, 1:] == together[:, :-1]
    times = np.where(again, 0, weights[together])
    total = np.zeros((len(together), vectors.shape[1]), np.float32)
    for column in range(together.shape[1]):  # [items, tokens, size] is never held
        total += times[:, column, None] * vectors[together[:, column]]
    return total


def lexical_vectors(
    tokens: Sequence[np.ndarray], vocab_size: int, size: int, starts: np.ndarray | None = None
) -> np.ndarray:
    """TF-IDF of each item's tokens under a random projection: a dot product is, about, the cosine of two items' TF-IDF.

    The projection is drawn from a fixed seed, so that it is no parameter and needs no training; the inverse document
    frequencies are the catalog's own. (Random projections: Achlioptas, 2003; Weinberger et al., ICML 2009.)

    Args:
        tokens: of each text feature, [n_items + 1, tokens] of ids, 0 for padding.
        vocab_size: ids lie below.
        size: of a vector.
        starts: [catalogs + 1] int64, of several catalogs: the items of catalog i are rows starts[i] + 1 to
            starts[i + 1]; None for one.

    Returns:
        [n_items + 1, size] float16, of length 1 but for items without a token.
    """
    n_rows = len(tokens[0])
    vectors = np.random.default_rng(SEED).standard_normal((vocab_size, size), np.float32) / np.float32(np.sqrt(size))
    out = np.zeros((n_rows, size), np.float16)
    for first, end in zip(*([0], [n_rows - 1]) if starts is None else (starts[:-1], starts[1:]), strict=True):
        of_catalog = [feature[first + 1 : end + 1].astype(np.int64) for feature in tokens]
        weights = _inverse_frequencies(of_catalog, vocab_size)
        for at in range(0, end - first, ITEMS_PER_BLOCK):
            rows = _times((feature[at : at + ITEMS_PER_BLOCK] for feature in of_catalog), weights, vectors)
            norms = np.linalg.norm(rows, axis=1, keepdims=True)
            out[first + 1 + at : first + 1 + at + len(rows)] = rows / np.maximum(norms, 1e-9)
    return out


def _inverse_frequencies(tokens: Sequence[np.ndarray], vocab_size: int) -> np.ndarray:
    """log(items / items that hold the token) of each token, 0 for padding: [vocab_size] float32."""
    together = np.sort(np.concatenate(list(tokens), 1), axis=1)
    first_time = np.ones(together.shape, bool)
    first_time[:, 1:] = together[:, 1:] != together[:, :-1]
    counts = np.bincount(together[first_time], minlength=vocab_size)
    weights = np.log(len(together) / np.maximum(counts, 1)).astype(np.float32)
    weights[0] = 0
    return weights
