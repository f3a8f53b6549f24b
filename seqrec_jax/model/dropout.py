"""Dropout on a counter-based hash."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp


def _mix(x: jax.Array) -> jax.Array:
    """A bijection of uint32 in which every input bit moves every output bit (lowbias32, Wellons 2018)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def _bits(key: jax.Array, numbers: jax.Array) -> jax.Array:
    """32 uniform bits for each of uint32 numbers, hashed twice with two words of the key.

    A mask needs no cryptographic generator: this takes an eighth of threefry's time on a CPU, has no loop, and is fused
    into what it masks.
    """
    words = jax.random.bits(key, (2,), jnp.uint32)
    return _mix(_mix(numbers ^ words[0]) + words[1])


class Noise(NamedTuple):
    """Where the masks of a batch's rows come from, so that they do not depend on the device that holds a row.

    Attributes:
        key: a JAX key, the same on every device.
        rows: [rows] uint32, each row's number within the whole batch.
    """

    key: jax.Array
    rows: jax.Array

    def split(self, n: int) -> "list[Noise]":
        """Independent noise for n places of the model."""
        return [Noise(key, self.rows) for key in jax.random.split(self.key, n)]


def split_noise(noise: Noise | None, n: int) -> list[Noise] | list[None]:
    """Independent noise for n places of the model; none stays none."""
    return [None] * n if noise is None else noise.split(n)


def drop_in_rows(x: jax.Array, rate: float, noise: Noise | None) -> jax.Array:
    """Dropout on [rows, ...]; None switches it off."""
    if noise is None or rate == 0:
        return x
    of_row = math.prod(x.shape[1:])
    numbers = noise.rows[:, None] * jnp.uint32(of_row) + jnp.arange(of_row, dtype=jnp.uint32)
    return dropout(x, rate, noise.key, numbers.reshape(x.shape))


def dropout(x: jax.Array, rate: float, key: jax.Array | None, numbers: jax.Array | None = None) -> jax.Array:
    """Zeroes each element with probability `rate` and scales the others up by the inverse.

    Args:
        x: any shape of fewer than 2**32 elements.
        rate: in [0, 1).
        key: a JAX key; None switches dropout off.
        numbers: uint32, broadcast to x: elements of one number share their fate. None numbers them all.
    """
    if key is None or rate == 0:
        return x
    if numbers is None:
        numbers = jax.lax.iota(jnp.uint32, math.prod(x.shape)).reshape(x.shape)
    return jnp.where(kept(rate, key, numbers), x / (1 - rate), 0).astype(x.dtype)


def kept(rate: float, key: jax.Array, numbers: jax.Array) -> jax.Array:
    """Which of uint32 numbers are kept, each with probability 1 - rate: bool."""
    return _bits(key, numbers) >= jnp.uint32(min(round(rate * 2**32), 2**32 - 1))
