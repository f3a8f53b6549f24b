"""The recommender: item embeddings from text, a transformer over a user's items, scores by dot product."""

import dataclasses
from collections.abc import Mapping

import gin
import jax
import numpy as np
from flax import nnx

from seqrec_jax.errors import InputError
from seqrec_jax.model.dropout import dropout
from seqrec_jax.model.initializers import embedding_table, layer_norm
from seqrec_jax.model.item_encoder import POOLINGS, TextItemEncoder
from seqrec_jax.model.transformer import Block, attention_bias


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Architecture:
    """The shape of a recommender; kept in every checkpoint.

    Attributes:
        n_layers: transformer blocks.
        n_heads: attention heads; hidden_size is a multiple of it.
        hidden_size: width of item embeddings and of the transformer.
        inner_size: width within the feed-forward maps.
        embedding_size: width of the token tables; None for hidden_size.
        max_length: most items of a history that the model reads.
        pooling: how an item's token embeddings become one: sum, mean or max.
        hidden_dropout: after the input, attention and feed-forward.
        attention_dropout: on the attention weights.
    """

    n_layers: int = 2
    n_heads: int = 2
    hidden_size: int = 64
    inner_size: int = 64
    embedding_size: int | None = None
    max_length: int = 50
    pooling: str = "sum"
    hidden_dropout: float = 0.5
    attention_dropout: float = 0.5

    def __post_init__(self):
        if self.hidden_size % self.n_heads:
            raise InputError(
                f"Architecture.hidden_size = {self.hidden_size} is not divisible by "
                f"Architecture.n_heads = {self.n_heads}"
            )
        if self.pooling not in POOLINGS:
            raise InputError(f"Architecture.pooling = {self.pooling!r} is not one of {', '.join(POOLINGS)}")
        for name in ("hidden_dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"Architecture.{name} = {getattr(self, name)} is not in [0, 1)")
        for name in ("n_layers", "n_heads", "hidden_size", "inner_size", "max_length"):
            if getattr(self, name) < 1:
                raise InputError(f"Architecture.{name} = {getattr(self, name)} is below 1")


class Recommender(nnx.Module):
    """SRT (Zivic et al., SIGIR 2024): RecBole's SASRec over text features.

    Args:
        architecture: the shape.
        vocab_sizes: rows of each text feature's token table.
    """

    def __init__(self, architecture: Architecture, vocab_sizes: Mapping[str, int], *, rngs: nnx.Rngs):
        a = architecture
        self.hidden_dropout = a.hidden_dropout
        self.item_encoder = TextItemEncoder(
            vocab_sizes, a.embedding_size or a.hidden_size, a.hidden_size, a.pooling, rngs=rngs
        )
        self.position_table = embedding_table(a.max_length, a.hidden_size, rngs)
        self.norm = layer_norm(a.hidden_size, rngs)
        self.blocks = nnx.List(
            Block(a.hidden_size, a.inner_size, a.n_heads, a.hidden_dropout, a.attention_dropout, rngs=rngs)
            for _ in range(a.n_layers)
        )

    def encode_items(self, tokens: Mapping[str, jax.Array | np.ndarray]) -> jax.Array:
        """Item embeddings: per feature [items, tokens] -> [items, hidden]."""
        return self.item_encoder(tokens)

    def encode_sequences(
        self,
        item_embeddings: jax.Array,
        segments: jax.Array,
        positions: jax.Array,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """The transformer's output at every position.

        Args:
            item_embeddings: [rows, length, hidden].
            segments: [rows, length] int32; positions attend within their segment, 0 is padding.
            positions: [rows, length] int32, from the segment's start.
            dropout_key: None switches dropout off.

        Returns:
            [rows, length, hidden]; its dot product with an item embedding is that item's score as the next one.
        """
        keys = [None] * (len(self.blocks) + 1)
        if dropout_key is not None:
            keys = list(jax.random.split(dropout_key, len(self.blocks) + 1))
        x = self.norm(item_embeddings + self.position_table[positions])
        x = dropout(x, self.hidden_dropout, keys[0])
        bias = attention_bias(segments)
        for block, key in zip(self.blocks, keys[1:], strict=True):
            x = block(x, bias, key)
        return x


def build(architecture: Architecture, vocab_sizes: Mapping[str, int], seed: int) -> tuple[nnx.GraphDef, nnx.State]:
    """A freshly initialised recommender, split into its graph definition and its parameter tree."""

    @jax.jit
    def parameters():
        return nnx.state(Recommender(architecture, vocab_sizes, rngs=nnx.Rngs(seed)))

    graph = nnx.graphdef(nnx.eval_shape(lambda: Recommender(architecture, vocab_sizes, rngs=nnx.Rngs(seed))))
    return graph, parameters()
