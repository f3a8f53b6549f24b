"""A number that is added to the scores of items that the history holds."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from seqrec_jax.model.parameters import Knob
from seqrec_jax.model.terms.interface import ScoreTerm


class RepeatOffset(ScoreTerm):
    """One learnt number, for data in which users seldom take an item twice, or often.

    A model of texts scores highest what reads like the history, and so the history itself, however rarely an item is
    bought again: what RepeatNet (Ren et al., AAAI 2019) learns with a gate, at the price of one number. It is kept in
    tenths, so that an optimizer whose steps suit weights of size 0.02 moves it fast enough.
    """

    name = "repeat"
    steps = {"offset": 0.1}  # noqa: RUF012

    @classmethod
    def is_in(cls, architecture: Any) -> bool:
        """See ScoreTerm."""
        return architecture.repeat_offset

    def __init__(self, architecture: Any, *, rngs: nnx.Rngs):
        self.offset = Knob(jnp.zeros(()))

    def history_offset(self) -> jax.Array:
        """See ScoreTerm: []."""
        return 10 * self.offset[...]
