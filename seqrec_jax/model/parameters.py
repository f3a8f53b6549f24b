"""Parameters as one flat dict of arrays by name, and the kinds that they are of."""

import hashlib
from collections.abc import Collection, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from seqrec_jax.errors import InputError

LARGE = 1 << 20  # elements of an array from which on a copy to the host takes longer than compiling for its shape

Params = dict[str, jax.Array]
"""Arrays under names such as `blocks/0/attention/query/kernel`; the one form that parameters have outside of a jitted
function, see Graph.merge."""


class Table(nnx.Param):
    """A table with a row for each token or item: kept in float32, its columns may be divided over devices."""


class Norm(nnx.Param):
    """Scale or bias of a norm: kept in float32."""


class Knob(nnx.Param):
    """A number, or a few, by which parts of a score are weighed: kept in float32."""


def sha256(params: Params) -> str:
    """SHA-256 over names, shapes and bytes of all parameters: equal for bit-identical models alone."""
    digest = hashlib.sha256()
    for name in sorted(params):
        host = np.asarray(params[name])
        digest.update(f"{name} {host.dtype} {host.shape}\n".encode())
        digest.update(np.ascontiguousarray(host).tobytes())
    return digest.hexdigest()


@jax.jit
def _all_finite(array: jax.Array) -> jax.Array:
    return jnp.isfinite(array).all()


def check_finite(params: Mapping[str, jax.Array | np.ndarray]) -> None:
    """Refuses, by an InputError, parameters that hold what is infinite or no number."""
    large = {name: _all_finite(array) for name, array in params.items() if array.size >= LARGE}
    finite = {name for name, flag in jax.device_get(large).items() if flag}
    for name, array in params.items():
        if name not in finite and (n := int((~np.isfinite(np.asarray(array))).sum())):
            raise InputError(
                f"parameter {name} holds {n:,} values of {array.size:,} that are not finite: its training diverged, or "
                "it was damaged; train again with a lower learning rate, or take another checkpoint"
            )


def count(params: Params, exclude: Collection[str] = ()) -> int:
    """Number of parameters, without those of the names to exclude, such as Graph.tables."""
    return sum(array.size for name, array in params.items() if name not in exclude)
