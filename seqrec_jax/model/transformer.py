"""Post-LN transformer blocks as in SASRec's RecBole implementation (arXiv 1808.09781), on packed rows."""

from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx

from seqrec_jax.model.dropout import Noise, drop_in_rows, split_noise
from seqrec_jax.model.initializers import layer_norm, linear

MASKED = -10000.0
ATTENTIONS = ("xla", "cudnn")


def attention_bias(segments: jax.Array) -> jax.Array:
    """0 where a position may look, -10000 elsewhere: at itself and before, within its own segment.

    Args:
        segments: [rows, length] int32.

    Returns:
        [rows, 1, length, length] float32, queries before keys.
    """
    length = segments.shape[1]
    causal = jnp.tril(jnp.ones((length, length), bool))
    visible = causal & (segments[:, :, None] == segments[:, None, :])
    return jnp.where(visible, 0.0, MASKED)[:, None]


class Attention(nnx.Module):
    """Multi-head self-attention with residual and LayerNorm after it."""

    def __init__(
        self,
        hidden_size: int,
        n_heads: int,
        hidden_dropout: float,
        attention_dropout: float,
        implementation: str = "xla",
        *,
        rngs: nnx.Rngs,
    ):
        self.n_heads, self.hidden_dropout, self.attention_dropout = n_heads, hidden_dropout, attention_dropout
        self.implementation = implementation
        self.query = linear(hidden_size, hidden_size, rngs)
        self.key = linear(hidden_size, hidden_size, rngs)
        self.value = linear(hidden_size, hidden_size, rngs)
        self.output = linear(hidden_size, hidden_size, rngs)
        self.norm = layer_norm(hidden_size, rngs)

    def __call__(self, x: jax.Array, bias: jax.Array, noise: Noise | None) -> jax.Array:
        """[rows, length, hidden], [rows, 1, length, length] -> [rows, length, hidden]."""
        of_weights, of_output = split_noise(noise, 2)
        heads = (*x.shape[:-1], self.n_heads, x.shape[-1] // self.n_heads)
        q, k, v = (map_(x).reshape(heads) for map_ in (self.query, self.key, self.value))
        if of_weights is None or self.attention_dropout == 0:
            mixed = jax.nn.dot_product_attention(
                q, k, v, bias=bias.astype(q.dtype), implementation=cast(Any, self.implementation)
            )
        else:  # JAX's own function drops no weights.
            logits = jnp.einsum("rqhd,rkhd->rhqk", q, k, preferred_element_type=bias.dtype)
            weights = drop_in_rows(jax.nn.softmax(logits / heads[-1] ** 0.5 + bias), self.attention_dropout, of_weights)
            mixed = jnp.einsum("rhqk,rkhd->rqhd", weights.astype(v.dtype), v)
        mixed = mixed.reshape(x.shape)
        return self.norm(x + drop_in_rows(self.output(mixed), self.hidden_dropout, of_output))


class FeedForward(nnx.Module):
    """Two linear maps with exact GELU between, residual and LayerNorm after."""

    def __init__(self, hidden_size: int, inner_size: int, hidden_dropout: float, *, rngs: nnx.Rngs):
        self.hidden_dropout = hidden_dropout
        self.inner = linear(hidden_size, inner_size, rngs)
        self.output = linear(inner_size, hidden_size, rngs)
        self.norm = layer_norm(hidden_size, rngs)

    def __call__(self, x: jax.Array, noise: Noise | None) -> jax.Array:
        """[rows, length, hidden] -> [rows, length, hidden]."""
        inner = jax.nn.gelu(self.inner(x), approximate=False)
        return self.norm(x + drop_in_rows(self.output(inner), self.hidden_dropout, noise))


class Block(nnx.Module):
    """Attention, then feed-forward."""

    def __init__(
        self,
        hidden_size: int,
        inner_size: int,
        n_heads: int,
        hidden_dropout: float,
        attention_dropout: float,
        attention: str = "xla",
        *,
        rngs: nnx.Rngs,
    ):
        self.attention = Attention(hidden_size, n_heads, hidden_dropout, attention_dropout, attention, rngs=rngs)
        self.feed_forward = FeedForward(hidden_size, inner_size, hidden_dropout, rngs=rngs)

    def __call__(self, x: jax.Array, bias: jax.Array, noise: Noise | None) -> jax.Array:
        """[rows, length, hidden], [rows, 1, length, length] -> [rows, length, hidden]."""
        of_attention, of_feed_forward = split_noise(noise, 2)
        return self.feed_forward(self.attention(x, bias, of_attention), of_feed_forward)
