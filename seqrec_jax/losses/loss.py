"""What every loss is: two pure functions, one before the step's items are encoded and one after."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from seqrec_jax.losses.negatives import AnyProposal, Keys, Predictions
from seqrec_jax.losses.proposals.interface import Observed


class Loss(NamedTuple):
    """A training loss.

    Attributes:
        check: check(proposal, n_items, rows) refuses what cannot be drawn, with an InputError that names the binding.
        draw: draw(keys, observed, proposal) -> items to encode beside the batch's own, [1 or targets, n] int32, or
            None.
        losses: losses(keys, predictions, proposal) -> [targets] float32.
        whole_catalog: whether every item is to be encoded.
        scores_history: whether targets are set against their histories, though not every item is encoded.
    """

    check: Callable[[AnyProposal, int, int], None]
    draw: Callable[[Keys, Observed, AnyProposal], jax.Array | None]
    losses: Callable[[Keys, Predictions, AnyProposal], jax.Array]
    whole_catalog: bool = False
    scores_history: bool = False
