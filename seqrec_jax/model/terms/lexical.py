"""A score for shared words, which a model takes along to texts that it has never seen."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from seqrec_jax.model.initializers import linear
from seqrec_jax.model.parameters import Knob
from seqrec_jax.model.terms.interface import ScoreTerm

DECAY = 0.7
SCALE = 5.0


class LexicalTerm(ScoreTerm):
    """Reads a history's lexical vectors: an attention head whose values are those vectors as they are.

    What it gives, times an item's lexical vector, is how much the item's words are those of the items that the head
    looks at. Which items those are, and how much it matters, is learnt; what words there are is not, so it holds in a
    domain of other words. (The copying of pointer networks, Vinyals et al., NeurIPS 2015, by words instead of items.)

    `trust` weighs what is learnt, so that a catalog can say how far what was learnt elsewhere holds there; `scale` and
    `gate` weigh the words.
    """

    name = "lexical"
    steps = {"trust": 0.05}  # noqa: RUF012

    @classmethod
    def is_in(cls, architecture: Any) -> bool:
        """See ScoreTerm."""
        return architecture.lexical_size > 0

    def __init__(self, architecture: Any, *, rngs: nnx.Rngs):
        hidden = architecture.hidden_size
        self.query, self.key = linear(hidden, hidden, rngs), linear(hidden, hidden, rngs)
        self.recency = Knob(-DECAY * jnp.arange(architecture.max_length, dtype=jnp.float32))
        self.gate = nnx.Param(jnp.zeros(hidden))
        self.scale, self.trust = Knob(jnp.zeros(())), Knob(jnp.zeros(()))

    def read_sequence(self, outputs: jax.Array, inputs: jax.Array, appended: jax.Array, bias: jax.Array) -> jax.Array:
        """See ScoreTerm."""
        length, hidden = inputs.shape[1:]
        logits = jnp.einsum(
            "rqh,rkh->rqk", self.query(outputs), self.key(inputs), preferred_element_type=jnp.float32
        ) / jnp.sqrt(jnp.float32(hidden))
        distance = jnp.arange(length)[:, None] - jnp.arange(length)[None, :]
        logits += self.recency[...].astype(jnp.float32)[jnp.clip(distance, 0)] + bias[:, 0]
        asked = jnp.einsum("rqk,rkd->rqd", jax.nn.softmax(logits).astype(appended.dtype), appended)
        gate = 10 * self.scale[...] + outputs @ self.gate[...].astype(outputs.dtype)  # in tenths, as a repeat offset
        words = asked * (SCALE * jnp.exp(gate))[..., None].astype(asked.dtype)
        return jnp.concatenate([outputs * jnp.exp(10 * self.trust[...]).astype(outputs.dtype), words], -1)
