"""Where targets rank among the catalog, in blocks: never a users x items matrix."""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import gin
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from seqrec_jax.data.batches import PackedBatches, prefetch
from seqrec_jax.data.packing import histories, pack
from seqrec_jax.data.split import Targets, ranges
from seqrec_jax.data.store import Dataset
from seqrec_jax.data.transitions import Transitions
from seqrec_jax.devices import (
    REPLICATED,
    SPLIT,
    greatest_of_hosts,
    local_rows,
    local_shards,
    replicate,
    specs,
    split_rows,
)
from seqrec_jax.errors import InputError
from seqrec_jax.losses.proposals.by_count import CatalogProposal, catalog_proposal
from seqrec_jax.model.recommender import Recommender, items_read

ITEMS_PER_BLOCK = 4096
TARGETS_PER_SAMPLED_BLOCK = 16
TIE = 1e-6
"""Scores closer than this, relative to 1 + |target's score|, are ties: kernels' float32 sums differ by as much."""


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Ranking:
    """How targets are ranked.

    Attributes:
        mode: `full` for the whole catalog; `sampled<N>` for N uniform negatives a target, `popular<N>` for N that are
            drawn by how often they are in training (plus one), both fixed by the seed.
        ks: cut-offs of the metrics.
        mask_seen: leave the items of the user's history out of the ranking (the target never is).
        rows: packed rows of an evaluation batch.
        seed: of the sampled negatives.
    """

    mode: str = "full"
    ks: tuple[int, ...] = (5, 10, 20)
    mask_seen: bool = False
    rows: int = 64
    seed: int = 2020

    def __post_init__(self):
        if not re.fullmatch(r"full|(sampled|popular)[1-9]\d*", self.mode):
            raise InputError(
                f"Ranking.mode = {self.mode!r} is none of 'full', 'popular<N>' and 'sampled<N>', such as 'sampled10000'"
            )
        if not self.ks or any(k < 1 for k in self.ks):
            raise InputError(f"Ranking.ks = {self.ks} must hold numbers from 1")

    @property
    def n_sampled(self) -> int | None:
        """Negatives a target; None ranks the whole catalog."""
        return None if self.mode == "full" else int(re.sub(r"\D", "", self.mode))

    @property
    def by_popularity(self) -> bool:
        """Whether negatives are drawn by popularity."""
        return self.mode.startswith("popular")


