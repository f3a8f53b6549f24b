"""Parameters under readable names, and their digest."""

import hashlib
from collections.abc import Mapping

import jax
import numpy as np
from flax import nnx

from seqrec_jax.errors import InputError


def named(params: nnx.State) -> dict[str, jax.Array]:
    """Arrays under names such as `blocks/0/attention/query/kernel`, in a fixed order."""
    flat = {"/".join(map(str, path)): variable.get_value() for path, variable in nnx.to_flat_state(params)}
    return dict(sorted(flat.items()))


def from_named(like: nnx.State, arrays: Mapping[str, jax.Array]) -> nnx.State:
    """A parameter tree of the structure of `like` that holds the named arrays.

    Raises:
        InputError: a name is missing or unknown, or a shape differs.
    """
    shapes = {name: tuple(array.shape) for name, array in named(like).items()}
    for name in sorted(shapes.keys() ^ arrays.keys()):
        raise InputError(f"parameter {name} is {'missing' if name in shapes else 'not one of this model'}")
    for name, shape in shapes.items():
        if tuple(arrays[name].shape) != shape:
            raise InputError(f"parameter {name} has shape {tuple(arrays[name].shape)}, but this model's is {shape}")
    return filled(like, arrays)


def filled(like: nnx.State, arrays: Mapping[str, jax.Array]) -> nnx.State:
    """A parameter tree of the structure of `like`, whatever its shapes, that holds the named arrays."""
    flat = nnx.to_flat_state(like)
    return nnx.from_flat_state([(path, variable.replace(arrays["/".join(map(str, path))])) for path, variable in flat])


def sha256(params: nnx.State) -> str:
    """SHA-256 over names, shapes and bytes of all parameters: equal for bit-identical models alone."""
    digest = hashlib.sha256()
    for name, array in named(params).items():
        host = np.asarray(array)
        digest.update(f"{name} {host.dtype} {host.shape}\n".encode())
        digest.update(np.ascontiguousarray(host).tobytes())
    return digest.hexdigest()


def count(params: nnx.State, with_tables: bool = True) -> int:
    """Number of parameters; without the token and id tables where with_tables is False."""
    return sum(
        array.size
        for name, array in named(params).items()
        if with_tables or not (name.startswith("item_encoder/") and "tables/" in name)
    )
