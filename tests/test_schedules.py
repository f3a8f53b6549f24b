"""Schedules: PyTorch's one-cycle, and what the others rise to and end at."""

import numpy as np
import pytest
from conftest import shared_file

from seqrec_jax.errors import InputError
from seqrec_jax.training.schedules import constant, one_cycle, warmup_cosine

STEPS = 100


def test_one_cycle_is_torchs():
    reference = np.load(shared_file("parity/one_cycle_adam.npz"))
    schedule = one_cycle(1000, 1e-4)
    np.testing.assert_allclose(schedule.learning_rate, reference["learning_rate"], rtol=1e-7)
    np.testing.assert_allclose(schedule.b1, reference["beta1"], rtol=1e-7)


@pytest.mark.parametrize("steps", [1, 2, 3, 77, 1001])
def test_one_cycle_rises_to_its_peak_and_ends_at_ten_times_its_start(steps):
    schedule = one_cycle(steps, 1e-3)
    assert np.isfinite(schedule.learning_rate).all()
    assert schedule.learning_rate.max() <= 1e-3
    if steps > 50:
        assert schedule.learning_rate[0] == pytest.approx(1e-3 / 25)
        assert schedule.learning_rate[-1] == pytest.approx(1e-2 / 25)
        assert abs(schedule.learning_rate.argmax() / steps - 0.3) < 0.02
        assert schedule.b1[schedule.learning_rate.argmax()] == pytest.approx(0.85, abs=1e-3)


def test_warmup_cosine_rises_over_its_share_and_falls_to_its_end():
    rate = warmup_cosine(STEPS, 1e-3, end=0.1).learning_rate
    assert rate.shape == (STEPS,)
    assert rate[:10] == pytest.approx(np.arange(1, 11) * 1e-4)
    assert rate.max() == pytest.approx(1e-3)
    middle = 0.1 + 0.9 * (1 + np.cos(np.pi * 45 / 89)) / 2
    assert rate[[10, 55, 99]] / 1e-3 == pytest.approx([1, middle, 0.1], rel=1e-4)
    assert warmup_cosine(STEPS, 1e-3, warmup=0.0).learning_rate[0] == pytest.approx(1e-3)
    for steps in (1, 2):
        assert np.isfinite(warmup_cosine(steps, 1e-3).learning_rate).all()


def test_a_warmup_that_is_no_share_is_refused():
    with pytest.raises(InputError, match=r"warmup_cosine.warmup = 10 is not in \[0, 1\)"):
        warmup_cosine(STEPS, 1e-3, warmup=10)


def test_a_constant_rate_leaves_b1_to_the_optimizer():
    schedule = constant(3, 1e-3)
    assert schedule.learning_rate.tolist() == [1e-3] * 3
    assert schedule.b1 is None
