"""Optimizers: PyTorch's Adam, decay, clipping, rates by group, skipped steps."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import shared_file

from seqrec_jax.errors import InputError
from seqrec_jax.training.config import TrainConfig
from seqrec_jax.training.optimizers import adam, adamw, build_optimizer, layerwise
from seqrec_jax.training.schedules import Schedule, constant, one_cycle, warmup_cosine

SHARES = {
    "item_encoder/tables/title": 0.1, "item_encoder/projection/kernel": 0.1, "position_table": 0.1, "norm/scale": 0.1,
    "blocks/0/attention/query/kernel": 0.5, "blocks/1/feed_forward/norm/bias": 1.0, "terms/repeat/offset": 1.0,
}  # fmt: skip


def params():
    rng = np.random.default_rng(0)
    return {name: jnp.asarray(rng.normal(size=(5, 3)), jnp.float32) for name in SHARES}


def train(optimizer, parameter, gradients):
    """The parameter after each gradient."""

    @jax.jit
    def step(parameter, state, gradient):
        updates, state = optimizer.update(gradient, state, parameter)
        return optax.apply_updates(parameter, updates), state

    state, after = optimizer.init(parameter), []
    for gradient in gradients:
        parameter, state = step(parameter, state, gradient)
        after.append(parameter)
    return after


def first_update(optimizer):
    """The first update for a gradient of ones, by name."""
    ones = jax.tree.map(jnp.ones_like, params())
    return jax.jit(optimizer.update)(ones, optimizer.init(ones), params())[0]


def test_one_cycle_adam_is_torchs():
    reference = np.load(shared_file("parity/one_cycle_adam.npz"))
    optimizer = adam(one_cycle(1000, 1e-4), weight_decay=1e-5)
    trajectory = train(optimizer, jnp.asarray(reference["initial"]), reference["gradients"])
    np.testing.assert_allclose(np.array(trajectory), reference["trajectory"], atol=1e-5)


def explicit_chain(optimizer: Callable, schedule: Schedule, b2: float, weight_decay: float):
    """The same optimizer of Optax's parts, its b1 a table too where the schedule has none."""
    rate, b1 = (
        np.asarray(values, np.float32)
        for values in (schedule.learning_rate, np.full(50, 0.9) if schedule.b1 is None else schedule.b1)
    )
    scale = optax.inject_hyperparams(lambda b1: optax.scale_by_adam(b1=b1, b2=b2))(b1=lambda n: jnp.asarray(b1)[n])
    decay = optax.add_decayed_weights(weight_decay)
    parts = (decay, scale) if optimizer is adam else (scale, decay)
    return optax.chain(*parts, optax.scale_by_learning_rate(lambda n: jnp.asarray(rate)[n]))


@pytest.mark.parametrize("schedule", [one_cycle, warmup_cosine])
@pytest.mark.parametrize(("optimizer", "b2", "weight_decay"), [(adam, 0.999, 1e-2), (adamw, 0.98, 0.01)])
def test_optimizers_are_optaxs_parts_bit_for_bit(optimizer, b2, weight_decay, schedule):
    values, rng = schedule(50, 1e-2), np.random.default_rng(0)
    gradients = [{name: rng.normal(size=(5, 3)).astype(np.float32) for name in params()} for _ in range(50)]
    ours = optimizer(values, b2=b2, weight_decay=weight_decay)
    theirs = explicit_chain(optimizer, values, b2, weight_decay)
    for one, other in zip(*(train(made, params(), gradients) for made in (ours, theirs)), strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_adamw_decays_parameters_apart_from_the_gradient():
    optimizer = adamw(one_cycle(10, 1e-4), weight_decay=0.5)
    parameter = jnp.array([2.0])
    update, _ = optimizer.update(jnp.array([0.0]), optimizer.init(parameter), parameter)
    assert float(update[0]) == pytest.approx(-1e-4 / 25 * 0.5 * 2.0)


def test_layerwise_rates_are_those_of_the_design():
    optimizer, schedule = functools.partial(adam, weight_decay=0.0), constant(3, 1e-3)
    whole = first_update(build_optimizer(TrainConfig(optimizer=optimizer), schedule))
    parts = first_update(build_optimizer(TrainConfig(optimizer=optimizer, group_rates=layerwise), schedule))
    for name, share in SHARES.items():
        np.testing.assert_allclose(parts[name], share * whole[name], rtol=1e-6)


@pytest.mark.parametrize(("norm", "words"), [(0, "not above 0"), (-1.0, "not above 0"), (float("nan"), "not finite")])
def test_a_clipping_norm_that_is_not_above_zero_is_refused(norm, words):
    with pytest.raises(InputError, match=rf"TrainConfig\.max_grad_norm = {norm} is {words}"):
        TrainConfig(max_grad_norm=norm)


def test_gradients_are_clipped_by_their_global_norm():
    def sgd(schedule):
        return optax.sgd(1.0)

    clipped = first_update(build_optimizer(TrainConfig(optimizer=sgd, max_grad_norm=2.0), one_cycle(10, 1e-4)))
    assert float(optax.global_norm(clipped)) == pytest.approx(2.0)


def test_steps_that_are_not_finite_change_nothing_however_many():
    gradient = jax.tree.map(jnp.ones_like, params())
    broken = gradient | {"norm/scale": gradient["norm/scale"].at[0, 0].set(jnp.nan)}
    optimizer = build_optimizer(TrainConfig(skip_nonfinite=2), constant(10, 1e-2))
    plain = build_optimizer(TrainConfig(), constant(10, 1e-2))
    mixed = train(optimizer, params(), [gradient, *[broken] * 5, gradient])
    expected = train(plain, params(), [gradient] * 2)
    for name in params():
        np.testing.assert_array_equal(mixed[5][name], expected[0][name])
        np.testing.assert_array_equal(mixed[6][name], expected[1][name])


@pytest.mark.parametrize("optimizer", [adam, adamw])
def test_every_optimizer_clips_and_lowers_a_loss(optimizer):
    start = params()
    target = jax.tree.map(lambda array: array + 0.1, start)

    def loss(params):
        return sum(jnp.sum((params[name] - target[name]) ** 2) for name in params)

    made = build_optimizer(TrainConfig(optimizer=optimizer, max_grad_norm=1.0), constant(50, 1e-2))

    @jax.jit
    def step(params, state):
        updates, state = made.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    now, state = start, made.init(start)
    for _ in range(50):
        now, state = step(now, state)
    assert loss(now) < 0.9 * loss(start)
