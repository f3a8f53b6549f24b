"""What stops a run before it goes wrong, or before it starts."""

import dataclasses

import gin

from seqrec_jax.errors import InputError
from seqrec_jax.host_memory import memory_bytes
from seqrec_jax.training.costs import device_bytes


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Guards:
    """Limits of a run.

    Attributes:
        max_hours: after which it writes a checkpoint and ends, with exit status 0; None for no limit.
        skip_nonfinite: steps whose loss or gradient may be infinite or not a number; they change nothing. At the next
            one the run stops.
        memory_limit: of a device, such as '8GB'; None for all that it has.
    """

    max_hours: float | None = None
    skip_nonfinite: int = 0
    memory_limit: str | int | None = None

    def __post_init__(self):
        if self.max_hours is not None and self.max_hours <= 0:
            raise InputError(f"MAX_HOURS = {self.max_hours} is not above 0")
        if self.skip_nonfinite < 0:
            raise InputError(f"Guards.skip_nonfinite = {self.skip_nonfinite} is below 0")

    def device_limit(self) -> int:
        """Bytes that a device may hold.

        Raises:
            InputError: memory_limit is no amount of memory.
        """
        if self.memory_limit is None:
            return device_bytes()
        return memory_bytes(self.memory_limit, "Guards.memory_limit")


def check_memory(step_bytes: int, limit: int) -> None:
    """Refuses a step that does not fit on a device.

    Args:
        step_bytes: what it takes, with what stays there between steps.
        limit: what a device has.

    Raises:
        InputError: saying what to bind.
    """
    if step_bytes > limit:
        raise InputError(
            f"a step needs {step_bytes / 1e9:.3g} GB of memory, but a device has {limit / 1e9:.3g} GB; bind "
            "pretrain.train_batch_size = 'auto' or lower it, or pretrain.accumulation_steps, or pretrain.rematerialize"
            " = True"
        )
