"""Parameters as SRT initialises them: N(0, 0.02) for matrices and tables, 0 for biases, 1 for scales."""

import jax
import jax.numpy as jnp
from flax import nnx

from seqrec_jax.model.parameters import Norm, Table

STDDEV = 0.02
LAYER_NORM_EPSILON = 1e-12


def normal(rows: int, size: int, rngs: nnx.Rngs) -> jax.Array:
    """Numbers for a table of rows x size."""
    return STDDEV * jax.random.normal(rngs.params(), (rows, size))


def table(rows: int, size: int, rngs: nnx.Rngs) -> Table:
    """A table of rows x size."""
    return Table(normal(rows, size, rngs))


def linear(size_in: int, size_out: int, rngs: nnx.Rngs) -> nnx.Linear:
    """A linear map with bias."""
    return nnx.Linear(size_in, size_out, kernel_init=nnx.initializers.normal(STDDEV), rngs=rngs)


def layer_norm(size: int, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm over the last axis, with scale and bias."""
    norm = nnx.LayerNorm(size, epsilon=LAYER_NORM_EPSILON, use_fast_variance=False, rngs=rngs)
    norm.scale, norm.bias = Norm(jnp.ones(size)), Norm(jnp.zeros(size))
    return norm
