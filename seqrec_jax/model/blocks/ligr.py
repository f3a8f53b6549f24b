"""The LiGR block: pre-norm, residuals behind a gate, SwiGLU (LiGR, Borisyuk et al., arXiv 2502.03417; as in eSASRec,
Tikhonovich et al., RecSys 2025, arXiv 2508.06450)."""

from typing import Any

import jax
from flax import nnx

from seqrec_jax.dropout import DropoutKeys, drop_in_rows, split_dropout
from seqrec_jax.model.blocks.attention import SelfAttention
from seqrec_jax.model.initializers import layer_norm, linear


class GatedResidual(nnx.Module):
    """x + sigmoid(W x) * dropout(y): how much of what a layer says is taken is learnt, for each dimension."""

    def __init__(self, architecture: Any, *, rngs: nnx.Rngs):
        self.hidden_dropout = architecture.hidden_dropout
        self.gate = linear(architecture.hidden_size, architecture.hidden_size, rngs)

    def __call__(self, x: jax.Array, y: jax.Array, dropout: DropoutKeys | None) -> jax.Array:
        """[rows, length, hidden] twice -> [rows, length, hidden]."""
        return x + jax.nn.sigmoid(self.gate(x)) * drop_in_rows(y, self.hidden_dropout, dropout)


class SwiGlu(nnx.Module):
    """output(silu(gate(x)) * inner(x)) (Shazeer, arXiv 2002.05202)."""

    def __init__(self, architecture: Any, *, rngs: nnx.Rngs):
        a = architecture
        self.gate = linear(a.hidden_size, a.inner_size, rngs)
        self.inner = linear(a.hidden_size, a.inner_size, rngs)
        self.output = linear(a.inner_size, a.hidden_size, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[rows, length, hidden] -> [rows, length, hidden]."""
        return self.output(jax.nn.silu(self.gate(x)) * self.inner(x))


class LigrBlock(nnx.Module):
    """Attention, then SwiGLU, each on a norm of its input and added behind a gate."""

    def __init__(self, architecture: Any, *, rngs: nnx.Rngs):
        size = architecture.hidden_size
        self.attention_norm, self.attention = layer_norm(size, rngs), SelfAttention(architecture, rngs=rngs)
        self.attention_residual = GatedResidual(architecture, rngs=rngs)
        self.feed_forward_norm, self.feed_forward = layer_norm(size, rngs), SwiGlu(architecture, rngs=rngs)
        self.feed_forward_residual = GatedResidual(architecture, rngs=rngs)

    def __call__(self, x: jax.Array, bias: jax.Array, dropout: DropoutKeys | None) -> jax.Array:
        """[rows, length, hidden], [rows, 1, length, length] -> [rows, length, hidden]."""
        of_weights, of_attention, of_feed_forward = split_dropout(dropout, 3)
        x = self.attention_residual(x, self.attention.attend(self.attention_norm(x), bias, of_weights), of_attention)
        return self.feed_forward_residual(x, self.feed_forward(self.feed_forward_norm(x)), of_feed_forward)
