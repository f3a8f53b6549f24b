"""Optimizers by Optax that follow a schedule, and what is put around them: clipping, rates by group, skipped steps."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from seqrec_jax.training.schedules import Schedule


def _follow(
    schedule: Schedule, b1: float, make: Callable[[Any, Any], optax.GradientTransformation]
) -> optax.GradientTransformation:
    """make(learning_rate, b1) with the values of each step; b1 where the schedule has none."""

    def at_step(values: np.ndarray) -> optax.Schedule:
        table = np.asarray(values, np.float32)
        return lambda count: jnp.asarray(table)[jnp.minimum(count, len(table) - 1)]

    b1_at_step = b1 if schedule.b1 is None else at_step(schedule.b1)
    return optax.inject_hyperparams(make)(at_step(schedule.learning_rate), b1_at_step)


def adam(
    schedule: Schedule, b1: float = 0.9, b2: float = 0.999, weight_decay: float = 1e-5
) -> optax.GradientTransformation:
    """Adam with L2 coupled into the gradient, as PyTorch's Adam(weight_decay=...) has it; the reference's optimizer.

    weight_decay times the parameters is added to the gradient; b1 is taken where the schedule has none.
    """
    decay = optax.add_decayed_weights(weight_decay)
    return _follow(schedule, b1, lambda learning_rate, b1: optax.chain(decay, optax.adam(learning_rate, b1, b2)))


def adamw(
    schedule: Schedule, b1: float = 0.9, b2: float = 0.95, weight_decay: float = 0.01
) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101).

    weight_decay times the step's learning rate is taken off every parameter; b1 is taken where the schedule has none.
    """
    return _follow(
        schedule, b1, lambda learning_rate, b1: optax.adamw(learning_rate, b1, b2, weight_decay=weight_decay)
    )


def layerwise(name: str, n_layers: int) -> float:
    """Share of the learning rate for the parameter of a name such as `blocks/0/attention/query/kernel`.

    Block i of n learns at (i + 1) / n of it; the item encoder, the positions and the first norm at a tenth.
    """
    head, _, rest = name.partition("/")
    if head == "blocks":
        return (int(rest.partition("/")[0]) + 1) / n_layers
    return 0.1 if head in ("item_encoder", "position_table", "norm") else 1.0


def build_optimizer(config: Any, schedule: Schedule) -> optax.GradientTransformation:
    """The optimizer of a TrainConfig, of which it reads optimizer, max_grad_norm, group_rates and skip_nonfinite."""

    def scale_by_group(updates: dict[str, jax.Array], _: Any) -> dict[str, jax.Array]:
        blocks = [int(name.split("/")[1]) for name in updates if name.startswith("blocks/")]
        n_layers = max(blocks, default=0) + 1  # the lower ones may be frozen
        return {name: update * config.group_rates(name, n_layers) for name, update in updates.items()}

    parts = [config.optimizer(schedule)]
    if config.max_grad_norm is not None:
        parts.insert(0, optax.clip_by_global_norm(config.max_grad_norm))
    if config.group_rates is not None:
        parts.append(optax.stateless(scale_by_group))
    optimizer = optax.chain(*parts)
    # The run is stopped when too many steps were skipped; no step that is not finite is ever applied.
    return optax.apply_if_finite(optimizer, np.iinfo(np.int32).max) if config.skip_nonfinite else optimizer
