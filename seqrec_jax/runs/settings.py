"""Settings of a run that change nothing in what is learnt."""

import dataclasses

from seqrec_jax.describe import check_types
from seqrec_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """When a run writes checkpoints, beside those at each evaluation, and how many it keeps, beside the best one."""

    every_steps: int | None = None  # steps between checkpoints; None for none by steps
    every_minutes: float | None = 10.0  # minutes between checkpoints; None for none by time
    keep: int = 2  # latest checkpoints that are kept, at least 2, so that one is left where the last is damaged

    def __post_init__(self):
        check_types(self)
        for name, least in (("every_steps", 1), ("keep", 2)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"Checkpoints.{name} = {value} is below {least}")
        if self.every_minutes is not None and self.every_minutes <= 0:
            raise InputError(f"Checkpoints.every_minutes = {self.every_minutes} is not above 0")


@dataclasses.dataclass(frozen=True)
class Reports:
    """What a run reports while it trains.

    Of `fit_users` users, drawn at random but the same each time, each evaluation also reports the metrics on train
    (`train/...`, of their last training interaction) and the loss on valid (`valid/valid_loss`, over fixed negatives).
    """

    every_steps: int = 100  # steps between two lines of the log and of metrics.jsonl, and between checks of the losses
    trace: tuple[int, ...] = ()  # first and last step, from 1, of a profile in RUN_DIR/trace, for Perfetto or XProf
    fit_users: int = 0  # 0 reports neither

    def __post_init__(self):
        check_types(self)
        for name, least in (("every_steps", 1), ("fit_users", 0)):
            if getattr(self, name) < least:
                raise InputError(f"Reports.{name} = {getattr(self, name)} is below {least}")
        if self.trace and (len(self.trace) != 2 or not 1 <= self.trace[0] <= self.trace[1]):
            raise InputError(f"Reports.trace = {self.trace} is no pair of a first and a last step, such as (100, 105)")


@dataclasses.dataclass(frozen=True)
class Tracking:
    """Where a run is tracked in MLflow."""

    uri: str | None = "sqlite:///mlruns.sqlite"  # tracking store; None keeps nothing
    experiment: str = "seqrec_jax"
    run_name: str | None = None  # None lets MLflow choose one
    parent_run_id: str | None = None  # id of the run that this one is a part of
    patience: float = 60.0  # seconds that the end of a run waits for what is left to send

    def __post_init__(self):
        check_types(self)


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """Limits and reports of a run; nothing here changes what is learnt."""

    max_hours: float | None = None  # of training; then the run writes a checkpoint and ends, with exit status 0
    memory_limit: str | int | None = None  # memory of a device, such as '8GB'; None for all that it has
    checkpoints: Checkpoints = Checkpoints()
    reports: Reports = Reports()
    tracker: Tracking | None = None  # None for nowhere
    model_axis: int = 1  # devices, a divisor of all, that share the columns of the tables and of their optimizer state
    overwrite: bool = False  # remove the run that the folder holds and start afresh
    config_text: str | None = None  # configuration as people read it, written to config.gin; None writes none

    def __post_init__(self):
        check_types(self)
        if self.max_hours is not None and self.max_hours <= 0:
            raise InputError(f"RunSettings.max_hours = {self.max_hours} is not above 0")
        if self.model_axis < 1:
            raise InputError(f"RunSettings.model_axis = {self.model_axis} is below 1")
