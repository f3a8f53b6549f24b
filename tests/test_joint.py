import numpy as np
import pytest
from scaling_runs import additive, additive_curves, compute_of, grid_of_runs, params_of
from threadpoolctl import threadpool_limits

from seqrec_jax.scaling.forecast import study_frontier
from seqrec_jax.scaling.frontier import points_of
from seqrec_jax.scaling.joint import JointLaw, Runs, effects, fit_joint, no_worse, runs_of, study_joint
from seqrec_jax.scaling.planner import Prices, cost_of, flops_per_unit, planner_of
from seqrec_jax.scaling.run_table import Curve, configurations_of, draw_runs

LIMIT, OF_WIDTH, OF_DATA = 0.3, (0.6, 0.5), (3.0, 0.35)


def offset_law(compute, params):
    del compute
    return (
        LIMIT
        - OF_WIDTH[0] * params["hidden_size"] ** -OF_WIDTH[1]
        - OF_DATA[0] * params["n_inters"] ** -OF_DATA[1] * params["n_layers"] ** 0.02
    )


def curves_of(law, noise=0.0, seed=0):
    curves = []
    for run in grid_of_runs(law, noise, seed):
        epochs = np.array(list(run.history), float)
        values = np.array(list(run.history.values()))
        curves.append(Curve("a", run.params, epochs, values, compute_of(run.params, 1) * epochs, str(run.params)))
    return curves


def product_law(compute, params):
    del compute
    return 0.001 * params["hidden_size"] ** 0.4 * params["n_layers"] ** -0.05 * params["n_inters"] ** 0.12


def test_runs_hold_what_they_ended_with():
    runs = runs_of(curves_of(product_law))
    assert set(runs.variables) == {"width", "depth", "parameters", "data", "negatives", "epochs", "targets"}
    assert runs.varying(("width", "negatives", "epochs")) == ("width",)
    np.testing.assert_allclose(runs.compute[0], compute_of(params_of(32, 1, 30_000, 8), 8))


def test_doubling_is_told_without_a_law():
    found = effects(runs_of(curves_of(product_law, noise=0.01)), 200, 0)
    assert set(found) == {"width", "depth", "data"}
    for name, exponent in {"width": 0.4, "depth": -0.05, "data": 0.12}.items():
        assert found[name].low <= 2**exponent <= found[name].high
        assert found[name].ratio == pytest.approx(2**exponent, rel=0.02)
    assert found["width"].pairs == 27


def test_a_power_law_in_several_variables_is_found_again():
    runs = runs_of(curves_of(product_law))
    named = fit_joint("power", ("width", "depth", "data"), runs).named()
    expected = {"scale": 0.001, "exponent of width": 0.4, "exponent of depth": -0.05, "exponent of data": 0.12}
    assert named == pytest.approx(expected, rel=1e-4)


def test_a_sum_of_power_laws_is_found_again():
    def law(compute, params):
        return offset_law(compute, params | {"n_layers": 1})

    named = fit_joint("power_with_offset", ("width", "data"), runs_of(curves_of(law))).named()
    expected = {"limit": LIMIT, "scale of width": OF_WIDTH[0], "exponent of width": OF_WIDTH[1],
                "scale of data": OF_DATA[0], "exponent of data": OF_DATA[1]}  # fmt: skip
    assert named == pytest.approx(expected, rel=0.02)


def test_the_form_that_forecasts_best_is_first():
    for law, form in ((product_law, "power"), (offset_law, "power_with_offset")):
        judged = study_joint(runs_of(curves_of(law, noise=0.005)), 5, 0)
        assert next(iter(judged)) == f"{form} in width and depth"
        assert next(iter(judged.values())).error < 0.02


@pytest.mark.slow
def test_what_an_additive_law_will_give_is_not_promised_by_a_law_that_forecasts_worse():
    curves = additive_curves(noise=0.01, seed=0)
    runs, larger = runs_of(curves), params_of(512, 4, 2_000_000, 16)
    truth = additive(larger, 16)
    variables = {"width": 512, "depth": 4, "parameters": larger["model_non_emb_params"], "data": 2e6, "epochs": 16}
    study = study_frontier(points_of(curves, 1, 0.1), 20, 0)
    error = study.judged[study.chosen].error
    assert study.expect([compute_of(larger, 16)])[0] == pytest.approx(truth, rel=0.03)
    joint = study_joint(runs, 5, 0)
    offered = no_worse(joint, error)
    assert next(iter(offered)) == "power_with_offset in parameters and targets"
    for judged in offered.values():
        assert judged.law.evaluate(variables) == pytest.approx(truth, rel=0.04)
    # Laws that know data and epochs apart promise a fifth too much.
    apart = {name: judged for name, judged in joint.items() if "targets" not in name}
    assert next(iter(apart.values())).law.evaluate(variables) > 1.15 * truth
    assert no_worse(apart, error) == {}


def test_fewer_runs_than_parameters_carry_no_joint_law():
    runs = runs_of(curves_of(product_law)[:2])
    with pytest.raises(ValueError, match="fewer runs than parameters"):
        fit_joint("power", ("width", "depth", "data"), runs)
    assert study_joint(runs, 5, 0) == {}


