"""Negatives that users bought together with what is in the history."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse

from seqrec_jax.data.split import TrainInteractions
from seqrec_jax.errors import InputError
from seqrec_jax.losses.loss import LossInputs
from seqrec_jax.losses.proposals.by_count import LEAST_Q, CatalogProposal, popularity
from seqrec_jax.losses.proposals.draws import alias_table, integers, split_keys, uniforms
from seqrec_jax.model.terms.transitions import strongest

ITEMS_PER_BLOCK = 1 << 15


def co_occurrences(train: TrainInteractions, most: int, least: int) -> tuple[np.ndarray, np.ndarray]:
    """The items that most users, and at least so many, have together with each item; of equals the lower rows.

    Neighbours and the users in common, [n_items + 1, most] int32 each, 0 where there are fewer.
    """
    n_rows = len(train.counts)
    lengths, items = (np.concatenate(parts) for parts in zip(*train.blocks(), strict=True))
    users = np.repeat(np.arange(len(lengths)), lengths)
    bought = scipy.sparse.csr_matrix((np.ones(len(items), np.int32), (users, items)), (len(lengths), n_rows))
    bought.data[:] = 1  # An item that a user bought twice is the user's once.
    neighbours, counts = np.zeros((n_rows, most), np.int32), np.zeros((n_rows, most), np.int32)
    by_item = bought.T.tocsr()
    for first in range(0, n_rows, ITEMS_PER_BLOCK):
        pairs = (by_item[first : first + ITEMS_PER_BLOCK] @ bought).tocoo()
        item = pairs.row + first
        kept = (pairs.data >= least) & (item != pairs.col)
        item, other, count, place = strongest(item[kept], pairs.col[kept], pairs.data[kept], most)
        neighbours[item, place], counts[item, place] = other, count
    return neighbours, counts


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CoCounts:
    """A share of the mass on items that co-occur with the history, in proportion to the sum of the pairs' counts.

    A draw takes an item of the history, in proportion to its pairs, and then one of its neighbours by alias table; q is
    summed over the whole history.
    """

    popular: CatalogProposal  # takes the rest of the mass, and all of it where nothing co-occurs with the history
    neighbours: jax.Array | np.ndarray  # [n_items + 1, most] int32, of co_occurrences, as are the counts
    counts: jax.Array | np.ndarray
    threshold: jax.Array | np.ndarray  # [n_items + 1, most] float32, an alias table for each item
    alias: jax.Array | np.ndarray  # [n_items + 1, most] int32, columns
    mixing_factor: float = dataclasses.field(metadata={"static": True})  # the share
    per_target: ClassVar[bool] = True

    def _history(self, inputs: LossInputs) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Row, first and last column of each target's history [targets]; running sums of pairs [rows, length + 1]."""
        length = inputs.inputs.shape[1]
        row, last = inputs.slots // length, inputs.slots % length
        first = last - inputs.positions.reshape(-1)[inputs.slots]
        pairs = jnp.asarray(self.counts)[inputs.inputs].sum(2)
        return row, first, last, jnp.pad(jnp.cumsum(pairs, 1), ((0, 0), (1, 0)))

    def draw(self, keys: jax.Array, inputs: LossInputs, n: int) -> jax.Array:
        """n items for each target: [targets, n] int32."""
        row, first, last, running = self._history(inputs)
        popular_keys, mix_keys, pair_keys, cell_keys, side_keys = split_keys(keys, 5)
        low, high = running[row, first], running[row, last + 1]
        pair = integers(pair_keys, n, low, jnp.maximum(high, low + 1))
        column = jax.vmap(lambda sums, at: jnp.searchsorted(sums, at, side="right"))(running[row], pair) - 1
        item = inputs.inputs[row[:, None], jnp.minimum(column, inputs.inputs.shape[1] - 1)]
        cell = integers(cell_keys, n, 0, self.neighbours.shape[1])
        side = uniforms(side_keys, n)
        cell = jnp.where(side < jnp.asarray(self.threshold)[item, cell], cell, jnp.asarray(self.alias)[item, cell])
        mixed = (uniforms(mix_keys, n) < self.mixing_factor) & (high > low)[:, None]
        together = jnp.asarray(self.neighbours)[item, cell]
        return jnp.where(mixed, together, self.popular.draw(popular_keys, inputs, n))

    def log_q(self, inputs: LossInputs, items: jax.Array) -> jax.Array:
        """log(q + 1e-16) of each target's items: [targets, n] float32.

        The row's pairs are sorted by item and column once, as item * length + column, which holds 40 million items of
        windows of 50; two binary searches then sum what a query needs.
        """
        rows, length = inputs.inputs.shape
        row, first, last, running = self._history(inputs)
        neighbours = jnp.asarray(self.neighbours)[inputs.inputs]
        place = neighbours * length + jnp.arange(length, dtype=jnp.int32)[None, :, None]
        place, count = jax.lax.sort(
            (place.reshape(rows, -1), jnp.asarray(self.counts)[inputs.inputs].reshape(rows, -1)), num_keys=1
        )
        sums = jnp.pad(jnp.cumsum(count, 1), ((0, 0), (1, 0)))

        def of_target(row, first, last, items):
            bounds = items[:, None] * length + jnp.stack([first, last + 1])
            at = jnp.searchsorted(place[row], bounds)
            return sums[row, at[:, 1]] - sums[row, at[:, 0]]

        items = jnp.broadcast_to(items, (len(row), items.shape[1]))
        pairs = jax.vmap(of_target)(row, first, last, items)
        total = (running[row, last + 1] - running[row, first])[:, None]
        share = jnp.where(total > 0, self.mixing_factor, 0.0)
        popular = jnp.exp(self.popular.log_q(inputs, items))
        return jnp.log((1 - share) * popular + share * pairs / jnp.maximum(total, 1) + LEAST_Q)


def co_counts(train: TrainInteractions, mixing_factor: float = 0.5, neighbours: int = 30, least: int = 2) -> CoCounts:
    """A share (mixing_factor) of the mass on items that co-occur with the history, the rest by popularity (SRT).

    Of each item so many neighbours are kept, those that `least` users or more have together with it.
    """
    if not 0 <= mixing_factor < 1:
        raise InputError(f"co_counts.mixing_factor = {mixing_factor} is not in [0, 1): every item needs some mass")
    if neighbours < 1 or least < 1:
        raise InputError(f"co_counts.neighbours = {neighbours} and co_counts.least = {least} must be at least 1")
    others, counts = co_occurrences(train, neighbours, least)
    threshold, alias = np.ones(counts.shape, np.float32), np.zeros(counts.shape, np.int32)
    for row in np.flatnonzero(counts.any(1)):
        threshold[row], alias[row] = alias_table(counts[row] / counts[row].sum())
    return CoCounts(popularity(train), others, counts, threshold, alias, mixing_factor)
