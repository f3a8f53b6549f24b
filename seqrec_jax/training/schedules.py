"""Learning rates for every step of a run."""

from collections.abc import Callable
from typing import NamedTuple

import gin
import numpy as np
import optax

from seqrec_jax.errors import InputError


class Schedule(NamedTuple):
    """Values for every step of a run, made before it starts.

    Attributes:
        learning_rate: [steps] float64.
        b1: [steps] float64, the first decay rate of Adam and Lion.
    """

    learning_rate: np.ndarray
    b1: np.ndarray


def _one_cycle_curve(total_steps: int, start: float, peak: float, end: float, rise: float) -> np.ndarray:
    """Cosine from start to peak over `rise` of the steps, then to end: [total_steps] float64."""
    last = total_steps - 1
    top = max(rise * total_steps - 1, 1e-9)
    step = np.arange(total_steps, dtype=np.float64)

    def anneal(first, second, share):
        return second + (first - second) / 2 * (1 + np.cos(np.pi * share))

    falling = np.clip((step - top) / max(last - top, 1e-9), 0, 1)
    return np.where(step <= top, anneal(start, peak, step / top), anneal(peak, end, falling))


@gin.configurable
def one_cycle(
    total_steps: int,
    learning_rate: float = 1e-4,
    rise: float = 0.3,
    div_factor: float = 25.0,
    final_div_factor: float = 0.1,
    b1_high: float = 0.95,
    b1_low: float = 0.85,
) -> Schedule:
    """PyTorch's OneCycleLR with cosine annealing (Smith and Topin, arXiv 1708.07120), Adam's b1 cycling against it.

    Optax's cosine_onecycle_schedule puts the peak a step later and keeps b1 fixed, so it is not the reference's.

    Args:
        total_steps: of the run.
        learning_rate: the peak.
        rise: share of the steps until the peak.
        div_factor: the run starts at learning_rate / div_factor.
        final_div_factor: and ends at that divided by final_div_factor (0.1: at ten times the start).
        b1_high: Adam's b1 at the start and the end.
        b1_low: Adam's b1 at the peak.
    """
    start = learning_rate / div_factor
    return Schedule(
        _one_cycle_curve(total_steps, start, learning_rate, start / final_div_factor, rise),
        _one_cycle_curve(total_steps, b1_high, b1_low, b1_high, rise),
    )


def _after_warmup(
    name: str, total_steps: int, learning_rate: float, warmup: float, b1: float, tail: Callable[[int], optax.Schedule]
) -> Schedule:
    """A linear rise from 0 over a share of the steps, then `tail` of the steps left."""
    if not 0 <= warmup < 1:
        raise InputError(f"{name}.warmup = {warmup} is not in [0, 1): it is a share of the steps")
    n_rising = round(warmup * total_steps)
    rise = optax.linear_schedule(learning_rate / max(1, n_rising), learning_rate, max(1, n_rising - 1))
    curve = optax.join_schedules([rise, tail(max(1, total_steps - n_rising - 1))], [n_rising])
    return Schedule(np.asarray(curve(np.arange(total_steps)), np.float64), np.full(total_steps, b1))


@gin.configurable
def warmup_cosine(
    total_steps: int, learning_rate: float = 1e-3, warmup: float = 0.1, end: float = 0.0, b1: float = 0.9
) -> Schedule:
    """A linear rise, then a cosine to a share of the peak (Loshchilov and Hutter, arXiv 1608.03983).

    Args:
        total_steps: of the run.
        learning_rate: the peak.
        warmup: share of the steps until the peak.
        end: the last learning rate, as a share of the peak.
        b1: of every step.
    """
    return _after_warmup(
        "warmup_cosine", total_steps, learning_rate, warmup, b1,
        lambda steps: optax.cosine_decay_schedule(learning_rate, steps, alpha=end),
    )  # fmt: skip


@gin.configurable
def warmup_linear(
    total_steps: int, learning_rate: float = 1e-3, warmup: float = 0.1, end: float = 0.0, b1: float = 0.9
) -> Schedule:
    """A linear rise, then a straight line to a share of the peak; see warmup_cosine for the arguments."""
    return _after_warmup(
        "warmup_linear", total_steps, learning_rate, warmup, b1,
        lambda steps: optax.linear_schedule(learning_rate, learning_rate * end, steps),
    )  # fmt: skip


@gin.configurable
def warmup_constant(total_steps: int, learning_rate: float = 1e-3, warmup: float = 0.1, b1: float = 0.9) -> Schedule:
    """A linear rise, then the same learning rate; see warmup_cosine for the arguments."""
    return _after_warmup(
        "warmup_constant", total_steps, learning_rate, warmup, b1, lambda _: optax.constant_schedule(learning_rate)
    )


@gin.configurable
def constant(total_steps: int, learning_rate: float = 1e-3, b1: float = 0.9) -> Schedule:
    """The same learning rate and b1 at every step."""
    return Schedule(np.full(total_steps, learning_rate), np.full(total_steps, b1))


def scaled(schedule: Schedule, batch_size: int, reference_batch_size: int | None, scaling: str) -> Schedule:
    """A schedule for another batch size than the one that its learning rate was chosen for.

    Args:
        schedule: for the reference.
        batch_size: targets of a step.
        reference_batch_size: targets of a step that the learning rate is meant for; None leaves it as it is.
        scaling: `sqrt`, which suits Adam and its like (Malladi et al., arXiv 2205.10287), or `linear` (Goyal et al.,
            arXiv 1706.02677).

    Raises:
        InputError: another scaling.
    """
    if scaling not in ("sqrt", "linear"):
        raise InputError(f"pretrain.learning_rate_scaling = {scaling!r} is neither 'sqrt' nor 'linear'")
    if reference_batch_size is None:
        return schedule
    ratio = batch_size / reference_batch_size
    return schedule._replace(learning_rate=schedule.learning_rate * (ratio**0.5 if scaling == "sqrt" else ratio))
