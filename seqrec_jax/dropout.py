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


class DropoutKeys(NamedTuple):
    """Where the masks of a batch's rows come from, so that they do not depend on the device that holds a row."""

    key: jax.Array  # the same on every device
    rows: jax.Array  # [rows] uint32, each row's number within the whole batch

    def split(self, n: int) -> "list[DropoutKeys]":
        """Independent keys for n places of the model."""
        return [DropoutKeys(key, self.rows) for key in jax.random.split(self.key, n)]


def split_dropout(keys: DropoutKeys | None, n: int) -> list[DropoutKeys] | list[None]:
    """Independent keys for n places of the model; None stays None."""
    return [None] * n if keys is None else keys.split(n)


def drop_in_rows(x: jax.Array, rate: float, keys: DropoutKeys | None) -> jax.Array:
    """Dropout on [rows, ...]; None switches it off."""
    if keys is None or rate == 0:
        return x
    of_row = math.prod(x.shape[1:])
    numbers = keys.rows[:, None] * jnp.uint32(of_row) + jnp.arange(of_row, dtype=jnp.uint32)
    return dropout(x, rate, keys.key, numbers.reshape(x.shape))


def dropout(x: jax.Array, rate: float, key: jax.Array | None, numbers: jax.Array | None = None) -> jax.Array:
    """Zeroes each of fewer than 2**32 elements with probability `rate` and scales the others up by the inverse.

    Elements of one of the `numbers`, uint32 and broadcast to x, share their fate; None numbers them all. Without a key
    nothing is dropped.
    """
    if key is None or rate == 0:
        return x
    if numbers is None:
        numbers = jax.lax.iota(jnp.uint32, math.prod(x.shape)).reshape(x.shape)
    return jnp.where(kept(rate, key, numbers), x / (1 - rate), 0).astype(x.dtype)


def kept(rate: float, key: jax.Array, numbers: jax.Array) -> jax.Array:
    """Which of uint32 numbers are kept, each with probability 1 - rate: bool."""
    return _bits(key, numbers) >= jnp.uint32(min(round(rate * 2**32), 2**32 - 1))
