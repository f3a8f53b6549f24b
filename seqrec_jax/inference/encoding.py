"""Catalogs and histories as a model encodes them, each compiled once for a model's structure and a shape."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from seqrec_jax.data.store import ranges
from seqrec_jax.model.graph import Graph
from seqrec_jax.model.parameters import Params

ITEMS_PER_BLOCK = 4096
LEAST_WIDTH = 8
LONGEST = 1e18  # from this length of two vectors on, their product may overflow
REMEDY = "the model has diverged: train again with a lower TrainConfig.learning_rate, or set TrainConfig.max_grad_norm"

Features = Mapping[str, jax.Array | np.ndarray]


@functools.lru_cache(maxsize=64)
def encode_catalog(graph: Graph) -> Callable[[Params, Features], jax.Array]:
    """A jitted f(params, features) -> [n_items + 1, output_size], in blocks of items."""

    @jax.jit
    def encode(params: Params, features: Features) -> jax.Array:
        network = graph.merge(params)
        n_rows = next(iter(features.values())).shape[0]
        n_blocks = -(-n_rows // ITEMS_PER_BLOCK)
        pad = n_blocks * ITEMS_PER_BLOCK - n_rows
        blocks = {
            name: jnp.pad(values, ((0, pad), *((0, 0) for _ in values.shape[1:]))).reshape(
                n_blocks, ITEMS_PER_BLOCK, *values.shape[1:]
            )
            for name, values in features.items()
        }
        return jax.lax.map(network.encode_items, blocks).reshape(n_blocks * ITEMS_PER_BLOCK, -1)[:n_rows]

    return encode


@jax.jit
def not_finite(catalog: jax.Array) -> jax.Array:
    """How many embeddings, [n, size], are not finite, or so long that their scores may not be: [] int32."""
    return (~(jnp.linalg.norm(catalog, axis=1) < LONGEST)).sum(dtype=jnp.int32)


def width_for(longest: int, max_length: int) -> int:
    """The smallest of few widths that holds a history: a quarter, half or all of what the model reads."""
    widths = sorted(min(max_length, max(LEAST_WIDTH, -(-max_length // part))) for part in (4, 2, 1))
    return next(width for width in widths if width >= min(longest, max_length))


class HistoryBatch(NamedTuple):
    """Histories padded to one width.

    Attributes:
        items: [n, width] int32, item rows in time order, left-aligned, the latest of each history; 0 for padding.
        lengths: [n] int32, from 1.
    """

    items: np.ndarray
    lengths: np.ndarray


def pad_histories(
    take: Callable[[np.ndarray], np.ndarray], starts: np.ndarray, lengths: np.ndarray, max_length: int, n_rows: int
) -> HistoryBatch:
    """Histories as a batch of n_rows, those that are left over holding the padding item.

    `take` gives items at flat positions, [n] int64 -> [n] int32; starts [n] int64 are those of the first items.
    """
    read = np.minimum(lengths, max_length)
    width = width_for(int(read.max(initial=1)), max_length)
    items, padded = np.zeros((n_rows, width), np.int32), np.ones(n_rows, np.int32)
    padded[: len(read)] = read
    cells = np.repeat(np.arange(len(read)) * width, read) + ranges(np.zeros_like(read), read)
    items.reshape(-1)[cells] = take(ranges(starts + lengths - read, read))
    return HistoryBatch(items, padded)


def blocks_by_length(lengths: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Places of histories, short ones first, in blocks of at most `size`."""
    order = np.argsort(lengths, kind="stable")
    for first in range(0, len(order), size):
        yield order[first : first + size]
