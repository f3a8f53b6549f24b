"""The recommender: item embeddings from text, a transformer over a user's items, scores by dot product."""

import dataclasses
from collections.abc import Callable, Mapping

import gin
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from seqrec_jax.errors import InputError
from seqrec_jax.model.dropout import Noise, drop_in_rows, split_noise
from seqrec_jax.model.initializers import embedding_table, layer_norm
from seqrec_jax.model.item_encoder import (
    ITEM_ENCODERS,
    ITEM_ID,
    POOLINGS,
    IdItemEncoder,
    TextAndIdItemEncoder,
    TextItemEncoder,
)
from seqrec_jax.model.lexical import LEXICAL, LexicalHead
from seqrec_jax.model.transformer import ATTENTIONS, Block, attention_bias


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
        item_encoder: `text`; `id`, a trainable row for each item; or `text_and_id`, their sum.
        repeat_offset: learn one number that is added to the scores of the items that the history holds, for data in
            which users seldom take an item twice; see Recommender.repeat_offset.
        transitions: have one number by which the counts of what followed the history's items in training are added to
            the scores; it is chosen on validation, see Recommender.transition_weight.
        id_dropout: share of the items whose own row is left out in a training step.
        token_dropout: share of the vocabulary that the item encoder does not read in a training step, so that a model
            with a lexical head learns what to do where words are new.
        lexical_size: of the fixed vectors of the items' words, by which the model also scores; see LexicalHead. 0 for
            none; 128 loses little. More costs time in proportion, as if hidden_size were as much larger.
        attention: `xla`, or `cudnn` for the fused kernel of NVIDIA GPUs, which takes 16-bit numbers and no dropout on
            the weights.
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
    item_encoder: str = "text"
    repeat_offset: bool = False
    transitions: bool = False
    id_dropout: float = 0.0
    token_dropout: float = 0.0
    lexical_size: int = 0
    attention: str = "xla"

    def __post_init__(self):
        if self.hidden_size % self.n_heads:
            raise InputError(
                f"Architecture.hidden_size = {self.hidden_size} is not divisible by "
                f"Architecture.n_heads = {self.n_heads}"
            )
        for name, known in (("pooling", POOLINGS), ("item_encoder", ITEM_ENCODERS), ("attention", ATTENTIONS)):
            if getattr(self, name) not in known:
                raise InputError(f"Architecture.{name} = {getattr(self, name)!r} is not one of {', '.join(known)}")
        if self.attention == "cudnn" and self.attention_dropout:
            raise InputError(
                "Architecture.attention = 'cudnn' drops no weights; bind Architecture.attention_dropout = 0.0"
            )
        for name in ("hidden_dropout", "attention_dropout", "id_dropout", "token_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"Architecture.{name} = {getattr(self, name)} is not in [0, 1)")
        for name in ("n_layers", "n_heads", "hidden_size", "inner_size", "max_length"):
            if getattr(self, name) < 1:
                raise InputError(f"Architecture.{name} = {getattr(self, name)} is below 1")
        if self.lexical_size < 0:
            raise InputError(f"Architecture.lexical_size = {self.lexical_size} is below 0")

    @property
    def output_size(self) -> int:
        """Of an item's embedding and of what is scored against it."""
        return self.hidden_size + self.lexical_size


class Recommender(nnx.Module):
    """SRT (Zivic et al., SIGIR 2024): RecBole's SASRec over text features.

    Args:
        architecture: the shape.
        vocab_sizes: rows of each text feature's token table, and of the items' under `item_id`.
        rematerialize: make each block's activations again for the gradient instead of keeping them.
        table_axis: of the mesh, over which the tables' columns are divided, where it is called within shard_map.
    """

    def __init__(
        self,
        architecture: Architecture,
        vocab_sizes: Mapping[str, int],
        rematerialize: bool = False,
        table_axis: str | None = None,
        *,
        rngs: nnx.Rngs,
    ):
        a = architecture
        self.hidden_dropout, self.rematerialize = a.hidden_dropout, rematerialize
        self.item_encoder = _item_encoder(a, vocab_sizes, table_axis, rngs)
        self.repeat = nnx.Param(jnp.zeros(())) if a.repeat_offset else None
        self.transitions = nnx.Param(jnp.zeros(())) if a.transitions else None
        self.hidden_size = a.hidden_size
        self.lexical = LexicalHead(a.hidden_size, a.max_length, rngs=rngs) if a.lexical_size else None
        self.position_table = embedding_table(a.max_length, a.hidden_size, rngs)
        self.norm = layer_norm(a.hidden_size, rngs)
        self.blocks = nnx.List(
            Block(a.hidden_size, a.inner_size, a.n_heads, a.hidden_dropout, a.attention_dropout, a.attention, rngs=rngs)
            for _ in range(a.n_layers)
        )

    def encode_items(
        self, features: Mapping[str, jax.Array | np.ndarray], dropout_key: jax.Array | None = None
    ) -> jax.Array:
        """Item embeddings [items, output_size], from tokens [items, tokens] per text feature, rows [items] as
        `item_id`, and lexical vectors [items, lexical_size] as `lexical`, which come last in them."""
        learnt = self.item_encoder(features, dropout_key)
        if self.lexical is None:
            return learnt
        return jnp.concatenate([learnt, jnp.asarray(features[LEXICAL]).astype(learnt.dtype)], -1)

    @property
    def repeat_offset(self) -> jax.Array | None:
        """What is added to the scores of items that the history holds; None without Architecture.repeat_offset.

        A model of texts scores highest what reads like the history, and so the history itself, however rarely an item
        is bought again: what RepeatNet (Ren et al., AAAI 2019) learns with a gate, at the price of one number. It is
        kept in tenths, so that an optimizer whose steps suit weights of size 0.02 moves it fast enough.
        """
        return None if self.repeat is None else 10 * self.repeat[...]

    @property
    def transition_weight(self) -> jax.Array | None:
        """By how much what followed the history's items in training raises scores; None without
        Architecture.transitions.

        Embeddings of few dimensions cannot hold which of thousands of items followed which; counts can. The loss does
        not see them, as a training sequence is among those that were counted. Kept in tenths, as the repeat offset.
        """
        return None if self.transitions is None else 10 * self.transitions[...]

    def encode_sequences(
        self,
        item_embeddings: jax.Array,
        segments: jax.Array,
        positions: jax.Array,
        noise: Noise | None = None,
    ) -> jax.Array:
        """The transformer's output at every position.

        Args:
            item_embeddings: [rows, length, output_size].
            segments: [rows, length] int32; positions attend within their segment, 0 is padding.
            positions: [rows, length] int32, from the segment's start.
            noise: of the dropout; None switches it off.

        Returns:
            [rows, length, output_size]; its dot product with an item embedding is that item's score as the next one.
        """
        of_input, *of_blocks = split_noise(noise, len(self.blocks) + 1)
        learnt, words = jnp.split(item_embeddings, [self.hidden_size], -1)
        inputs = x = self.norm(learnt + self.position_table[...][positions].astype(learnt.dtype))
        x = drop_in_rows(x, self.hidden_dropout, of_input)
        bias = attention_bias(segments)
        for block, of_block in zip(self.blocks, of_blocks, strict=True):
            run = jax.checkpoint(block) if self.rematerialize else block
            x = run(x, bias, of_block)
        return x if self.lexical is None else self.lexical(x, inputs, words, bias)


def items_read(items: jax.Array, positions: jax.Array, slots: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The items that the model has read at each slot.

    Args:
        items: [rows, length] int32, catalog items.
        positions: [rows, length] int32, counted from the start of a user's window.
        slots: [n] int32, flattened places (row * length + column).

    Returns:
        Items [n, length] int32, those of the slot's row, and bool [n, length]: whether an item lies in the window up to
        the slot, at its first place there, so that each distinct item is marked once.
    """
    length = items.shape[1]
    column, row, last = jnp.arange(length), slots // length, slots % length
    start = column - positions
    same = (items[:, :, None] == items[:, None, :]) & (start[:, :, None] == start[:, None, :])
    again = (same & (column[None, :] < column[:, None])).any(2)
    inside = (start[row] == start[row, last][:, None]) & (column <= last[:, None])
    return items[row], inside & ~again[row]


def _item_encoder(a: Architecture, vocab_sizes: Mapping[str, int], table_axis: str | None, rngs: nnx.Rngs):
    texts = {name: size for name, size in vocab_sizes.items() if name != ITEM_ID}

    def of_rows() -> IdItemEncoder:
        return IdItemEncoder(vocab_sizes[ITEM_ID], a.hidden_size, a.id_dropout, table_axis, rngs=rngs)

    if a.item_encoder == "id":
        return of_rows()
    size = a.embedding_size or a.hidden_size
    text = TextItemEncoder(texts, size, a.hidden_size, a.pooling, a.token_dropout, table_axis, rngs=rngs)
    return text if a.item_encoder == "text" else TextAndIdItemEncoder(text, of_rows())


def graph_of(
    architecture: Architecture,
    vocab_sizes: Mapping[str, int],
    rematerialize: bool = False,
    table_axis: str | None = None,
) -> nnx.GraphDef:
    """A recommender's graph definition, without parameters; see Recommender for the arguments."""
    return nnx.graphdef(
        nnx.eval_shape(lambda: Recommender(architecture, vocab_sizes, rematerialize, table_axis, rngs=nnx.Rngs(0)))
    )


def build(
    architecture: Architecture,
    vocab_sizes: Mapping[str, int],
    seed: int,
    shardings: Callable[[nnx.State], nnx.State] | None = None,
) -> tuple[nnx.GraphDef, nnx.State]:
    """A freshly initialised recommender, split into its graph definition and its parameter tree.

    Args:
        architecture: the shape.
        vocab_sizes: see Recommender.
        seed: of the initialisation.
        shardings: gives each parameter's, from the tree of shapes; None leaves all on the default device.
    """

    def init() -> nnx.State:
        return nnx.state(Recommender(architecture, vocab_sizes, rngs=nnx.Rngs(seed)))

    placed = None if shardings is None else shardings(jax.eval_shape(init))
    return graph_of(architecture, vocab_sizes), jax.jit(init, out_shardings=placed)()
