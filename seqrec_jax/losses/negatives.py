"""Where negatives come from: proposals q over the catalog, and how a step draws from them.

A proposal is a function of the training counts, chosen in Gin. Drawing is exact and takes constant time a draw by
Walker's alias method (Vose, IEEE TSE 1991).
"""

from collections.abc import Callable
from typing import NamedTuple

import gin
import jax
import jax.numpy as jnp
import numpy as np


class Proposal(NamedTuple):
    """A distribution q over the catalog, row 0 (padding) having none.

    Attributes:
        log_q: [n_items + 1] float32, log(q + 1e-16).
        threshold: [n_items] float32, of the alias table for items 1 to n_items.
        alias: [n_items] int32, the item drawn when the threshold is missed.
    """

    log_q: jax.Array | np.ndarray
    threshold: jax.Array | np.ndarray
    alias: jax.Array | np.ndarray

    @property
    def n_items(self) -> int:
        """Items of the catalog, without padding."""
        return self.alias.shape[0]


def alias_table(probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Walker's alias table: [n] float64 -> threshold [n] float64, alias [n] int64.

    Cell i is drawn uniformly; it yields i with probability threshold[i] and alias[i] otherwise.
    """
    n = len(probabilities)
    scaled = probabilities * n
    threshold, alias = np.ones(n), np.arange(n)
    small, large = list(np.flatnonzero(scaled < 1)), list(np.flatnonzero(scaled >= 1))
    while small and large:
        less, more = small.pop(), large[-1]
        threshold[less], alias[less] = scaled[less], more
        scaled[more] -= 1 - scaled[less]
        if scaled[more] < 1:
            small.append(large.pop())
    return threshold, alias


def make_proposal(q: np.ndarray) -> Proposal:
    """A proposal from probabilities [n_items + 1] float64 that sum to 1, q[0] being 0."""
    threshold, alias = alias_table(q[1:].astype(np.float64))
    return Proposal(np.log(q + 1e-16).astype(np.float32), threshold.astype(np.float32), (alias + 1).astype(np.int32))


@gin.configurable
def uniform(counts: np.ndarray) -> Proposal:
    """Every item alike.

    Args:
        counts: [n_items + 1] training interactions of each item.
    """
    q = np.full(len(counts), 1 / (len(counts) - 1))
    q[0] = 0
    return make_proposal(q)


@gin.configurable
def popularity(counts: np.ndarray) -> Proposal:
    """In proportion to training count + 1.

    Args:
        counts: [n_items + 1] training interactions of each item.
    """
    q = counts + 1.0
    q[0] = 0
    return make_proposal(q / q.sum())


class Keys(NamedTuple):
    """Random keys of a step.

    Attributes:
        common: the same on every device, for what the devices share.
        own: another on each device.
    """

    common: jax.Array
    own: jax.Array


def draw(proposal: Proposal, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draws items, with replacement: int32 rows of the catalog, from 1 to n_items, of the given shape."""
    cell_key, side_key = jax.random.split(key)
    cell = jax.random.randint(cell_key, shape, 0, proposal.n_items)
    side = jax.random.uniform(side_key, shape)
    return jnp.where(side < proposal.threshold[cell], cell + 1, proposal.alias[cell])


class Negatives(NamedTuple):
    """Negatives of a step, scored.

    Attributes:
        items: [targets or 1, n] int32.
        logits: [targets, n] float32, dot products with the sequence outputs.
    """

    items: jax.Array
    logits: jax.Array


Encode = Callable[[jax.Array | np.ndarray], jax.Array]
"""Embeddings of catalog items: [n] int32 -> [n, hidden]."""


def encode_distinct(encode: Encode, items: jax.Array, n_items: int) -> tuple[jax.Array, jax.Array]:
    """Encodes each distinct item once.

    Args:
        encode: embeds catalog items.
        items: any shape, int32.
        n_items: of the catalog; a catalog smaller than `items` is encoded whole.

    Returns:
        Embeddings [distinct, hidden], and for each of `items` its row there.
    """
    if n_items + 1 <= items.size:
        return encode(jnp.arange(n_items + 1, dtype=jnp.int32)), items
    distinct, where = jnp.unique(items, return_inverse=True, size=items.size, fill_value=0)
    return encode(distinct), where.reshape(items.shape)


@gin.configurable
def shared(keys: Keys, n: int, proposal: Proposal, outputs: jax.Array, encode: Encode) -> Negatives:
    """One set of n negatives for all targets of the step, the same on every device.

    Args:
        keys: of the draw.
        n: negatives.
        proposal: to draw from.
        outputs: [targets, hidden].
        encode: embeds catalog items.
    """
    items = draw(proposal, keys.common, (n,))
    return Negatives(items[None], outputs @ encode(items).T)


@gin.configurable
def local(keys: Keys, n: int, proposal: Proposal, outputs: jax.Array, encode: Encode) -> Negatives:
    """A set of n negatives for each target; see `shared` for the arguments."""
    items = draw(proposal, keys.own, (outputs.shape[0], n))
    embeddings, where = encode_distinct(encode, items, proposal.n_items)
    return Negatives(items, score_rows(outputs, embeddings, where))


TARGETS_PER_BLOCK = 64


def score_rows(outputs: jax.Array, embeddings: jax.Array, rows: jax.Array) -> jax.Array:
    """Dot products of each output with its own set of embeddings, in blocks of targets.

    The gathered embeddings [targets, n, hidden] are never held whole, forward or backward.

    Args:
        outputs: [targets, hidden].
        embeddings: [items, hidden].
        rows: [targets, n] int32, rows of `embeddings`.

    Returns:
        [targets, n] float32.
    """

    @jax.checkpoint
    def block(output: jax.Array, row: jax.Array) -> jax.Array:
        return jnp.einsum("h,nh->n", output, embeddings[row])

    return jax.lax.map(lambda pair: block(*pair), (outputs, rows), batch_size=min(TARGETS_PER_BLOCK, len(outputs)))
