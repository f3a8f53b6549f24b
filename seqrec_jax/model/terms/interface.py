"""What every score term is: something that scores have beside the dot product of what is learnt."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def is_among(rows: jax.Array, items: jax.Array) -> jax.Array:
    """Which items [targets, n] are in the row [targets, m] of their target, which is ascending: [targets, n] bool."""
    at = jax.vmap(jnp.searchsorted)(rows, items).clip(max=rows.shape[1] - 1)
    return jnp.take_along_axis(rows, at, axis=1) == items


class ScoreAdjustments(NamedTuple):
    """Items whose scores are not their dot products alone.

    Attributes:
        items: [targets, most] int32; distinct, but for those to which nothing is added.
        amounts: [targets, most] float32, what is added to their scores; 0 for padding.
    """

    items: jax.Array
    amounts: jax.Array

    def of(self, items: jax.Array) -> jax.Array:
        """What is added to the score of one item of each target: [targets] int32 -> [targets] float32."""
        return jnp.where(self.items == items[:, None], self.amounts, 0).sum(1)

    def excluding(self, items: jax.Array, targets: jax.Array) -> "ScoreAdjustments":
        """Those that are none of `items` [targets, n], each row ascending, unless they are the target."""
        left_out = is_among(items, self.items) & (self.items != targets[:, None])
        return self._replace(amounts=jnp.where(left_out, 0, self.amounts))


class Statistic(Protocol):
    """What a term has counted in a training log; it is kept with the model in a file of the term's name."""

    @property
    def catalog_sha256(self) -> str:
        """Of the catalog whose items were counted."""

    @property
    def n_rows(self) -> int:
        """Of that catalog, the row of padding among them."""

    def prepare(self, histories: np.ndarray, lengths: np.ndarray) -> Any:
        """Arrays [n, ...] for the adjustments of n histories, given one after the other: [sum of lengths] int32."""

    def write(self, path: Path) -> None:
        """Writes the file and renames it into place."""

    @classmethod
    def read(cls, path: Path) -> "Statistic":
        """The inverse of write; an InputError where it is missing or damaged."""


class ScoreTerm(nnx.Module):
    """A part of the score. A subclass names itself, holds its parameters, and overrides what it adds.

    Attributes:
        name: Of its parameters, `terms/<name>/...`, and of its statistic.
        statistic: What it counts in the training log, if anything.
        steps: Knobs that are moved on validation once training is over, in steps of so much, and
        grids: knobs that are given one of so many values there, the smallest that is about as good as the best.
    """

    name: ClassVar[str]
    statistic: ClassVar[type[Statistic] | None] = None
    steps: ClassVar[Mapping[str, float]] = {}
    grids: ClassVar[Mapping[str, tuple[float, ...]]] = {}

    @classmethod
    def is_in(cls, architecture: Any) -> bool:
        """Whether a model of this architecture has the term; to be overridden."""
        return False

    def __init__(self, architecture: Any, *, rngs: nnx.Rngs):
        """Makes its parameters."""

    def read_sequence(self, outputs: jax.Array, inputs: jax.Array, appended: jax.Array, bias: jax.Array) -> jax.Array:
        """What each position asks of the next item's embedding: [rows, length, hidden], or with what is appended.

        Takes the transformer's outputs and inputs, [rows, length, hidden], the columns that features have appended to
        the items' embeddings, [rows, length, size], and the attention_bias.
        """
        return outputs

    def history_offset(self) -> jax.Array | None:
        """What is added, in the loss and in ranking, to scores of items that the history holds: [] or None."""
        return None

    def adjustments(self, prepared: Any) -> Iterator[ScoreAdjustments]:
        """What else is added in ranking, from what its statistic has prepared for the histories."""
        yield from ()
