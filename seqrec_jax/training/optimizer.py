"""The one-cycle schedule and the optimizers that follow it."""

from collections.abc import Callable
from typing import NamedTuple

import gin
import jax.numpy as jnp
import numpy as np
import optax

from seqrec_jax.errors import InputError


class Schedule(NamedTuple):
    """Values for every step of a run, made in double precision before it starts.

    Attributes:
        learning_rate: [steps] float64.
        b1: [steps] float64, Adam's first decay rate.
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


@gin.configurable
def constant(total_steps: int, learning_rate: float = 1e-3, b1: float = 0.9) -> Schedule:
    """The same learning rate and b1 at every step."""
    return Schedule(np.full(total_steps, learning_rate), np.full(total_steps, b1))


def _at_step(values: np.ndarray) -> Callable:
    table = np.asarray(values, np.float32)
    return lambda count: jnp.asarray(table)[jnp.minimum(count, len(table) - 1)]


def _scale_by_adam(schedule: Schedule, b2: float) -> optax.GradientTransformation:
    return optax.inject_hyperparams(lambda b1: optax.scale_by_adam(b1=b1, b2=b2))(b1=_at_step(schedule.b1))


def _clip(max_grad_norm: float | None) -> optax.GradientTransformation:
    if max_grad_norm is not None and max_grad_norm <= 0:
        raise InputError(f"max_grad_norm = {max_grad_norm} is not above 0; None switches clipping off")
    return optax.identity() if max_grad_norm is None else optax.clip_by_global_norm(max_grad_norm)


@gin.configurable
def adam(
    schedule: Schedule, b2: float = 0.999, weight_decay: float = 1e-5, max_grad_norm: float | None = None
) -> optax.GradientTransformation:
    """Adam with L2 coupled into the gradient, as PyTorch's Adam(weight_decay=...) has it; the reference's optimizer.

    Args:
        schedule: learning rate and b1 of every step.
        b2: second decay rate.
        weight_decay: times the parameters is added to the gradient.
        max_grad_norm: clips the gradient's global norm; None as in the reference's trainer.
    """
    return optax.chain(
        _clip(max_grad_norm),
        optax.add_decayed_weights(weight_decay),
        _scale_by_adam(schedule, b2),
        optax.scale_by_learning_rate(_at_step(schedule.learning_rate)),
    )


@gin.configurable
def adamw(
    schedule: Schedule, b2: float = 0.95, weight_decay: float = 0.01, max_grad_norm: float | None = None
) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101); weight_decay is times the learning rate of the step."""
    return optax.chain(
        _clip(max_grad_norm),
        _scale_by_adam(schedule, b2),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(_at_step(schedule.learning_rate)),
    )
