import numpy as np
import pytest
from scipy.optimize import check_grad
from scipy.stats import exponnorm

from seqrec_jax.errors import InputError
from seqrec_jax.scaling.frontier import (
    ENVELOPE,
    REGRESSION,
    STOCHASTIC,
    Frontier,
    Points,
    _above,
    _errors,
    _ln_density,
    best_method,
    best_reference,
    envelope,
    envelope_of,
    fit,
    frontier_of,
    points_of,
)
from seqrec_jax.scaling.laws import laws
from seqrec_jax.scaling.run_table import Curve

RISING = {law.name: law for law in laws(1)}
TRUE = {
    "power": np.array([np.log(0.05), 0.12]),
    "log_linear": np.array([0.1, 0.012]),
    "power_with_offset": np.array([0.16, np.log(0.06), np.log(0.15)]),
    "sigmoid": np.array([np.log(0.18), np.log(0.5), 0.0, 0.01]),
}
FALLING = {
    "power": np.array([np.log(2.0), -0.12]),
    "log_linear": np.array([4.0, -0.12]),
    "power_with_offset": np.array([2.0, np.log(1.5), np.log(0.15)]),
    "sigmoid": np.array([np.log(3.0), np.log(0.5), 0.0, 5.0]),
}


def points_on(law, theta, sign=1, noise=0.0, inefficiency=0.0, seed=0, n_runs=40, n_evaluations=8):
    rng = np.random.default_rng(seed)
    z = (rng.uniform(-5, 2, n_runs)[:, None] + np.log(np.arange(1, n_evaluations + 1))).ravel()
    lost = np.repeat(rng.exponential(inefficiency, n_runs) if inefficiency else np.zeros(n_runs), n_evaluations)
    values = law.evaluate(theta, z) * np.exp(rng.normal(0, noise, len(z)) - sign * lost)
    return Points(np.repeat(np.arange(n_runs), n_evaluations), z, values, 30.0, sign)


def frontier(law, method, points):
    return frontier_of(points, method, fit(law, envelope_of(points)))


def test_the_envelope_holds_what_is_better_than_all_of_less_compute():
    points = Points(np.arange(5), np.array([3.0, 1.0, 2.0, 4.0, 4.0]), np.array([0.2, 0.1, 0.05, 0.3, 0.4]), 0.0, 1)
    np.testing.assert_array_equal(envelope(points), [1, 0, 4])
    np.testing.assert_array_equal(envelope(points._replace(sign=-1)), [1, 2])


@pytest.mark.parametrize("name", RISING)
def test_a_law_without_noise_is_found_again(name):
    law, theta = RISING[name], TRUE[name]
    fitted = fit(law, envelope_of(points_on(law, theta)))
    z = np.linspace(-6, 9, 20)
    np.testing.assert_allclose(law.evaluate(fitted.theta, z), law.evaluate(theta, z), rtol=2e-3)


@pytest.mark.parametrize("name", FALLING)
def test_a_metric_that_falls_has_the_same_laws(name):
    law = {law.name: law for law in laws(-1)}[name]
    points = points_on(law, FALLING[name], sign=-1)
    assert (np.diff(points.values[np.argsort(points.z)]) <= 0).all()
    fitted = fit(law, envelope_of(points))
    z = np.linspace(-5, 5, 20)
    np.testing.assert_allclose(law.evaluate(fitted.theta, z), law.evaluate(FALLING[name], z), rtol=2e-3)


@pytest.mark.parametrize("name", RISING)
def test_named_parameters_are_those_of_the_formula(name):
    named, centre, z = RISING[name].named(TRUE[name], 30.0), 30.0, np.linspace(-3, 3, 7)
    compute = np.exp(z + centre)
    formula = {
        "power": lambda scale, exponent: scale * compute**exponent,
        "log_linear": lambda intercept, slope: intercept + slope * np.log(compute),
        "power_with_offset": lambda limit, scale, exponent: limit - scale * compute**-exponent,
        "sigmoid": lambda amplitude, rate, midpoint, offset: (
            amplitude / (1 + np.exp(-rate * (np.log(compute) - midpoint))) + offset
        ),
    }[name]
    np.testing.assert_allclose(formula(**named), RISING[name].evaluate(TRUE[name], z), rtol=1e-9)


def test_the_density_of_noise_less_inefficiency_is_scipys():
    distance, noise, inefficiency = np.linspace(-0.5, 0.1, 50), 0.02, 0.1
    expected = exponnorm(inefficiency / noise, scale=noise)
    density, slope = _ln_density(distance, noise, inefficiency)
    np.testing.assert_allclose(density, expected.logpdf(-distance), rtol=1e-8)
    np.testing.assert_allclose(_above(distance, noise, inefficiency), expected.cdf(-distance), atol=1e-9)
    around = [_ln_density(distance + step, noise, inefficiency)[0] for step in (-1e-6, 1e-6)]
    np.testing.assert_allclose(slope, (around[1] - around[0]) / 2e-6, rtol=1e-4)


