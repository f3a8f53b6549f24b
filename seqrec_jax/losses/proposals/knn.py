"""Hard negatives: the target's nearest neighbours among the catalog's embeddings."""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from seqrec_jax.data.split import TrainInteractions
from seqrec_jax.errors import InputError
from seqrec_jax.losses.loss import LossInputs
from seqrec_jax.losses.proposals.by_count import LEAST_Q, CatalogProposal, popularity
from seqrec_jax.losses.proposals.draws import integers, split_keys, uniforms

QUERIES_PER_BLOCK = 512
CANDIDATES_PER_BLOCK = 1 << 14


def nearest(embeddings: jax.Array, queries: jax.Array, candidates: jax.Array, k: int, skip: int) -> jax.Array:
    """The nearest items by cosine, in blocks of queries and of candidates: [queries, k] int32, ascending in each row.

    `queries` int32 are items, a multiple of QUERIES_PER_BLOCK, whose k neighbours among the distinct `candidates` are
    wanted, but for `skip` that are nearer; an item is never its own neighbour. Row 0 of the embeddings is padding.
    """
    n_blocks = -(-len(candidates) // CANDIDATES_PER_BLOCK)
    per_block = -(-len(candidates) // n_blocks)
    candidates = jnp.pad(candidates, (0, n_blocks * per_block - len(candidates))).reshape(n_blocks, per_block)

    def of_block(query: jax.Array) -> jax.Array:
        def merge(best, block):
            among = embeddings[block]  # The query's own norm changes nothing in its ranking.
            among = among / jnp.maximum(jnp.linalg.norm(among, axis=1, keepdims=True), 1e-12)
            scores = embeddings[query] @ among.T
            scores = jnp.where((block == query[:, None]) | (block == 0), -jnp.inf, scores)
            values, at = jax.lax.top_k(scores, min(k + skip, per_block))
            values, items = jnp.concatenate([best[0], values], 1), jnp.concatenate([best[1], block[at]], 1)
            values, at = jax.lax.top_k(values, k + skip)
            return (values, jnp.take_along_axis(items, at, 1)), None

        empty = (jnp.full((len(query), k + skip), -jnp.inf), jnp.zeros((len(query), k + skip), jnp.int32))
        return jnp.sort(jax.lax.scan(merge, empty, candidates)[0][1][:, skip:], axis=1)

    return jax.lax.map(of_block, queries.reshape(-1, QUERIES_PER_BLOCK)).reshape(-1, k)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NearestNeighbours:
    """A share of the mass by popularity, the rest even over the target's pool of neighbours; settings as of `knn`."""

    popular: CatalogProposal  # takes `random_fraction` of the mass
    pools: jax.Array | np.ndarray  # [n_items + 1, pool_size] int32, ascending in each row; all 0 until refreshed
    random_fraction: float = dataclasses.field(metadata={"static": True})
    discard: int = dataclasses.field(metadata={"static": True})
    candidates: int | None = dataclasses.field(metadata={"static": True})
    per_target: ClassVar[bool] = True

    def refreshed(self, key: jax.Array, embeddings: jax.Array, mesh: Mesh) -> "NearestNeighbours":
        """With pools made of the catalog's present embeddings [n_items + 1, hidden], which are on every device.

        Each device searches for its share of the items. The key draws the candidates.
        """
        items = jnp.arange(len(embeddings), dtype=jnp.int32)
        candidates = items[1:]
        if self.candidates is not None and self.candidates < len(candidates):
            candidates = jax.random.choice(key, candidates, (self.candidates,), replace=False)
        search = functools.partial(nearest, k=self.pools.shape[1], skip=self.discard)
        whole, split = PartitionSpec(), PartitionSpec(mesh.axis_names)
        search = jax.shard_map(search, mesh=mesh, in_specs=(whole, split, whole), out_specs=split, check_vma=False)
        queries = jnp.pad(items, (0, -len(items) % (QUERIES_PER_BLOCK * mesh.size)))
        return dataclasses.replace(self, pools=search(embeddings, queries, candidates)[: len(items)])

    def draw(self, keys: jax.Array, inputs: LossInputs, n: int) -> jax.Array:
        """n items for each target: [targets, n] int32."""
        popular_keys, mix_keys, cell_keys = split_keys(keys, 3)
        cell = integers(cell_keys, n, 0, self.pools.shape[1])
        hard = jnp.asarray(self.pools)[inputs.targets[:, None], cell]
        mixed = (uniforms(mix_keys, n) >= self.random_fraction) & (hard > 0)
        return jnp.where(mixed, hard, self.popular.draw(popular_keys, inputs, n))

    def log_q(self, inputs: LossInputs, items: jax.Array) -> jax.Array:
        """log(q + 1e-16) of each target's items: [targets, n] float32."""
        pool = jnp.asarray(self.pools)[inputs.targets]
        items = jnp.broadcast_to(items, (len(pool), items.shape[1]))
        at = jax.vmap(jnp.searchsorted)(pool, items)
        inside = jnp.take_along_axis(pool, jnp.minimum(at, pool.shape[1] - 1), 1) == items
        empty = pool[:, :1] == 0
        popular = jnp.exp(self.popular.log_q(inputs, items))
        share = jnp.where(empty, 1.0, self.random_fraction)
        return jnp.log(share * popular + (1 - share) * inside / pool.shape[1] + LEAST_Q)


def knn(
    train: TrainInteractions, pool_size: int = 100, discard: int = 10, random_fraction: float = 0.5,
    candidates: int | None = None,
) -> NearestNeighbours:  # fmt: skip
    """Hard negatives among the target's nearest neighbours by cosine, refreshed every epoch (SRT).

    Args:
        pool_size: Number of neighbours of an item that are drawn, evenly.
        discard: Number of nearer neighbours that are never drawn, as the user may want them just as well.
        random_fraction: Share of the mass that is drawn by popularity instead.
        candidates: Number of random items that are searched, others at each refresh, which bounds the time for large
            catalogs; None searches the whole catalog.
    """
    n_items = len(train.counts) - 1
    searched = n_items if candidates is None else min(candidates, n_items)
    if pool_size < 1 or discard < 0:
        raise InputError(f"knn.pool_size = {pool_size} is below 1, or knn.discard = {discard} below 0")
    if pool_size + discard > searched - 1:
        what = "the catalog has" if searched == n_items else f"knn.candidates = {candidates} leaves"
        raise InputError(
            f"knn.pool_size = {pool_size} and knn.discard = {discard} need {pool_size + discard + 1} items, "
            f"but {what} {searched}"
        )
    if not 0 < random_fraction <= 1:
        raise InputError(f"knn.random_fraction = {random_fraction} is not in (0, 1]: every item needs some mass")
    pools = np.zeros((n_items + 1, pool_size), np.int32)
    return NearestNeighbours(popularity(train), pools, random_fraction, discard, candidates)
