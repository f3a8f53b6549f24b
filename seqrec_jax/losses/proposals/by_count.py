"""Proposals that are the same for every target: uniform, and by how often an item was bought."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from seqrec_jax.data.split import TrainInteractions
from seqrec_jax.errors import InputError
from seqrec_jax.losses.loss import LossInputs
from seqrec_jax.losses.proposals.draws import alias_table

LEAST_Q = 1e-16


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CatalogProposal:
    """One distribution over the catalog."""

    table: jax.Array | np.ndarray  # [n_items + 1] float32, log(q + 1e-16)
    threshold: jax.Array | np.ndarray  # [n_items] float32, of the alias table for items 1 to n_items
    alias: jax.Array | np.ndarray  # [n_items] int32, the item drawn when the threshold is missed
    per_target: ClassVar[bool] = False

    def draw_one(self, key: jax.Array, n: int) -> jax.Array:
        """n draws with replacement by one key: [n] int32."""
        cell_key, side_key = jax.random.split(key)
        cell = jax.random.randint(cell_key, (n,), 0, self.alias.shape[0])
        side = jax.random.uniform(side_key, (n,))
        return jnp.where(side < jnp.asarray(self.threshold)[cell], cell + 1, jnp.asarray(self.alias)[cell])

    def draw(self, keys: jax.Array, inputs: LossInputs, n: int) -> jax.Array:
        """n items for each key: [sets, n] int32."""
        return jax.vmap(lambda key: self.draw_one(key, n))(keys)

    def log_q(self, inputs: LossInputs, items: jax.Array) -> jax.Array:
        """log(q + 1e-16) of items of any shape."""
        return jnp.asarray(self.table)[items]


def catalog_proposal(q: np.ndarray) -> CatalogProposal:
    """A distribution in proportion to weights [n_items + 1]; that of row 0 is left out."""
    q = q.astype(np.float64)
    q[0] = 0
    q /= q.sum()
    threshold, alias = alias_table(q[1:])
    return CatalogProposal(
        np.log(q + LEAST_Q).astype(np.float32), threshold.astype(np.float32), (alias + 1).astype(np.int32)
    )


def uniform(train: TrainInteractions) -> CatalogProposal:
    """Every item alike."""
    return catalog_proposal(np.ones(len(train.counts)))


def popularity(train: TrainInteractions, alpha: float = 1.0) -> CatalogProposal:
    """In proportion to (training count + 1) ** alpha: 1 as in SRT, 0.75 as in word2vec; 0 is uniform."""
    if not alpha >= 0:
        raise InputError(f"popularity.alpha = {alpha} is negative: rare items would be drawn more than frequent ones")
    return catalog_proposal((train.counts + 1.0) ** alpha)


def log_popularity(train: TrainInteractions) -> CatalogProposal:
    """In proportion to log(1 + p), p being `popularity` (SRT)."""
    p = train.counts + 1.0
    p[0] = 0
    return catalog_proposal(np.log1p(p / p.sum()))
