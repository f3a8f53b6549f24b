import numpy as np
import pytest
from test_frontier import RISING, TRUE, points_on
from threadpoolctl import threadpool_limits

from seqrec_jax.errors import InputError
from seqrec_jax.scaling.forecast import cuts_of, interval, percentiles, study_frontier
from seqrec_jax.scaling.frontier import (
    ENVELOPE,
    REGRESSION,
    STOCHASTIC,
    Points,
    best_method,
    best_reference,
    envelope_of,
    fit,
    frontier_of,
)
from seqrec_jax.scaling.laws import laws


def test_intervals_of_the_envelope_are_moved_to_the_value():
    drawn = np.linspace(0.8, 1.0, 101)[:, None]
    low, high = interval(np.array([1.0]), drawn, ENVELOPE)
    np.testing.assert_allclose([low[0], high[0]], [0.905, 1.095])
    low, high = interval(np.array([0.9]), drawn, STOCHASTIC)
    np.testing.assert_allclose([low[0], high[0]], [0.805, 0.995])


def test_percentiles_go_a_little_beyond_95_of_100():
    assert percentiles(10**6, 2) == pytest.approx((2.5, 97.5), abs=1e-3)
    low, high = percentiles(20, 3)
    assert 0.8 < low < 1.6
    assert low + high == pytest.approx(100)
    assert percentiles(3, 3)[0] < 1e-3


@pytest.mark.slow
def test_a_forecast_sees_no_run_that_ends_beyond_its_cut():
    points = points_on(RISING["log_linear"], TRUE["log_linear"], noise=0.01)
    study = study_frontier(points, 20, 0)
    for cut, forecast in zip(cuts_of(points), study.judged["log_linear"].forecasts, strict=True):
        ends = np.array([points.z[points.runs == run].max() for run in np.unique(points.runs)])
        assert forecast.runs == (ends < cut).sum()
        assert forecast.below == pytest.approx(np.exp(cut + points.centre))
    worse = points._replace(values=np.where(points.z > cuts_of(points)[0], points.values * 3, points.values))
    raised = study_frontier(worse, 20, 0, cuts=[float(np.exp(cuts_of(points)[0] + points.centre))])
    assert raised.judged["log_linear"].error == pytest.approx(np.log(3), abs=0.2)


@pytest.mark.parametrize(
    "name", ["log_linear", *(pytest.param(name, marks=pytest.mark.slow) for name in ("power", "power_with_offset"))]
)
def test_the_right_form_is_chosen_and_its_forecast_holds(name):
    law, theta = RISING[name], TRUE[name]
    points = points_on(law, theta, noise=0.01, n_runs=60, seed=1)
    study = study_frontier(points, 40, 0)
    assert study.chosen == name
    z = np.array([5.0, 7.0])
    values, low, high = study.expect(np.exp(z + points.centre))
    truth = law.evaluate(theta, z)
    assert ((low <= truth) & (truth <= high)).all()
    assert (np.abs(values / truth - 1) < 0.05).all()


def test_a_form_that_cannot_be_told_from_the_best_widens_the_interval():
    law = RISING["sigmoid"]
    points = points_on(law, TRUE["sigmoid"], noise=0.01, seed=2)
    study = study_frontier(points, 40, 0)
    at = [float(np.exp(8 + points.centre))]
    _, low, high = study.expect(at)
    for name, judged in study.judged.items():
        if not judged.told_apart:
            _, other_low, other_high = study.predict(name, at)
            assert low <= other_low
            assert other_high <= high
    assert not study.judged[study.chosen].told_apart


@threadpool_limits.wrap(limits=1)
def coverage(name, draws_of_runs, draws):
    """Share of intervals that hold each true parameter, over databases of 60 runs."""
    law, theta = RISING[name], TRUE[name]
    held = []
    for seed in range(draws_of_runs):
        points = points_on(law, theta, noise=0.015, n_runs=60, seed=100 + seed)
        reference = best_reference(points, laws(1))
        method = best_method(points, reference)
        near = fit(law, frontier_of(points, method, reference))
        rng, found = np.random.default_rng(seed), []
        for _ in range(draws):
            some = points.of(rng.choice(60, 60))
            found.append(fit(law, frontier_of(some, method, reference), near).theta)
        low, high = interval(near.theta, np.stack(found), method, percentiles(60, law.n_parameters))
        held.append((low <= theta) & (theta <= high))
    return np.mean(held, 0)


@pytest.mark.slow
def test_intervals_hold_the_true_parameters():
    assert (coverage("log_linear", 12, 40) >= 10 / 12).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", RISING)
def test_intervals_hold_the_true_parameters_in_90_of_100_draws(name):
    assert (coverage(name, 100, 100) >= 0.9).all()


@pytest.mark.slow
def test_the_right_form_is_chosen_in_most_draws():
    for name in ("power", "log_linear", "power_with_offset", "sigmoid"):
        law, theta = RISING[name], TRUE[name]
        chosen = [
            study_frontier(points_on(law, theta, noise=0.01, n_runs=60, seed=seed), 40, seed).chosen
            for seed in range(10)
        ]
        assert chosen.count(name) >= 8, (name, chosen)


@pytest.mark.slow
def test_several_seeds_of_a_configuration_widen_the_interval():
    law, theta = RISING["log_linear"], TRUE["log_linear"]
    few = points_on(law, theta, noise=0.02, n_runs=15, seed=4)
    generator = np.random.default_rng(0)
    again = [few.values * np.exp(generator.normal(0, 0.001, len(few.z))) for _ in range(4)]
    runs = np.concatenate([few.runs + 15 * seed for seed in range(4)])
    points = few._replace(runs=runs, z=np.tile(few.z, 4), values=np.concatenate(again))
    at = [float(np.exp(5 + points.centre))]

    def width(**seeds):
        _, low, high = study_frontier(points, 40, 0, method=REGRESSION, **seeds).predict("log_linear", at)
        return (high - low).item()

    assert width(configurations=np.arange(60) % 15) > 1.5 * width()


def test_too_few_runs_are_refused():
    two = Points(np.array([0, 1, 1]), np.array([0.0, 1.0, 2.0]), np.array([0.1, 0.2, 0.25]), 30.0, 1)
    with pytest.raises(InputError, match="bind RUNS to a database of more runs"):
        study_frontier(two, 20, 0)
    with pytest.raises(InputError, match="CUTS"):
        study_frontier(points_on(RISING["power"], TRUE["power"]), 20, 0, cuts=[1.0])
    assert len(envelope_of(two).points.z) == 3
