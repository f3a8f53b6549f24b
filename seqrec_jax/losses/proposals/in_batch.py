"""Negatives that the batch itself gives: other targets, and points around the target."""

import dataclasses

import gin
import jax

from seqrec_jax.data.split import TrainingLog
from seqrec_jax.errors import InputError


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Similarity:
    """The batch's targets, each as probable as it is similar; see `similarity`.

    Attributes:
        per_target: q depends on the sequence output.
    """

    per_target: bool = dataclasses.field(default=True, metadata={"static": True})


@gin.configurable
def similarity(log: TrainingLog) -> Similarity:
    """Targets of the batch, in proportion to (1 + cosine with the sequence output) / 2 (SRT: without a softmax).

    An item that is the target of several positions is as many times as probable; the own target is among them, and
    masked when it is drawn, as everywhere.

    Args:
        log: unused, as the batch is all that is drawn from.
    """
    del log
    return Similarity()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PositiveMixing:
    """Points around the target's embedding; see `positive_mixing`.

    Attributes:
        mixing_factor: their distance from it.
        per_target: False, as all targets may share the directions.
    """

    mixing_factor: float = dataclasses.field(metadata={"static": True})
    per_target: bool = dataclasses.field(default=False, metadata={"static": True})


@gin.configurable
def positive_mixing(log: TrainingLog, mixing_factor: float = 1.0) -> PositiveMixing:
    """The target's embedding plus a random direction of length `mixing_factor` (SRT); no items, so no logQ correction.

    Alone it sets no item against another, and ranks them no better than chance; the reference's own does not run.

    Args:
        log: unused, as nothing is drawn from the catalog.
        mixing_factor: distance from the target's embedding.

    Raises:
        InputError: mixing_factor is not above 0.
    """
    del log
    if mixing_factor <= 0:
        raise InputError(f"positive_mixing.mixing_factor = {mixing_factor} is not above 0")
    return PositiveMixing(mixing_factor)
