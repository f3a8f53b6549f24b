"""Ranks of targets by their scores, on a device: how many items each is beaten by.

A score that is infinite or no number beats nothing: comparisons with it say nothing of how good an item is.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from seqrec_jax.inference.encoding import ITEMS_PER_BLOCK, LONGEST
from seqrec_jax.losses.proposals.by_count import CatalogProposal
from seqrec_jax.model.terms.interface import ScoreAdjustments, is_among

TARGETS_PER_BLOCK = 64
TARGETS_PER_SAMPLED_BLOCK = 16
NUMBERS_PER_BLOCK = 1 << 24  # of the embeddings that are gathered for a block of targets, at most
TIE = 1e-6  # scores closer than this, relative to 1 + |target's score|, are ties: float32 sums differ by as much
LAST = np.iinfo(np.int32).max  # rank of a target whose score is not finite
ROUNDS = 4  # of the permutation that a sample is taken from


class _Scored(NamedTuple):
    """Targets with all that decides their ranks, whose first axis is theirs."""

    outputs: jax.Array
    targets: jax.Array
    bar: jax.Array
    adjustments: ScoreAdjustments | None


def _beaten_by_catalog(of: _Scored, catalog: jax.Array) -> jax.Array:
    """How many items other than the target reach the bar by their dot product: [targets] int32."""
    n_rows = catalog.shape[0]
    blocks = jnp.pad(catalog, ((0, -n_rows % ITEMS_PER_BLOCK), (0, 0))).reshape(-1, ITEMS_PER_BLOCK, catalog.shape[1])

    def count(beaten, block):
        first, embeddings = block
        items = first + jnp.arange(ITEMS_PER_BLOCK)
        above = of.outputs @ embeddings.T >= of.bar[:, None]
        competes = (items >= 1) & (items < n_rows) & (items != of.targets[:, None])
        return beaten + (above & competes).sum(1, dtype=jnp.int32), None

    return jax.lax.scan(count, jnp.zeros_like(of.targets), (jnp.arange(len(blocks)) * ITEMS_PER_BLOCK, blocks))[0]


def _beaten_by_adjusted(of: _Scored, catalog: jax.Array) -> jax.Array:
    """By how many more items a target is beaten with the adjustments than without: [targets] int32."""

    def count(one: _Scored) -> jax.Array:
        assert one.adjustments is not None
        items, amounts = one.adjustments
        scores = catalog[items] @ one.outputs
        gained = (scores + amounts >= one.bar).astype(jnp.int32) - (scores >= one.bar)
        return jnp.where((items != one.targets) & (amounts != 0), gained, 0).sum(dtype=jnp.int32)

    return jax.lax.map(count, of, batch_size=min(TARGETS_PER_BLOCK, len(of.targets)))


def _beaten_by_seen(of: _Scored, catalog: jax.Array, seen: jax.Array) -> jax.Array:
    """How many of the items seen reach the bar: [targets] int32."""
    at_a_time = max(1, min(TARGETS_PER_BLOCK, len(of.targets), NUMBERS_PER_BLOCK // (seen.shape[1] * catalog.shape[1])))

    def count(part: tuple[_Scored, jax.Array]) -> jax.Array:
        one, items = part
        above = catalog[items] @ one.outputs >= one.bar
        return (above & (items > 0) & (items != one.targets)).sum(dtype=jnp.int32)

    return jax.lax.map(count, (of, seen), batch_size=at_a_time)


def draw_distinct(key: jax.Array, n: int, total: int) -> jax.Array:
    """n distinct numbers of 0 .. total - 1, every set of them about alike: [n] int32.

    The first n places of a permutation that the key decides: a Feistel network, walked on from where it leaves the
    range (Black and Rogaway, CT-RSA 2002), which needs neither a table nor a sort.
    """
    half = max(1, -(-(total - 1).bit_length() // 2))
    mask, keys = jnp.uint32((1 << half) - 1), jax.random.bits(key, (ROUNDS,), jnp.uint32)

    def permute(x: jax.Array) -> jax.Array:
        left, right = x >> half, x & mask
        for of_round in range(ROUNDS):
            mixed = (right + keys[of_round]) * jnp.uint32(0x9E3779B1)
            mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(0x85EBCA77)
            left, right = right, left ^ ((mixed ^ (mixed >> 13)) & mask)
        return left << half | right

    def walk(x: jax.Array) -> jax.Array:
        return jnp.where(x >= total, permute(x), x)

    start = permute(jnp.arange(n, dtype=jnp.uint32))
    return jax.lax.while_loop(lambda x: (x >= total).any(), walk, start).astype(jnp.int32)


def _beaten_by_sample(
    of: _Scored, catalog: jax.Array, keys: jax.Array, n: int, popular: CatalogProposal | None, seen: jax.Array
) -> jax.Array:
    """How many of a sample of n other items reach the bar, each once: [targets] int32; those seen never do."""
    if of.adjustments is not None:
        items = jnp.where(of.adjustments.amounts == 0, 0, of.adjustments.items)  # so that each item is there once
        of = of._replace(adjustments=ScoreAdjustments(*jax.lax.sort((items, of.adjustments.amounts), num_keys=1)))

    def count(part: tuple[_Scored, jax.Array, jax.Array]) -> jax.Array:
        one, key, seen = part
        if popular is None:
            draws = 1 + draw_distinct(key, n, len(catalog) - 2)
            draws = draws + (draws >= one.targets)
            new = ~is_among(seen[None], draws[None])[0]
        else:
            draws = jnp.sort(popular.draw_one(key, n))
            new = (draws != jnp.roll(draws, 1)).at[0].set(True) & ~is_among(seen[None], draws[None])[0]
        scores = catalog[draws] @ one.outputs
        if one.adjustments is not None:
            items, amounts = one.adjustments
            at = jnp.searchsorted(items, draws).clip(max=len(items) - 1)
            scores += jnp.where(items[at] == draws, amounts[at], 0)
        return ((scores >= one.bar) & new & (draws != one.targets)).sum(dtype=jnp.int32)

    return jax.lax.map(count, (of, keys, seen), batch_size=min(TARGETS_PER_SAMPLED_BLOCK, len(of.targets)))


def rank_targets(
    outputs: jax.Array, catalog: jax.Array, targets: jax.Array, ordinals: jax.Array, seen: jax.Array | None = None,
    adjustments: ScoreAdjustments | None = None, popular: CatalogProposal | None = None, *,
    n_sampled: int | None = None, seed: int = 0,
) -> jax.Array:  # fmt: skip
    """Ranks of targets by score, ties broken against them: [targets] int32, 0 for the top, LAST without a finite score.

    Args:
        outputs: [targets, size]; `catalog` is [n_items + 1, size], finite, and its row 0 is padding.
        targets: [targets] int32, catalog items; `ordinals`, as many, seed each target's sample.
        seen: [targets, most] int32 distinct items to leave out, ascending, 0 for padding; or None.
        adjustments: Items whose scores are not their dot products alone; or None.
        popular: What a sample is drawn from, with replacement, an item that is drawn again counting once; None draws
            distinct items, every one alike.
        n_sampled: Size of each target's sample, which `seed` decides; None ranks among the whole catalog.
    """
    score = (outputs * catalog[targets]).sum(-1)
    finite = jnp.linalg.norm(outputs, axis=-1) < LONGEST
    if adjustments is not None:
        score += adjustments.of(targets)
        finite &= jnp.isfinite(adjustments.amounts).all(-1)
    finite &= jnp.isfinite(score)
    of = _Scored(outputs, targets, score - TIE * (1 + jnp.abs(score)), adjustments)
    if n_sampled is not None:
        keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), i))(ordinals)
        none = jnp.zeros((len(targets), 1), jnp.int32)
        beaten = _beaten_by_sample(of, catalog, keys, n_sampled, popular, none if seen is None else seen)
        return jnp.where(finite, beaten, LAST)
    beaten = _beaten_by_catalog(of, catalog)
    if adjustments is not None:
        left = adjustments if seen is None else adjustments.excluding(seen, targets)
        beaten += _beaten_by_adjusted(of._replace(adjustments=left), catalog)
    if seen is not None:
        beaten -= _beaten_by_seen(of._replace(adjustments=None), catalog, seen)
    return jnp.where(finite, beaten, LAST)
