"""What a loss is, what a proposal of negatives is, and what both are given."""

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import jax


class Keys(NamedTuple):
    """Random keys of a step."""

    common: jax.Array  # the same on every device
    targets: jax.Array  # [targets] int32, each target's number within the whole step, whichever device holds it


class LossInputs(NamedTuple):
    """A device's share of the batch, in catalog items, before anything is encoded; all int32."""

    targets: jax.Array  # [targets]; 0 for padding
    slots: jax.Array  # [targets], flattened places (row * length + column) that predict them
    inputs: jax.Array  # [rows, length]
    positions: jax.Array  # [rows, length], counted from the start of a user's window


class ModelOutputs(NamedTuple):
    """What the model gives for a device's share of the batch."""

    inputs: LossInputs
    hidden: jax.Array  # [rows, length, hidden], the transformer's outputs at every position
    input_embeddings: jax.Array  # [rows, length, hidden], embeddings of the items there
    outputs: jax.Array  # [targets, hidden], the outputs that are scored
    target_embeddings: jax.Array  # [targets, hidden]
    n_items: int  # of the catalog
    embeddings: jax.Array  # [encoded, hidden], of the step's distinct items, or of all where the loss asks for it
    history_offset: jax.Array | None = None  # scalar, added to the logits of items that the history holds
    drawn: jax.Array | None = None  # [1 or targets, n] int32 catalog items; None where none is drawn from the catalog
    drawn_rows: jax.Array | None = None  # their rows of `embeddings`
    group_ids: jax.Array | None = None  # [n_items + 1] int32; items of one number compete, 0 is padding; None: all do
    n_groups: int = 1  # the greatest of these numbers
    n_learnt: int | None = None  # leading columns of the embeddings that are learnt; None for all


class Scored(NamedTuple):
    """Logits of the targets and of their negatives."""

    positive: jax.Array  # [targets] float32, dot products
    negative: jax.Array  # [targets, n] float32
    positive_log_q: jax.Array  # [targets] float32
    negative_log_q: jax.Array  # [1 or targets, n] float32
    hit: jax.Array  # [1 or targets, n] bool, a draw that is no negative: the target, or an item of another group


@runtime_checkable
class Proposal(Protocol):
    """A distribution q over the catalog without padding (row 0). It may differ from target to target.

    A proposal that follows the item embeddings also has `refreshed(key, embeddings, mesh)`, as in proposals/knn.py.
    """

    @property
    def per_target(self) -> bool:
        """Whether q depends on the target or its history."""

    def draw(self, keys: jax.Array, inputs: LossInputs, n: int) -> jax.Array:
        """Draws with replacement: [sets, n] int32, for [sets] keys: one a target, or one unless q is per target."""

    def log_q(self, inputs: LossInputs, items: jax.Array) -> jax.Array:
        """log(q + 1e-16) of [targets or 1, n] items: float32 of that shape. One set stands for all targets."""


@runtime_checkable
class BatchProposal(Protocol):
    """Negatives that the batch itself gives: nothing is drawn from the catalog."""

    @property
    def per_target(self) -> bool:
        """Whether the negatives depend on the target or its history."""

    @property
    def least_rows(self) -> int:
        """Rows of the batch that each device needs."""

    def score(self, keys: jax.Array, model: ModelOutputs, n: int) -> Scored:
        """Logits of the targets and of n negatives of each, made by [1 or targets] keys."""


AnyProposal = Proposal | BatchProposal


class Loss(NamedTuple):
    """A training loss: two pure functions, one before the step's items are encoded and one after.

    `check` refuses what cannot be drawn, with an InputError; `draw` gives the items to encode beside the batch's own,
    [1 or targets, n] int32, or None; `losses` are [targets] float32.
    """

    check: Callable[[AnyProposal, int, int], None]  # of the proposal, n_items and the rows of a device
    draw: Callable[[Keys, LossInputs, AnyProposal], jax.Array | None]
    losses: Callable[[Keys, ModelOutputs, AnyProposal], jax.Array]
    whole_catalog: bool = False  # whether every item is to be encoded
    scores_history: bool = False  # whether targets are set against their histories, though not every item is encoded
