"""Ranks of targets by their scores, on a device: how many items each is beaten by."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from seqrec_jax.inference.encoding import ITEMS_PER_BLOCK
from seqrec_jax.losses.proposals.by_count import CatalogProposal
from seqrec_jax.model.terms.interface import ScoreAdjustments

TARGETS_PER_BLOCK = 64
TARGETS_PER_SAMPLED_BLOCK = 16
TIE = 1e-6  # scores closer than this, relative to 1 + |target's score|, are ties: float32 sums differ by as much


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

    def count(part: tuple[_Scored, jax.Array]) -> jax.Array:
        one, items = part
        above = catalog[items] @ one.outputs >= one.bar
        return (above & (items > 0) & (items != one.targets)).sum(dtype=jnp.int32)

    return jax.lax.map(count, (of, seen), batch_size=min(TARGETS_PER_BLOCK, len(of.targets)))


def _beaten_by_sample(
    of: _Scored, catalog: jax.Array, keys: jax.Array, n: int, popular: CatalogProposal | None
) -> jax.Array:
    """How many of n draws of other items reach the bar: [targets] int32; a draw of the target never does."""
    if of.adjustments is not None:
        items = jnp.where(of.adjustments.amounts == 0, 0, of.adjustments.items)  # so that each item is there once
        of = of._replace(adjustments=ScoreAdjustments(*jax.lax.sort((items, of.adjustments.amounts), num_keys=1)))

    def count(part: tuple[_Scored, jax.Array]) -> jax.Array:
        one, key = part
        if popular is None:
            draws = jax.random.randint(key, (n,), 1, len(catalog) - 1)
            draws = draws + (draws >= one.targets)
        else:
            draws = popular.draw_one(key, n)
        scores = catalog[draws] @ one.outputs
        if one.adjustments is not None:
            items, amounts = one.adjustments
            at = jnp.searchsorted(items, draws).clip(max=len(items) - 1)
            scores += jnp.where(items[at] == draws, amounts[at], 0)
        return ((scores >= one.bar) & (draws != one.targets)).sum(dtype=jnp.int32)

    return jax.lax.map(count, (of, keys), batch_size=min(TARGETS_PER_SAMPLED_BLOCK, len(of.targets)))


def rank_targets(
    outputs: jax.Array, catalog: jax.Array, targets: jax.Array, ordinals: jax.Array, seen: jax.Array | None = None,
    adjustments: ScoreAdjustments | None = None, popular: CatalogProposal | None = None, *,
    n_sampled: int | None = None, seed: int = 0,
) -> jax.Array:  # fmt: skip
    """Ranks of targets by score, ties broken against them: [targets] int32, 0 for the top.

    Args:
        outputs: [targets, size]; `catalog` is [n_items + 1, size], and its row 0 is padding.
        targets: [targets] int32, catalog items; `ordinals`, as many, seed each target's sample.
        seen: [targets, most] int32 distinct items to leave out, 0 for padding; or None.
        adjustments: Items whose scores are not their dot products alone; or None.
        popular: What a sample is drawn from; None draws every item alike.
        n_sampled: Size of each target's sample, which `seed` decides; None ranks among the whole catalog.
    """
    score = (outputs * catalog[targets]).sum(-1)
    if adjustments is not None:
        score += adjustments.of(targets)
    of = _Scored(outputs, targets, score - TIE * (1 + jnp.abs(score)), adjustments)
    if n_sampled is not None:
        keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), i))(ordinals)
        return _beaten_by_sample(of, catalog, keys, n_sampled, popular)
    beaten = _beaten_by_catalog(of, catalog)
    if adjustments is not None:
        left = adjustments if seen is None else adjustments.excluding(seen, targets)
        beaten += _beaten_by_adjusted(of._replace(adjustments=left), catalog)
    return beaten if seen is None else beaten - _beaten_by_seen(of._replace(adjustments=None), catalog, seen)
