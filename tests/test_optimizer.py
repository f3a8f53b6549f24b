import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import shared_file

from seqrec_jax.errors import InputError
from seqrec_jax.training.optimizer import adam, adamw, one_cycle


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
