"""What a run is to do, where it stands, and what it tells."""

import dataclasses
from typing import NamedTuple

import gin
import numpy as np

from seqrec_jax.errors import InputError


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Reports:
    """What a run tells while it goes.

    Attributes:
        every_steps: steps between two lines of the log and of metrics.jsonl; losses are read from the device, and
            looked at, as often.
        trace: first and last step, counted from 1, of a profile that is written to RUN_DIR/trace, for Perfetto or
            XProf.
        fit_users: of whom each evaluation also tells the metrics on train (`train/...`, of their last training
            interaction) and the loss on valid (`valid/valid_loss`, over the same negatives each time); drawn at random,
            the same each time. 0 tells neither.
    """

    every_steps: int = 100
    trace: tuple[int, ...] = ()
    fit_users: int = 0

    def __post_init__(self):
        if self.every_steps < 1:
            raise InputError(f"Reports.every_steps = {self.every_steps} is below 1")
        if self.fit_users < 0:
            raise InputError(f"Reports.fit_users = {self.fit_users} is below 0")
        if self.trace and (len(self.trace) != 2 or not 1 <= self.trace[0] <= self.trace[1]):
            raise InputError(f"Reports.trace = {self.trace} is no pair of a first and a last step, such as (100, 105)")


@dataclasses.dataclass
class Progress:
    """Where a run stands: with the arrays, all that it needs in order to go on.

    Attributes:
        step: steps taken.
        epoch_loss: sum of the losses of the present epoch's steps, without those that were skipped.
        epoch_skipped: steps of the present epoch whose loss or gradient was not finite.
        skipped: such steps in all.
        seconds: of training, evaluations and checkpoints left out.
        waiting: seconds of those that the devices waited for data.
        saving: seconds that the loop waited for checkpoints.
        best_step: step of the best evaluation; 0 before the first.
        best_metrics: of validation, there.
        since_best: evaluations since then.
        ended: whether training is over.
    """

    step: int = 0
    epoch_loss: float = 0.0
    epoch_skipped: int = 0
    skipped: int = 0
    seconds: float = 0.0
    waiting: float = 0.0
    saving: float = 0.0
    best_step: int = 0
    best_metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    since_best: int = 0
    ended: bool = False


class Plan(NamedTuple):
    """What a run is to do.

    Attributes:
        epochs: at most.
        eval_every: epochs between evaluations; the last epoch is always evaluated.
        stopping_step: evaluations without a gain after which the run stops; 0 for never.
        valid_metric: `<metric>_at_<k>`, the one to gain in.
        skip_nonfinite: steps that may be skipped as their loss or gradient is not finite; 0 stops at the first.
        learning_rate: [steps], for the record.
        step_flops: of a step, over all devices.
        peak_flops: that the devices give in a second.
        epoch_tokens: text tokens of an epoch's interactions.
    """

    epochs: int
    eval_every: int
    stopping_step: int
    valid_metric: str
    skip_nonfinite: int
    learning_rate: np.ndarray
    step_flops: float
    peak_flops: float
    epoch_tokens: int
