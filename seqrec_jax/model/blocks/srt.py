"""SRT's block: post-LN attention and feed-forward, as in RecBole's SASRec (Kang and McAuley, arXiv 1808.09781)."""

from typing import Any

import jax
from flax import nnx

from seqrec_jax.dropout import DropoutKeys, drop_in_rows, split_dropout
from seqrec_jax.model.blocks.attention import SelfAttention
from seqrec_jax.model.initializers import layer_norm, linear


class Attention(SelfAttention):
    """Self-attention with residual and LayerNorm after it."""

    def __init__(self, architecture: Any, *, rngs: nnx.Rngs):
        super().__init__(architecture, rngs=rngs)
        self.hidden_dropout = architecture.hidden_dropout
        self.norm = layer_norm(architecture.hidden_size, rngs)

    def __call__(self, x: jax.Array, bias: jax.Array, dropout: DropoutKeys | None) -> jax.Array:
        """[rows, length, hidden], [rows, 1, length, length] -> [rows, length, hidden]."""
        of_weights, of_output = split_dropout(dropout, 2)
        return self.norm(x + drop_in_rows(self.attend(x, bias, of_weights), self.hidden_dropout, of_output))


class FeedForward(nnx.Module):
    """Two linear maps with exact GELU between, residual and LayerNorm after."""

    def __init__(self, architecture: Any, *, rngs: nnx.Rngs):
        a = architecture
        self.hidden_dropout = a.hidden_dropout
        self.inner = linear(a.hidden_size, a.inner_size, rngs)
        self.output = linear(a.inner_size, a.hidden_size, rngs)
        self.norm = layer_norm(a.hidden_size, rngs)

    def __call__(self, x: jax.Array, dropout: DropoutKeys | None) -> jax.Array:
        """[rows, length, hidden] -> [rows, length, hidden]."""
        inner = jax.nn.gelu(self.inner(x), approximate=False)
        return self.norm(x + drop_in_rows(self.output(inner), self.hidden_dropout, dropout))


class SrtBlock(nnx.Module):
    """Attention, then feed-forward."""

    def __init__(self, architecture: Any, *, rngs: nnx.Rngs):
        self.attention = Attention(architecture, rngs=rngs)
        self.feed_forward = FeedForward(architecture, rngs=rngs)

    def __call__(self, x: jax.Array, bias: jax.Array, dropout: DropoutKeys | None) -> jax.Array:
        """[rows, length, hidden], [rows, 1, length, length] -> [rows, length, hidden]."""
        of_attention, of_feed_forward = split_dropout(dropout, 2)
        return self.feed_forward(self.attention(x, bias, of_attention), of_feed_forward)
