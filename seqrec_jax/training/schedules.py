"""Learning rates for every step of a run."""

from typing import NamedTuple

import numpy as np
import optax

from seqrec_jax.errors import InputError

B1_HIGH, B1_LOW = 0.95, 0.85  # Adam's b1 in PyTorch's one-cycle: at the start and the end, and at the peak


class Schedule(NamedTuple):
    """Values for every step of a run, [steps] float64 each, made before it starts."""

    learning_rate: np.ndarray
    b1: np.ndarray | None = None  # first decay rate of Adam; None leaves it to the optimizer


def _one_cycle_curve(total_steps: int, start: float, peak: float, end: float, rise: float) -> np.ndarray:
    """Cosine from start to peak over `rise` of the steps, then to end: [total_steps] float64."""
    last, top, step = total_steps - 1, max(rise * total_steps - 1, 1e-9), np.arange(total_steps, dtype=np.float64)

    def anneal(first, second, share):
        return second + (first - second) / 2 * (1 + np.cos(np.pi * share))

    falling = np.clip((step - top) / max(last - top, 1e-9), 0, 1)
    return np.where(step <= top, anneal(start, peak, step / top), anneal(peak, end, falling))


def one_cycle(
    total_steps: int, learning_rate: float, rise: float = 0.3, div_factor: float = 25.0, final_div_factor: float = 0.1
) -> Schedule:
    """PyTorch's OneCycleLR with cosine annealing (Smith and Topin, arXiv 1708.07120), Adam's b1 cycling against it.

    It starts at learning_rate / div_factor, peaks at learning_rate after the share `rise` of the steps, and ends at the
    start divided by final_div_factor (0.1: at ten times the start). Optax's cosine_onecycle_schedule puts the peak a
    step later and keeps b1 fixed, so it is not the reference's.
    """
    start = learning_rate / div_factor
    rates = _one_cycle_curve(total_steps, start, learning_rate, start / final_div_factor, rise)
    return Schedule(rates, _one_cycle_curve(total_steps, B1_HIGH, B1_LOW, B1_HIGH, rise))


def warmup_cosine(total_steps: int, learning_rate: float, warmup: float = 0.1, end: float = 0.0) -> Schedule:
    """A linear rise from 0, then a cosine to a share of the peak (Loshchilov and Hutter, arXiv 1608.03983).

    `warmup` is the share of the steps until the peak, or an InputError; `end`, the last rate as a share of the peak.
    """
    if not 0 <= warmup < 1:
        raise InputError(f"warmup_cosine.warmup = {warmup} is not in [0, 1): it is a share of the steps")
    n_rising = round(warmup * total_steps)
    rise = optax.linear_schedule(learning_rate / max(1, n_rising), learning_rate, max(1, n_rising - 1))
    fall = optax.cosine_decay_schedule(learning_rate, max(1, total_steps - n_rising - 1), alpha=end)
    curve = optax.join_schedules([rise, fall], [n_rising])
    return Schedule(np.asarray(curve(np.arange(total_steps)), np.float64))


def constant(total_steps: int, learning_rate: float) -> Schedule:
    """The same learning rate at every step."""
    return Schedule(np.full(total_steps, learning_rate))
