"""A score for shared words, which a model takes along to texts that it has never seen."""

import jax
import jax.numpy as jnp
from flax import nnx

from seqrec_jax.model.initializers import linear

LEXICAL = "lexical"
"""The feature that holds the items' lexical vectors, beside those that hold their tokens."""

DECAY = 0.7
SCALE = 5.0


class LexicalHead(nnx.Module):
    """Reads a history's lexical vectors: an attention head whose values are those vectors as they are.

    What it gives, times an item's lexical vector, is how much the item's words are those of the items that the head
    looks at. Which items those are, and how much it matters, is learnt; what words there are is not, so it holds in a
    domain of other words. (The copying of pointer networks, Vinyals et al., NeurIPS 2015, by words instead of items.)

    Args:
        hidden_size: of the transformer.
        max_length: most items of a history.
    """

    def __init__(self, hidden_size: int, max_length: int, *, rngs: nnx.Rngs):
        self.query = linear(hidden_size, hidden_size, rngs)
        self.key = linear(hidden_size, hidden_size, rngs)
        self.recency = nnx.Param(-DECAY * jnp.arange(max_length, dtype=jnp.float32))
        self.gate = nnx.Param(jnp.zeros(hidden_size))
        self.scale = nnx.Param(jnp.zeros(()))
        self.trust = nnx.Param(jnp.zeros(()))

    def __call__(self, outputs: jax.Array, inputs: jax.Array, vectors: jax.Array, bias: jax.Array) -> jax.Array:
        """What each position asks of the next item: of what is learnt of it, and of its words.

        One number weighs each of the two, so that a domain can say how far what was learnt elsewhere holds there.

        Args:
            outputs: [rows, length, hidden], of the transformer.
            inputs: [rows, length, hidden], what it read.
            vectors: [rows, length, size], lexical vectors of the items.
            bias: [rows, 1, length, length], see attention_bias.

        Returns:
            [rows, length, hidden + size].
        """
        length, hidden = inputs.shape[1:]
        logits = jnp.einsum(
            "rqh,rkh->rqk", self.query(outputs), self.key(inputs), preferred_element_type=jnp.float32
        ) / jnp.sqrt(jnp.float32(hidden))
        distance = jnp.arange(length)[:, None] - jnp.arange(length)[None, :]
        logits += self.recency[...].astype(jnp.float32)[jnp.clip(distance, 0)] + bias[:, 0]
        asked = jnp.einsum("rqk,rkd->rqd", jax.nn.softmax(logits).astype(vectors.dtype), vectors)
        gate = 10 * self.scale[...] + outputs @ self.gate[...].astype(outputs.dtype)  # in tenths, as a repeat offset
        words = asked * (SCALE * jnp.exp(gate))[..., None].astype(asked.dtype)
        return jnp.concatenate([outputs * jnp.exp(10 * self.trust[...]).astype(outputs.dtype), words], -1)
