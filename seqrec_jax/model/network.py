"""The network: item embeddings, a transformer over a user's items, scores by dot product, and the terms beside it."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from seqrec_jax.dropout import DropoutKeys, drop_in_rows, split_dropout
from seqrec_jax.items.features import ItemFeature
from seqrec_jax.model import initializers
from seqrec_jax.model.blocks import BLOCKS
from seqrec_jax.model.blocks.attention import attention_bias
from seqrec_jax.model.item_encoder import ItemEncoder
from seqrec_jax.model.terms import TERMS
from seqrec_jax.model.terms.interface import ScoreAdjustments


class Network(nnx.Module):
    """SRT (Zivic et al., SIGIR 2024): RecBole's SASRec over features of items.

    Args:
        architecture: The shape; see spec.Architecture.
        features: What it reads of an item.
        rematerialize: Make each block's activations again for the gradient instead of keeping them.
        table_axis: Of the mesh, over which the tables' columns are divided, where it is called within shard_map.
        rngs: Of the initialisation.
    """

    def __init__(
        self,
        architecture: Any,
        features: Sequence[ItemFeature],
        rematerialize: bool = False,
        table_axis: str | None = None,
        *,
        rngs: nnx.Rngs,
    ):
        a = architecture
        self.hidden_dropout, self.hidden_size, self.rematerialize = a.hidden_dropout, a.hidden_size, rematerialize
        self.item_encoder = ItemEncoder(a, features, table_axis, rngs=rngs)
        self.terms = nnx.Dict({term.name: term(a, rngs=rngs) for term in TERMS if term.is_in(a)})
        self.position_table = nnx.Param(initializers.normal(a.max_length, a.hidden_size, rngs))
        self.norm = initializers.layer_norm(a.hidden_size, rngs)
        self.blocks = nnx.List(BLOCKS[a.block](a, rngs=rngs) for _ in range(a.n_layers))

    def encode_items(
        self, features: Mapping[str, jax.Array | np.ndarray], dropout_key: jax.Array | None = None
    ) -> jax.Array:
        """Item embeddings [items, output_size], of features [items, ...]; see ItemEncoder."""
        return self.item_encoder(features, dropout_key)

    def encode_sequences(
        self,
        item_embeddings: jax.Array,
        segments: jax.Array,
        positions: jax.Array,
        dropout: DropoutKeys | None = None,
    ) -> jax.Array:
        """The output at every position of packed rows.

        Args:
            item_embeddings: [rows, length, output_size].
            segments: [rows, length] int32; positions attend within their segment, 0 is padding.
            positions: [rows, length] int32, from the segment's start.
            dropout: None switches it off.

        Returns:
            [rows, length, output_size]; its dot product with an item embedding is that item's score as the next one.
        """
        of_input, *of_blocks = split_dropout(dropout, len(self.blocks) + 1)
        learnt, appended = jnp.split(item_embeddings, [self.hidden_size], -1)
        inputs = x = self.norm(learnt + self.position_table[...][positions].astype(learnt.dtype))
        x = drop_in_rows(x, self.hidden_dropout, of_input)
        bias = attention_bias(segments)
        for block, of_block in zip(self.blocks, of_blocks, strict=True):
            run = jax.checkpoint(block) if self.rematerialize else block
            x = run(x, bias, of_block)
        for term in self.terms.values():
            x = term.read_sequence(x, inputs, appended, bias)
        return x

    def encode_histories(self, catalog: jax.Array, histories: jax.Array, lengths: jax.Array) -> jax.Array:
        """What is scored for histories: [n, output_size]. The one place where a history becomes the model's input.

        `histories` [n, width] int32 are places in the catalog's embeddings [items, output_size], in time order and
        left-aligned, of lengths [n] from 1 to width.
        """
        columns = jnp.arange(histories.shape[1], dtype=jnp.int32)
        segments = (columns < lengths[:, None]).astype(jnp.int32)
        positions = jnp.broadcast_to(columns, histories.shape)
        return self.encode_sequences(catalog[histories], segments, positions)[jnp.arange(len(lengths)), lengths - 1]

    @property
    def history_offset(self) -> jax.Array | None:
        """What the terms add to the scores of items that the history holds: [] or None."""
        offsets = [term.history_offset() for term in self.terms.values()]
        known = [offset for offset in offsets if offset is not None]
        return sum(known[1:], known[0]) if known else None

    def adjustments(
        self, histories: jax.Array, lengths: jax.Array, prepared: Mapping[str, Any]
    ) -> ScoreAdjustments | None:
        """What the terms add to the scores of some items, for histories of catalog items as encode_histories has them.

        `prepared` is by term what its statistic has prepared for them; see Statistic.prepare.
        """
        parts, offset = [], self.history_offset
        if offset is not None:
            positions = jnp.broadcast_to(jnp.arange(histories.shape[1]), histories.shape)
            last = jnp.arange(len(lengths)) * histories.shape[1] + lengths - 1
            held = items_read(histories, positions, last)[1]
            parts.append(ScoreAdjustments(histories, jnp.where(held, offset, 0)))
        for name, term in self.terms.items():
            if name in prepared:
                parts.extend(term.adjustments(prepared[name]))
        return ScoreAdjustments(*(jnp.concatenate(part, 1) for part in zip(*parts, strict=True))) if parts else None


def items_read(items: jax.Array, positions: jax.Array, slots: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The items that the model has read at each slot of packed rows.

    Of catalog items [rows, length], positions [rows, length] from the start of a user's window and slots [n], flattened
    places (row * length + column). Gives the items of the slot's row [n, length] int32, and [n, length] bool: whether
    an item lies in the window up to the slot, at its first place there, so that each distinct item is marked once.
    """
    length = items.shape[1]
    column, row, last = jnp.arange(length), slots // length, slots % length
    start = column - positions
    same = (items[:, :, None] == items[:, None, :]) & (start[:, :, None] == start[:, None, :])
    again = (same & (column[None, :] < column[:, None])).any(2)
    inside = (start[row] == start[row, last][:, None]) & (column <= last[:, None])
    return items[row], inside & ~again[row]
