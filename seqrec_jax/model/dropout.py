"""Dropout on 16 random bits an element."""

import math

import jax
import jax.numpy as jnp


def _bits(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """16 uniform bits an element, two elements from each 32-bit word: uint16 of the given shape.

    The barrier keeps the compiler from drawing each word again for each element that is made of it.
    """
    size = math.prod(shape)
    words = jax.lax.optimization_barrier(jax.random.bits(key, ((size + 1) // 2,), jnp.uint32))
    return jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(-1)[:size].reshape(shape)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes each element with probability `rate` and scales the others up by the inverse.

    Flax's nnx.Dropout draws 32 bits an element and turns them into floats, which takes several times as long on a CPU.
    The rate is kept to 1/65536.

    Args:
        x: any shape.
        rate: in [0, 1).
        key: a JAX key; None switches dropout off.
    """
    if key is None or rate == 0:
        return x
    threshold = round(rate * 65536)
    keep = _bits(key, x.shape) >= threshold
    return jnp.where(keep, x * (65536 / (65536 - threshold)), 0)