def _beaten_by_catalog(outputs: jax.Array, catalog: jax.Array, targets: jax.Array, bar: jax.Array) -> jax.Array:
    """How many items other than the target score at least `bar`: [targets] int32; see rank_targets."""
    n_rows = catalog.shape[0]
    n_blocks = -(-n_rows // ITEMS_PER_BLOCK)
    blocks = jnp.pad(catalog, ((0, n_blocks * ITEMS_PER_BLOCK - n_rows), (0, 0)))
    blocks = blocks.reshape(n_blocks, ITEMS_PER_BLOCK, -1)

    def count(beaten, block):
        first, embeddings = block
        items = first + jnp.arange(ITEMS_PER_BLOCK)
        above = outputs @ embeddings.T >= bar[:, None]
        competes = (items >= 1) & (items < n_rows) & (items != targets[:, None])
        return beaten + (above & competes).sum(1, dtype=jnp.int32), None

    firsts = jnp.arange(n_blocks) * ITEMS_PER_BLOCK
    return jax.lax.scan(count, jnp.zeros_like(targets), (firsts, blocks))[0]


class Raised(NamedTuple):
    """Items whose scores are not their dot products alone: those of the history, and what followed them in training.

    Attributes:
        items: [targets, most] int32; distinct, but for those to which nothing is added.
        amounts: [targets, most] float32, what is added to their scores; 0 for padding.
    """

    items: jax.Array
    amounts: jax.Array

    def of(self, items: jax.Array) -> jax.Array:
        """What is added to the score of one item of each target: [targets] int32 -> [targets] float32."""
        return jnp.where(self.items == items[:, None], self.amounts, 0).sum(1)

    def but(self, items: jax.Array, targets: jax.Array) -> "Raised":
        """Those that are none of `items` [targets, n], unless they are the target."""
        left_out = (self.items[:, :, None] == items[:, None, :]).any(2) & (self.items != targets[:, None])
        return self._replace(amounts=jnp.where(left_out, 0, self.amounts))


def raised_by(
    model: Recommender,
    items: jax.Array,
    read: jax.Array,
    followers: tuple[jax.Array, jax.Array] | None,
) -> Raised | None:
    """What a model adds to scores: its repeat offset to what it has read, its weight of transitions to what followed.

    Args:
        model: the recommender.
        items: [targets, length] int32, of the row.
        read: [targets, length] bool, whether the target's history holds it, at its first place.
        followers: see Transitions.followers; None where there are none.
    """
    parts = []
    if model.repeat_offset is not None:
        parts.append(Raised(items, jnp.where(read, model.repeat_offset, 0)))
    if followers is not None and model.transition_weight is not None:
        parts.append(Raised(followers[0], model.transition_weight * followers[1]))
    return Raised(*(jnp.concatenate(part, 1) for part in zip(*parts, strict=True))) if parts else None


def _beaten_by_sample(
    outputs: jax.Array,
    catalog: jax.Array,
    targets: jax.Array,
    bar: jax.Array,
    keys: jax.Array,
    n: int,
    raised: Raised | None,
    popular: CatalogProposal | None,
) -> jax.Array:
    """How many of n draws of other items score at least `bar`: [targets] int32; a draw of the target never does."""
    n_items = catalog.shape[0] - 1

    def count(part):
        output, target, least, key, more = part
        if popular is None:
            draws = jax.random.randint(key, (n,), 1, n_items)
            draws = draws + (draws >= target)
        else:
            draws = popular.draw_one(key, n)
        scores = catalog[draws] @ output
        if more is not None:
            at = jnp.searchsorted(more.items, draws).clip(max=len(more.items) - 1)
            scores += jnp.where(more.items[at] == draws, more.amounts[at], 0)
        return ((scores >= least) & (draws != target)).sum(dtype=jnp.int32)

    if raised is not None:
        items = jnp.where(raised.amounts == 0, 0, raised.items)  # so that each item is there once
        raised = Raised(*jax.lax.sort((items, raised.amounts), num_keys=1))
    parts = (outputs, targets, bar, keys, raised)
    return jax.lax.map(count, parts, batch_size=min(TARGETS_PER_SAMPLED_BLOCK, outputs.shape[0]))


def _beaten_by_raised(
    outputs: jax.Array, catalog: jax.Array, targets: jax.Array, bar: jax.Array, raised: Raised
) -> jax.Array:
    """By how many more items a target is beaten with what is added to scores than without: [targets] int32."""

    def count(part):
        output, target, least, more = part
        scores = catalog[more.items] @ output
        gained = (scores + more.amounts >= least).astype(jnp.int32) - (scores >= least)
        return jnp.where((more.items != target) & (more.amounts != 0), gained, 0).sum(dtype=jnp.int32)

    parts = (outputs, targets, bar, raised)
    return jax.lax.map(count, parts, batch_size=min(64, outputs.shape[0]))


def rank_targets(
    outputs: jax.Array,
    catalog: jax.Array,
    targets: jax.Array,
    ordinals: jax.Array,
    seen: jax.Array | None,
    raised: Raised | None = None,
    popular: CatalogProposal | None = None,
    *,
    n_sampled: int | None,
    seed: int,
) -> jax.Array:
    """Ranks of targets by dot product, ties broken against them.

    Args:
        outputs: [targets, hidden].
        catalog: [n_items + 1, hidden]; row 0 is padding.
        targets: [targets] int32, catalog items.
        ordinals: [targets] int32, which seed each target's sample.
        seen: [targets, most] int32 distinct items to leave out, 0 for padding; or None.
        raised: items whose scores the model changes; or None.
        popular: what a sample is drawn from; None draws every item alike.
        n_sampled: None ranks among the whole catalog.
        seed: of the samples.

    Returns:
        [targets] int32, 0 for the top.
    """
    score = (outputs * catalog[targets]).sum(-1)
    if raised is not None:
        score += raised.of(targets)
    bar = score - TIE * (1 + jnp.abs(score))
    if n_sampled is not None:
        keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), i))(ordinals)
        return _beaten_by_sample(outputs, catalog, targets, bar, keys, n_sampled, raised, popular)
    beaten = _beaten_by_catalog(outputs, catalog, targets, bar)
    if raised is not None:
        raised = raised if seen is None else raised.but(seen, targets)
        beaten += _beaten_by_raised(outputs, catalog, targets, bar, raised)
    if seen is None:
        return beaten

    def count_seen(part):
        output, target, least, items = part
        above = catalog[items] @ output >= least
        return (above & (items > 0) & (items != target)).sum(dtype=jnp.int32)

    return beaten - jax.lax.map(count_seen, (outputs, targets, bar, seen), batch_size=min(64, outputs.shape[0]))


