"""What an item's words are, beside what a model learns of them: fixed vectors that only shared words make alike."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

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


def _projection(vocab_size: int, size: int) -> np.ndarray:
    """A random direction for each token, from a fixed seed: [vocab_size, size] float32."""
    return np.random.default_rng(SEED).standard_normal((vocab_size, size), np.float32) / np.float32(np.sqrt(size))


def _vectors(tokens: Sequence[np.ndarray], weights: np.ndarray, projection: np.ndarray) -> np.ndarray:
    """Vectors of items, in blocks: [items, size] float16."""
    out = np.zeros((len(tokens[0]), projection.shape[1]), np.float16)
    for at in range(0, len(out), ITEMS_PER_BLOCK):
        rows = _times((feature[at : at + ITEMS_PER_BLOCK] for feature in tokens), weights, projection)
        out[at : at + len(rows)] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
    return out


def lexical_vectors(
    tokens: Sequence[np.ndarray], vocab_size: int, size: int, starts: np.ndarray | None = None
) -> np.ndarray:
    """TF-IDF of each item's tokens under a random projection: a dot product is, about, the cosine of two items' TF-IDF.

    The projection is drawn from a fixed seed, so that it is no parameter and needs no training; the inverse document
    frequencies are the catalog's own. (Random projections: Achlioptas, 2003; Weinberger et al., ICML 2009.)

    Takes token ids of each text feature [n_items + 1, tokens], 0 for padding and below vocab_size, and the starts of
    several catalogs as ItemFeature.read does. Gives [n_items + 1, size] float16, of length 1 but without any token.
    """
    n_rows, projection = len(tokens[0]), _projection(vocab_size, size)
    out = np.zeros((n_rows, size), np.float16)
    for first, end in zip(*([0], [n_rows - 1]) if starts is None else (starts[:-1], starts[1:]), strict=True):
        of_catalog = [feature[first + 1 : end + 1].astype(np.int64) for feature in tokens]
        out[first + 1 : end + 1] = _vectors(of_catalog, _inverse_frequencies(of_catalog, vocab_size), projection)
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


LEXICAL = "lexical"


@dataclasses.dataclass(frozen=True)
class Lexical:
    """Fixed vectors of an item's words, by which a model also scores: lexical_vectors; see ItemFeature, terms.lexical.

    Attributes:
        size: Of a vector.
        vocab_size: Token ids lie below.
        texts: Names of the text features whose tokens are the words.
    """

    kind: ClassVar[str] = "lexical"
    role: ClassVar[str] = "appended"
    name: ClassVar[str] = LEXICAL

    size: int
    vocab_size: int
    texts: tuple[str, ...]

    def __post_init__(self):
        object.__setattr__(self, "texts", tuple(self.texts))

    def width(self, architecture: Any) -> int:
        """See ItemFeature."""
        return self.size

    def table_rows(self) -> int:
        """See ItemFeature."""
        return 0

    def read(self, data: Any, read: dict[str, np.ndarray], starts: np.ndarray | None) -> np.ndarray:
        """See ItemFeature: [n_items + 1, size] float16."""
        return lexical_vectors([read[name] for name in self.texts], self.vocab_size, self.size, starts)

    def read_new(self, items: Any, read: dict[str, np.ndarray], tokenizer: Any, known: dict[str, np.ndarray]) -> Any:
        """See ItemFeature; the inverse document frequencies are those of the catalog that the items join."""
        new, old = ([of[name].astype(np.int64) for name in self.texts] for of in (read, known))
        weights = _inverse_frequencies([tokens[1:] for tokens in old], self.vocab_size)
        return _vectors(new, weights, _projection(self.vocab_size, self.size))

    def embed(self, table: Any, values: Any, architecture: Any, key: Any, axis: Any) -> Any:
        """See ItemFeature: the vectors as they are."""
        return values