@pytest.mark.parametrize("name", RISING)
def test_scores_are_the_derivatives_of_the_likelihood(name):
    law, theta = RISING[name], TRUE[name]
    of = frontier(law, STOCHASTIC, points_on(law, theta, noise=0.02))
    at = np.concatenate([theta * 1.01, np.log([0.02, 0.05])])
    error = check_grad(lambda x: _errors(law, of, x)[0].mean(), lambda x: _errors(law, of, x)[1].mean(0), at)
    assert error < 1e-3 * np.linalg.norm(_errors(law, of, at)[1].mean(0))


def mean_error(method, inefficiency):
    law, theta, z = RISING["power_with_offset"], TRUE["power_with_offset"], np.linspace(-4, 4, 9)
    found = [
        fit(law, frontier(law, method, points_on(law, theta, noise=0.02, inefficiency=inefficiency, seed=seed)))
        for seed in range(6)
    ]
    return np.mean([np.log(law.evaluate(of.theta, z) / law.evaluate(theta, z)) for of in found])


def test_the_stochastic_frontier_is_not_drawn_up_by_lucky_noise():
    assert mean_error(ENVELOPE, 0.0) > 0.02
    assert abs(mean_error(STOCHASTIC, 0.0)) < 0.005
    assert abs(mean_error(REGRESSION, 0.0)) < 0.002
    assert abs(mean_error(STOCHASTIC, 0.1)) < 0.02


def test_noise_and_inefficiency_are_told():
    law = RISING["log_linear"]
    points = points_on(law, TRUE["log_linear"], noise=0.02, inefficiency=0.06, n_runs=200)
    fitted = fit(law, frontier(law, STOCHASTIC, points))
    assert fitted.noise == pytest.approx(0.02, rel=0.2)
    assert fitted.inefficiency == pytest.approx(0.06, rel=0.3)


def test_the_method_is_what_the_data_can_tell():
    law, rng = RISING["log_linear"], np.random.default_rng(0)
    points = points_on(law, TRUE["log_linear"], noise=0.001)
    assert best_method(points, fit(law, envelope_of(points))) == REGRESSION
    lower = points_on(law, TRUE["log_linear"], noise=0.01, inefficiency=0.05)
    assert best_method(lower, fit(law, envelope_of(lower))) == STOCHASTIC
    even = points._replace(values=points.values * np.exp(-rng.uniform(0, 1, len(points.values))))
    assert best_method(even, fit(law, envelope_of(even))) == ENVELOPE


def test_computes_at_which_training_has_hardly_begun_are_left_out():
    values, compute = np.array([0.001, 0.02, 0.1, 0.009]), np.array([1e10, 1e11, 1e12, 1e13])
    curve = Curve("a", {}, np.arange(1.0, 5), values, compute, "a")
    points = points_of([curve], 1, 0.1)
    np.testing.assert_allclose(points.values, [0.02, 0.1, 0.009])
    np.testing.assert_allclose(np.exp(points.z + points.centre), [1e11, 1e12, 1e13])
    assert len(points_of([curve], -1, 0.1).z) == 4


def test_runs_drawn_twice_are_there_twice():
    points = Points(np.array([0, 0, 1]), np.array([1.0, 2.0, 3.0]), np.array([0.1, 0.2, 0.3]), 0.0, 1)
    drawn = points.of([1, 0, 1])
    np.testing.assert_array_equal(drawn.z, [3, 1, 2, 3])
    np.testing.assert_array_equal(drawn.runs, [0, 1, 1, 2])


def test_a_metric_that_goes_the_other_way_is_refused_by_forms_that_cannot():
    z = np.linspace(0, 5, 20)
    falling = Points(np.arange(20), z, np.exp(-z), 0.0, 1)
    for name in ("power_with_offset", "sigmoid"):
        with pytest.raises(InputError, match=f"{name} cannot be fitted, as it rises with compute"):
            fit(RISING[name], Frontier(REGRESSION, falling, np.full(20, -np.inf)))


def test_too_few_points_for_a_law_are_refused():
    points = Points(np.arange(3), np.array([1.0, 2.0, 3.0]), np.array([0.1, 0.2, 0.3]), 0.0, 1)
    with pytest.raises(InputError, match="3 points of distinct compute, too few for the 3 parameters"):
        fit(RISING["power_with_offset"], Frontier(ENVELOPE, points, np.full(3, -np.inf)))
    assert best_reference(points, laws(1)).law.n_parameters == 2
    with pytest.raises(InputError, match="the envelope has 1 points, and a law needs at least 3"):
        best_reference(points.within(0, 1.5), laws(1))