def encode_catalog(graph: nnx.GraphDef) -> Callable[[nnx.State, Mapping[str, jax.Array | np.ndarray]], jax.Array]:
    """A jitted f(params, features) -> [n_items + 1, hidden], in blocks of items."""

    @jax.jit
    def encode(params: nnx.State, features: Mapping[str, jax.Array | np.ndarray]) -> jax.Array:
        model = nnx.merge(graph, params)
        n_rows = next(iter(features.values())).shape[0]
        n_blocks = -(-n_rows // ITEMS_PER_BLOCK)
        pad = n_blocks * ITEMS_PER_BLOCK - n_rows
        blocks = {
            name: jnp.pad(values, ((0, pad), *((0, 0) for _ in values.shape[1:]))).reshape(
                n_blocks, ITEMS_PER_BLOCK, *values.shape[1:]
            )
            for name, values in features.items()
        }
        return jax.lax.map(model.encode_items, blocks).reshape(n_blocks * ITEMS_PER_BLOCK, -1)[:n_rows]

    return encode


class TargetRanker:
    """Ranks a split's targets, from packed histories, over the devices of a mesh.

    Args:
        graph: of the recommender.
        dataset: whose targets they are.
        targets: to rank.
        ranking: how.
        max_length: most items of a history that the model reads.
        mesh: of devices, on one host or several; each target is ranked once.
        transitions: which a model with a weight for them adds to its scores; None for none.
        counts: [n_items + 1] training interactions of each item, for negatives by popularity.
    """

    def __init__(
        self,
        graph: nnx.GraphDef,
        dataset: Dataset,
        targets: Targets,
        ranking: Ranking,
        max_length: int,
        mesh: Mesh,
        transitions: Transitions | None = None,
        counts: np.ndarray | None = None,
    ):
        self._dataset, self._targets, self._ranking, self._transitions = dataset, targets, ranking, transitions
        windows = histories(dataset.offsets, targets, max_length)
        packing = pack(windows.lengths, max_length)
        shards = mesh.size
        rows = min(ranking.rows, -(-max(packing.n_rows, 1) // shards) * shards)
        rows = -(-rows // shards) * shards
        self._batches = PackedBatches(
            dataset.items.take, windows, packing, rows=rows, shards=shards, last_only=True, seed=None
        )
        self._most_seen = int(targets.positions.max(initial=1)) if ranking.mask_seen else 0
        self.encode_catalog = encode_catalog(graph)
        rank = functools.partial(rank_targets, n_sampled=ranking.n_sampled, seed=ranking.seed)
        self._mesh, self._local = mesh, local_shards(mesh, shards)
        assert counts is not None or not ranking.by_popularity, "popularity has no counts"
        popular = catalog_proposal(counts + 1.0) if ranking.by_popularity and counts is not None else None
        self._popular = replicate(mesh, popular)

        def rank_batch(params, catalog, popular, batch, ordinals, seen, followers):
            model, items = nnx.merge(graph, params), batch.items[batch.inputs]
            hidden = model.encode_sequences(catalog[batch.items][batch.inputs], batch.segments, batch.positions)
            outputs = hidden.reshape(-1, hidden.shape[-1])[batch.slots]
            raised = raised_by(model, *items_read(items, batch.positions, batch.slots), followers)
            return rank(outputs, catalog, batch.items[batch.targets], ordinals, seen, raised, popular)

        def rank_constant(scores, popular, batch, ordinals, seen, followers):
            del followers
            ones = jnp.ones((batch.slots.shape[0], 1), scores.dtype)
            return rank(ones, scores[:, None], batch.items[batch.targets], ordinals, seen, None, popular)

        def rank_by_model(params, *inputs):
            in_specs = (specs(mesh, params), REPLICATED, REPLICATED, SPLIT, SPLIT, SPLIT, SPLIT)
            return jax.shard_map(rank_batch, mesh=mesh, in_specs=in_specs, out_specs=SPLIT, check_vma=False)(
                params, *inputs
            )

        self._rank_batch = jax.jit(rank_by_model)
        in_specs = (REPLICATED, REPLICATED, SPLIT, SPLIT, SPLIT, SPLIT)
        self._rank_constant = jax.jit(
            jax.shard_map(rank_constant, mesh=mesh, in_specs=in_specs, out_specs=SPLIT, check_vma=False)
        )

    def _followers(self, windows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray] | None:
        """What followed the histories of each shard's windows: [slots of all shards, most] each."""
        if self._transitions is None:
            return None
        laid, slots, of_shards = self._batches.windows, self._batches.max_windows_per_shard, []
        for of_shard in windows:
            lengths = np.zeros(slots, np.int64)
            lengths[: len(of_shard)] = laid.lengths[of_shard]
            places = ranges(laid.starts[of_shard], laid.lengths[of_shard])
            of_shards.append(self._transitions.followers(self._dataset.items.take(places), lengths))
        items, scores = (np.concatenate(part) for part in zip(*of_shards, strict=True))
        return items, scores

    def _input(self, step: int) -> tuple[list[np.ndarray], tuple]:
        """This host's part of a batch on its devices with its targets' ordinals, where they are masked the items seen,
        and what followed its histories."""
        windows = self._batches.windows_of(step)[self._local.start : self._local.stop]
        slots = self._batches.max_windows_per_shard
        ordinals = np.zeros((len(windows), slots), np.int32)
        seen = np.zeros((len(windows), slots, self._most_seen), np.int32) if self._most_seen else None
        for shard, of_shard in enumerate(windows):
            ordinals[shard, : len(of_shard)] = of_shard
            if seen is None:
                continue
            for slot, window in enumerate(of_shard):
                user = self._targets.users[window]
                start = self._dataset.offsets[user]
                items = np.unique(self._dataset.items.take(np.arange(start, start + self._targets.positions[window])))
                seen[shard, slot, : len(items)] = items
        arrays = (
            self._batches.batch(step, self._local),
            ordinals.reshape(-1),
            None if seen is None else seen.reshape(-1, self._most_seen),
            self._followers(windows),
        )
        return windows, split_rows(self._mesh, arrays)

    def _collect(self, rank: Callable[..., jax.Array]) -> np.ndarray:
        ranks = np.full(len(self._targets.users), -1, np.int64)
        if not len(ranks):
            return ranks
        for windows, arrays in prefetch(self._input, range(self._batches.steps_per_epoch)):
            by_shard = local_rows(rank(*arrays)).reshape(len(windows), -1)
            for of_shard, values in zip(windows, by_shard, strict=True):
                ranks[of_shard] = values[: len(of_shard)]
        ranks = greatest_of_hosts(ranks)
        assert (ranks >= 0).all(), "a target was left out of the ranking"
        return ranks

    def ranks(self, params: nnx.State, features: Mapping[str, jax.Array | np.ndarray]) -> np.ndarray:
        """Ranks of all targets by the model: [n] int64, in the order of the targets."""
        catalog = self.encode_catalog(params, features)
        return self._collect(functools.partial(self._rank_batch, params, catalog, self._popular))

    def ranks_by_item(self, scores: np.ndarray) -> np.ndarray:
        """Ranks of all targets by one score an item, the same for every user: [n_items + 1] -> [n] int64."""
        constant = replicate(self._mesh, scores.astype(np.float32))
        return self._collect(functools.partial(self._rank_constant, constant, self._popular))
