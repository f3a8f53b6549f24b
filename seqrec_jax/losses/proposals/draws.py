"""Random numbers of a step's sets of negatives, each set from a key of its own, whichever device makes it."""

import jax


def split_keys(keys: jax.Array, n: int) -> list[jax.Array]:
    """n independent keys for each set: n arrays of [sets]."""
    return list(jax.vmap(lambda key: jax.random.split(key, n), out_axes=1)(keys))


def uniforms(keys: jax.Array, n: int) -> jax.Array:
    """In [0, 1): [sets, n] float32."""
    return jax.vmap(lambda key: jax.random.uniform(key, (n,)))(keys)


def integers(keys: jax.Array, n: int, low: jax.Array | int, high: jax.Array | int) -> jax.Array:
    """In [low, high), bounds being the same for all sets or [sets]: [sets, n] int32."""

    def of_set(key: jax.Array, low: jax.Array | int, high: jax.Array | int) -> jax.Array:
        return jax.random.randint(key, (n,), low, high)

    axes = (0, None if isinstance(low, int) else 0, None if isinstance(high, int) else 0)
    return jax.vmap(of_set, in_axes=axes)(keys, low, high)
