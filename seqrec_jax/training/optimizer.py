"""Optimizers by Optax, each following a schedule: what is clipped, what decays, how fast each part learns."""

import re
from collections.abc import Callable
from typing import Any

import gin
import jax
import jax.numpy as jnp
import numpy as np
import optax

from seqrec_jax.errors import InputError
from seqrec_jax.training.schedules import Schedule

Names = Callable[[str], bool]
Rates = Callable[[str, int], float]


@gin.configurable
def every_parameter(name: str) -> bool:
    """Weight decay for all."""
    del name
    return True


@gin.configurable
def matrices(name: str) -> bool:
    """Weight decay for the linear maps and the tables, not for biases, norms and single numbers."""
    return "kernel" in name or "table" in name


@gin.configurable
def layerwise(name: str, n_layers: int, encoder: float = 0.1, positions: float = 0.1, norm: float = 0.1) -> float:
    """What share of the learning rate a parameter gets: block i of n learns at (i + 1) / n of it (DESIGN section 7).

    Args:
        name: of the parameter, such as `blocks/0/attention/query/kernel`.
        n_layers: blocks of the model.
        encoder: share of the item encoder.
        positions: share of the position table.
        norm: share of the first norm.
    """
    if block := re.match(r"blocks/(\d+)/", name):
        return (int(block[1]) + 1) / n_layers
    for start, share in (("item_encoder/", encoder), ("position_table", positions), ("norm/", norm)):
        if name.startswith(start):
            return share
    return 1.0


def _by_name(function: Callable[[str], Any]) -> Callable[[Any], Any]:
    """f(params) -> a tree of function(name)."""

    def of_tree(params: Any) -> Any:
        def of_leaf(path: tuple, leaf: Any) -> Any:
            del leaf
            return function(jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value"))

        return jax.tree_util.tree_map_with_path(of_leaf, params)

    return of_tree


def _at_step(values: np.ndarray) -> Callable:
    table = np.asarray(values, np.float32)
    return lambda count: jnp.asarray(table)[jnp.minimum(count, len(table) - 1)]


def _clip(max_grad_norm: float | None) -> optax.GradientTransformation:
    if max_grad_norm is not None and max_grad_norm <= 0:
        raise InputError(f"max_grad_norm = {max_grad_norm} is not above 0; None switches clipping off")
    return optax.identity() if max_grad_norm is None else optax.clip_by_global_norm(max_grad_norm)


def _scale_by_group(rates: Rates | None) -> optax.GradientTransformation:
    """Each update times its parameter's share of the learning rate."""
    if rates is None:
        return optax.identity()

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        names: list[str] = []
        _by_name(names.append)(updates)
        blocks = [int(match[1]) for name in names if (match := re.match(r"blocks/(\d+)/", name))]
        n_layers = max(blocks, default=0) + 1  # the lower ones may be frozen
        shares = _by_name(lambda name: rates(name, n_layers))(updates)
        return jax.tree.map(lambda value, share: value * share, updates, shares), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def _scale_by_adam(schedule: Schedule, b2: float) -> optax.GradientTransformation:
    return optax.inject_hyperparams(lambda b1: optax.scale_by_adam(b1=b1, b2=b2))(b1=_at_step(schedule.b1))


def _decoupled(
    schedule: Schedule,
    scale: optax.GradientTransformation,
    weight_decay: float,
    max_grad_norm: float | None,
    decayed: Names,
    rates: Rates | None,
) -> optax.GradientTransformation:
    """An optimizer whose weight decay stays out of its moments, and is times the learning rate of the step."""
    return optax.chain(
        _clip(max_grad_norm),
        scale,
        optax.add_decayed_weights(weight_decay, mask=_by_name(decayed)),
        _scale_by_group(rates),
        optax.scale_by_learning_rate(_at_step(schedule.learning_rate)),
    )


@gin.configurable
def adam(
    schedule: Schedule,
    b2: float = 0.999,
    weight_decay: float = 1e-5,
    max_grad_norm: float | None = None,
    decayed: Names = every_parameter,
    rates: Rates | None = None,
) -> optax.GradientTransformation:
    """Adam with L2 coupled into the gradient, as PyTorch's Adam(weight_decay=...) has it; the reference's optimizer.

    Args:
        schedule: learning rate and b1 of every step.
        b2: second decay rate.
        weight_decay: times the parameters is added to the gradient.
        max_grad_norm: clips the gradient's global norm; None as in the reference's trainer.
        decayed: which parameters decay, `every_parameter` or `matrices`.
        rates: each parameter's share of the learning rate, such as `layerwise`; None for all of it.
    """
    return optax.chain(
        _clip(max_grad_norm),
        optax.add_decayed_weights(weight_decay, mask=_by_name(decayed)),
        _scale_by_adam(schedule, b2),
        _scale_by_group(rates),
        optax.scale_by_learning_rate(_at_step(schedule.learning_rate)),
    )


@gin.configurable
def adamw(
    schedule: Schedule,
    b2: float = 0.95,
    weight_decay: float = 0.01,
    max_grad_norm: float | None = None,
    decayed: Names = every_parameter,
    rates: Rates | None = None,
) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101); weight_decay is times the learning rate of the step.

    See adam for the arguments.
    """
    return _decoupled(schedule, _scale_by_adam(schedule, b2), weight_decay, max_grad_norm, decayed, rates)


@gin.configurable
def lion(
    schedule: Schedule,
    b2: float = 0.99,
    weight_decay: float = 0.1,
    max_grad_norm: float | None = None,
    decayed: Names = every_parameter,
    rates: Rates | None = None,
) -> optax.GradientTransformation:
    """Lion (Chen et al., arXiv 2302.06675): half of Adam's state; wants a third to a tenth of its learning rate.

    See adam for the arguments; weight_decay is times the learning rate of the step.
    """
    scale = optax.inject_hyperparams(lambda b1: optax.scale_by_lion(b1=b1, b2=b2))(b1=_at_step(schedule.b1))
    return _decoupled(schedule, scale, weight_decay, max_grad_norm, decayed, rates)


@gin.configurable
def adafactor(
    schedule: Schedule,
    decay_rate: float = 0.8,
    weight_decay: float = 0.0,
    max_grad_norm: float | None = None,
    decayed: Names = every_parameter,
    rates: Rates | None = None,
) -> optax.GradientTransformation:
    """Adafactor (Shazeer and Stern, arXiv 1804.04235): a row and a column of second moments for each large matrix.

    Learning rates are relative to each parameter's own size, as in the paper. See adam for the other arguments;
    weight_decay is times the learning rate of the step.

    Args:
        schedule: learning rate of every step; its b1 is not used.
        decay_rate: exponent of the second moments' decay.
        weight_decay: see adamw.
        max_grad_norm: see adam.
        decayed: see adam.
        rates: see adam.
    """
    scale = optax.chain(
        optax.scale_by_factored_rms(decay_rate=decay_rate),
        optax.clip_by_block_rms(1.0),
        optax.scale_by_param_block_rms(),
    )
    return _decoupled(schedule, scale, weight_decay, max_grad_norm, decayed, rates)