def test_the_cost_of_a_target_is_what_the_runs_logged():
    curves = curves_of(product_law)
    cost = cost_of(curves)
    assert cost.error < 1e-6
    params = params_of(512, 8, 1000, 8)
    assert cost.per_target(np.array(512.0), np.array(8.0)) == pytest.approx(params["total_flops"] / 128, rel=1e-6)


def test_a_plan_spends_the_budget_where_the_law_says():
    curves = curves_of(offset_law)
    runs = runs_of(curves)
    planner = planner_of(curves, runs, study_joint(runs, 10, 0), 1, None)
    budget = float(np.median(runs.compute))
    plan = planner.plan(budget)
    assert plan["compute"] <= budget * (1 + 1e-9)
    assert plan["depth"] == 1  # deeper only costs
    best = max(
        offset_law(0, {"hidden_size": width, "n_layers": depth, "n_inters": data})
        for width in (16, 32, 64, 128, 256, 512)
        for depth in (1, 2, 4)
        for data in [budget / 8 / float(planner.cost.per_target(np.array(float(width)), np.array(float(depth))))]
        if data <= 8_000_000
    )
    assert plan["metric"] >= 0.99 * best
    assert plan["doubling"]["data"]["cost"] == pytest.approx(2)
    doubled = {"hidden_size": plan["width"], "n_layers": 1, "n_inters": 2 * plan["data"]}
    once = {**doubled, "n_inters": plan["data"]}
    assert plan["doubling"]["data"]["metric"] == pytest.approx(offset_law(0, doubled) / offset_law(0, once), rel=0.01)
    assert planner.plan(1.0) is None
    assert planner.plan(1e4 * float(runs.compute.max()))["beyond_runs"] == ["width", "data"]


def test_budgets_in_hours_and_money():
    prices = Prices(1e14, 2.0)
    assert prices.compute(10, "gpu_hours") == pytest.approx(10 * 3600 * 1e14 / 6)
    assert prices.compute(20, "price") == pytest.approx(prices.compute(10, "gpu_hours"))
    assert prices.in_units(prices.compute(10, "gpu_hours")) == pytest.approx(
        {"training_flops": 3.6e18, "gpu_hours": 10, "price": 20}
    )


def test_what_a_unit_of_cost_takes_is_what_runs_logged():
    curves = curves_of(product_law)
    assert flops_per_unit(curves) == 6
    ours = [c._replace(params=c.params | {"train_step_flops": 0.2 * c.params["total_flops"]}) for c in curves]
    assert flops_per_unit(ours) == pytest.approx(0.2)


def test_a_law_takes_arrays_of_shapes_that_broadcast():
    law = JointLaw("log_linear", ("width", "data"), np.zeros(2), np.array([0.1, 0.01, 0.02]))
    values = law.evaluate({"width": np.ones((3, 1)), "data": np.ones((1, 4))})
    assert values.shape == (3, 4)
    assert isinstance(Runs({}, np.ones(1), np.ones(1)).at(np.zeros(1, int)), Runs)


def seeded_curves(number, seeds=5, of_configuration=0.03, of_seed=0.02):
    """A database of 12 configurations, each with its own gain or loss and several seeds, with the noise of each."""
    generator, curves = np.random.default_rng(number), []
    for width in (16, 32, 64, 128):
        for data in (50_000, 200_000, 800_000):
            params = params_of(width, 1, data, 8)
            value = product_law(0, params) * np.exp(generator.normal(0, of_configuration))
            for seed in range(seeds):
                ends = np.array([value * np.exp(generator.normal(0, of_seed))])
                compute = np.array([compute_of(params, 8)])
                curves.append(Curve("a", params | {"seed": seed}, np.array([8.0]), ends, compute, str(params)))
    return curves


@threadpool_limits.wrap(limits=1)
def coverage(databases, apart):
    """Share of 95 % intervals that hold the law's value beyond the runs; `apart` takes every seed for itself."""
    larger, held = {"width": 256, "data": 2e6}, 0
    truth = product_law(0, {"hidden_size": 256, "n_layers": 1, "n_inters": 2e6})
    for number in range(databases):
        runs = runs_of(seeded_curves(number))
        each = np.arange(len(runs.values)) if apart else runs.configurations
        law, generator = fit_joint("power", ("width", "data"), runs), np.random.default_rng(number)
        drawn = [fit_joint("power", ("width", "data"), runs.at(draw_runs(each, generator)), law) for _ in range(60)]
        low, high = np.percentile([of.evaluate(larger) for of in drawn], (2.5, 97.5))
        held += low <= truth <= high
    return held / databases


def test_seeds_of_a_configuration_are_no_independent_runs():
    curves = seeded_curves(0)
    numbers = configurations_of(curves)
    np.testing.assert_array_equal(numbers, np.repeat(np.arange(12), 5))
    drawn = draw_runs(numbers, np.random.default_rng(0))
    assert len(drawn) == 60
    assert all(count % 5 == 0 for count in np.bincount(numbers[drawn]))
    assert coverage(30, apart=False) >= 0.85 > 0.75 > coverage(30, apart=True)


def test_a_pair_of_runs_is_of_configurations_and_not_of_seeds():
    found = effects(runs_of(seeded_curves(1)), 50, 0)
    assert {name: of.pairs for name, of in found.items()} == {"width": 9, "data": 8}
    assert found["width"].ratio == pytest.approx(2**0.4, rel=0.04)
