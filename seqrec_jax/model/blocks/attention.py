"""Causal self-attention on packed rows, which all blocks share."""

from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx

from seqrec_jax.dropout import DropoutKeys, drop_in_rows
from seqrec_jax.model.initializers import linear

MASKED = -10000.0
ATTENTIONS = ("xla", "cudnn")


def attention_bias(segments: jax.Array) -> jax.Array:
    """0 where a position may look, -10000 elsewhere: at itself and before, within its own segment.

    Segments [rows, length] int32 -> [rows, 1, length, length] float32, queries before keys.
    """
    length = segments.shape[1]
    causal = jnp.tril(jnp.ones((length, length), bool))
    visible = causal & (segments[:, :, None] == segments[:, None, :])
    return jnp.where(visible, 0.0, MASKED)[:, None]


class SelfAttention(nnx.Module):
    """Multi-head self-attention with maps of queries, keys, values and output; dropout on the weights."""

    def __init__(self, architecture: Any, *, rngs: nnx.Rngs):
        a = architecture
        self.n_heads, self.attention_dropout, self.implementation = a.n_heads, a.attention_dropout, a.attention
        self.query = linear(a.hidden_size, a.hidden_size, rngs)
        self.key = linear(a.hidden_size, a.hidden_size, rngs)
        self.value = linear(a.hidden_size, a.hidden_size, rngs)
        self.output = linear(a.hidden_size, a.hidden_size, rngs)

    def attend(self, x: jax.Array, bias: jax.Array, dropout: DropoutKeys | None) -> jax.Array:
        """[rows, length, hidden], [rows, 1, length, length] -> [rows, length, hidden]."""
        heads = (*x.shape[:-1], self.n_heads, x.shape[-1] // self.n_heads)
        q, k, v = (map_(x).reshape(heads) for map_ in (self.query, self.key, self.value))
        if dropout is None or self.attention_dropout == 0:
            mixed = jax.nn.dot_product_attention(
                q, k, v, bias=bias.astype(q.dtype), implementation=cast(Any, self.implementation)
            )
        else:  # JAX's own function drops no weights.
            logits = jnp.einsum("rqhd,rkhd->rhqk", q, k, preferred_element_type=bias.dtype)
            weights = drop_in_rows(jax.nn.softmax(logits / heads[-1] ** 0.5 + bias), self.attention_dropout, dropout)
            mixed = jnp.einsum("rhqk,rkhd->rqhd", weights.astype(v.dtype), v)
        return self.output(mixed.reshape(x.shape))
