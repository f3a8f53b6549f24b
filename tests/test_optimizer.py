import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import shared_file

from seqrec_jax.errors import InputError
from seqrec_jax.model import parameters
from seqrec_jax.model.recommender import Architecture, build
from seqrec_jax.training.optimizer import adafactor, adam, adamw, layerwise, lion, matrices
from seqrec_jax.training.schedules import constant, one_cycle, scaled, warmup_constant, warmup_cosine, warmup_linear


def test_one_cycle_adam_is_torchs():
    reference = np.load(shared_file("parity/one_cycle_adam.npz"))
    schedule = one_cycle(1000, learning_rate=1e-4)
    np.testing.assert_allclose(schedule.learning_rate, reference["learning_rate"], rtol=1e-7)
    np.testing.assert_allclose(schedule.b1, reference["beta1"], rtol=1e-7)
    optimizer = adam(schedule, weight_decay=1e-5)
    parameter = jnp.asarray(reference["initial"])
    state = optimizer.init(parameter)

    @jax.jit
    def step(parameter, state, gradient):
        update, state = optimizer.update(gradient, state, parameter)
        return optax.apply_updates(parameter, update), state

    for gradient, expected in zip(reference["gradients"], reference["trajectory"], strict=True):
        parameter, state = step(parameter, state, gradient)
        np.testing.assert_allclose(parameter, expected, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 3, 77, 1001])
def test_one_cycle_rises_to_its_peak_and_ends_at_ten_times_its_start(steps):
    schedule = one_cycle(steps, learning_rate=1e-3)
    assert np.isfinite(schedule.learning_rate).all()
    assert schedule.learning_rate.max() <= 1e-3
    if steps > 50:
        assert schedule.learning_rate[0] == pytest.approx(1e-3 / 25)
        assert schedule.learning_rate[-1] == pytest.approx(1e-2 / 25)
        assert abs(schedule.learning_rate.argmax() / steps - 0.3) < 0.02
        assert schedule.b1[schedule.learning_rate.argmax()] == pytest.approx(0.85, abs=1e-3)


def test_adamw_decays_parameters_apart_from_the_gradient():
    optimizer = adamw(one_cycle(10), weight_decay=0.5)
    parameter = jnp.array([2.0])
    update, _ = optimizer.update(jnp.array([0.0]), optimizer.init(parameter), parameter)
    assert float(update[0]) == pytest.approx(-1e-4 / 25 * 0.5 * 2.0)


def test_a_clipping_norm_of_zero_is_refused():
    with pytest.raises(InputError, match="max_grad_norm"):
        adam(one_cycle(10), max_grad_norm=0)


STEPS = 100


def shape(schedule):
    rate = schedule.learning_rate
    assert rate.shape == (STEPS,)
    assert rate[:10] == pytest.approx(np.arange(1, 11) * 1e-4)
    assert rate.max() == pytest.approx(1e-3)
    return rate[[10, 55, 99]] / 1e-3


def test_schedules_rise_over_their_share_and_have_their_tails():
    assert shape(warmup_constant(STEPS)) == pytest.approx([1, 1, 1])
    assert shape(warmup_linear(STEPS, end=0.1)) == pytest.approx([1, 1 - 0.9 * 45 / 89, 0.1], rel=1e-4)
    cosine = 0.1 + 0.9 * (1 + np.cos(np.pi * 45 / 89)) / 2
    assert shape(warmup_cosine(STEPS, end=0.1)) == pytest.approx([1, cosine, 0.1], rel=1e-4)
    assert warmup_cosine(STEPS, warmup=0.0).learning_rate[0] == pytest.approx(1e-3)
    for steps in (1, 2):
        assert np.isfinite(warmup_linear(steps).learning_rate).all()
    with pytest.raises(InputError, match=r"warmup_linear.warmup = 10 is not in \[0, 1\)"):
        warmup_linear(STEPS, warmup=10)


def test_the_learning_rate_is_scaled_to_the_batch_as_bound():
    schedule = constant(3, learning_rate=1e-3)
    for scaling, batch, expected in (("sqrt", 512, 2e-3), ("linear", 512, 4e-3), ("sqrt", 32, 5e-4)):
        assert scaled(schedule, batch, 128, scaling).learning_rate[0] == pytest.approx(expected)
    assert scaled(schedule, 512, None, "sqrt") is schedule
    with pytest.raises(InputError, match=r"pretrain\.learning_rate_scaling = 'log'"):
        scaled(schedule, 512, None, "log")


@pytest.fixture(scope="module")
def params():
    return build(Architecture(n_layers=2, hidden_size=16, embedding_size=8), {"title": 200}, seed=0)[1]


def first_update(optimizer, params):
    """The first update for a gradient of ones, by name."""
    ones = jax.tree.map(jnp.ones_like, params)
    updates, _ = jax.jit(optimizer.update)(ones, optimizer.init(params), params)
    return {name: np.asarray(array) for name, array in parameters.named(updates).items()}


def test_layerwise_rates_are_those_of_the_design(params):
    whole = first_update(adam(constant(3), weight_decay=0.0), params)
    parts = first_update(adam(constant(3), weight_decay=0.0, rates=layerwise), params)
    shares = {
        "item_encoder/tables/title": 0.1, "item_encoder/projection/kernel": 0.1, "position_table": 0.1,
        "norm/scale": 0.1, "blocks/0/attention/query/kernel": 0.5, "blocks/1/feed_forward/norm/bias": 1.0,
    }  # fmt: skip
    for name, share in shares.items():
        np.testing.assert_allclose(parts[name], share * whole[name], rtol=1e-6)


@pytest.mark.parametrize("optimizer", [adam, adamw, lion, adafactor])
def test_weight_decay_leaves_out_what_is_not_bound(params, optimizer):
    without = first_update(optimizer(constant(3), weight_decay=0.0), params)
    everything = first_update(optimizer(constant(3), weight_decay=0.5), params)
    some = first_update(optimizer(constant(3), weight_decay=0.5, decayed=matrices), params)
    for name in without:
        decays = "kernel" in name or "table" in name
        np.testing.assert_array_equal(some[name], (everything if decays else without)[name])
    if optimizer is not adam:
        assert all((everything[name] != without[name]).any() for name in without if "kernel" in name)


@pytest.mark.parametrize("optimizer", [adam, adamw, lion, adafactor])
def test_every_optimizer_clips_and_lowers_a_loss(params, optimizer):
    made = optimizer(constant(200, learning_rate=1e-2), max_grad_norm=1.0)
    target = jax.tree.map(lambda array: array + 0.1, params)

    def loss(params):
        return sum(jnp.sum((a - b) ** 2) for a, b in zip(*map(jax.tree.leaves, (params, target)), strict=True))

    @jax.jit
    def step(params, state):
        updates, state = made.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state, now = made.init(params), params
    for _ in range(50):
        now, state = step(now, state)
    assert loss(now) < 0.9 * loss(params)
