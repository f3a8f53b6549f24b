"""Draws: a step's random numbers, a key for each set of negatives, and alias tables for any distribution."""

import jax
import jax.numpy as jnp
import numpy as np


def split_keys(keys: jax.Array, n: int) -> list[jax.Array]:
    """n independent keys for each set: n arrays of [sets]."""
    return list(jax.vmap(lambda key: jax.random.split(key, n), out_axes=1)(keys))


def uniforms(keys: jax.Array, n: int) -> jax.Array:
    """Numbers in [0, 1): [sets, n] float32."""
    return jax.vmap(lambda key: jax.random.uniform(key, (n,)))(keys)


def integers(keys: jax.Array, n: int, low: jax.Array | int, high: jax.Array | int) -> jax.Array:
    """Numbers in [low, high), bounds being the same for all sets or [sets]: [sets, n] int32."""
    low, high = jnp.broadcast_to(low, keys.shape), jnp.broadcast_to(high, keys.shape)
    return jax.vmap(lambda key, low, high: jax.random.randint(key, (n,), low, high))(keys, low, high)


def alias_table(probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An alias table, made by sorting and prefix sums: half a second for 3 million items.

    Cell i is drawn uniformly; it yields i with probability threshold[i] and alias[i] otherwise. Light cells (below the
    mean) are filled up by heavy ones in order; a heavy cell that gives away too much is filled up by the next. Walker,
    1974; the prefix sums as in Huebschle-Schneider and Sanders, ESA 2019.
    Takes probabilities [n] float64 that sum to 1; returns threshold [n] float64 and alias [n] int64.
    """
    n = len(probabilities)
    scaled = probabilities * n
    threshold, alias = np.ones(n), np.arange(n)
    light, heavy = np.flatnonzero(scaled < 1), np.flatnonzero(scaled >= 1)
    if not len(light) or not len(heavy):
        return threshold, alias
    missing, spare = np.cumsum(1 - scaled[light]), np.cumsum(scaled[heavy] - 1)
    before = np.concatenate([[0.0], missing[:-1]])
    giver = np.minimum(np.searchsorted(spare, before, side="right"), len(heavy) - 1)
    threshold[light], alias[light] = scaled[light], heavy[giver]
    given = np.concatenate([[0.0], missing])[np.searchsorted(before, spare)]
    threshold[heavy[:-1]] = np.clip(1 + np.minimum(spare - given, 0), 0, 1)[:-1]
    alias[heavy[:-1]] = heavy[1:]
    return threshold, alias
