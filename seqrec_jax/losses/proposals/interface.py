"""What every proposal is."""

from typing import NamedTuple, Protocol, runtime_checkable

import jax


class Observed(NamedTuple):
    """What a proposal may look at before anything is encoded: a device's share of the batch, in catalog items.

    Attributes:
        targets: [targets] int32; 0 for padding.
        slots: [targets] int32, flattened places (row * length + column) that predict them.
        inputs: [rows, length] int32.
        positions: [rows, length] int32, counted from the start of a user's window.
    """

    targets: jax.Array
    slots: jax.Array
    inputs: jax.Array
    positions: jax.Array


@runtime_checkable
class Proposal(Protocol):
    """A distribution q over the catalog, row 0 (padding) having none; it may differ from target to target.

    Attributes:
        per_target: whether q depends on the target or its history.
    """

    per_target: bool

    def draw(self, keys: jax.Array, observed: Observed, n: int) -> jax.Array:
        """Draws with replacement: [sets, n] int32, for [sets] keys: one a target, or one unless q is per target."""
        ...

    def log_q(self, observed: Observed, items: jax.Array) -> jax.Array:
        """log(q + 1e-16) of [targets or 1, n] items: float32 of that shape. One set stands for all targets."""
        ...
