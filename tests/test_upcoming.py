"""Forecasts of runs that are not made yet."""

import numpy as np
import pytest
from scaling_runs import METRIC, additive, additive_curves, compute_of, grid_of_runs, params_of, write_database

from seqrec_jax.scaling.run_table import read_runs
from seqrec_jax.scaling.upcoming import Upcoming, forecast_runs, with_outcomes


def law(compute, params):
    return 0.3 - 2.5 * compute**-0.1


@pytest.fixture
def curves(tmp_path):
    write_database(tmp_path / "runs.sqlite", grid_of_runs(law, 0.01, seed=3))
    return read_runs(str(tmp_path / "runs.sqlite"), METRIC).curves


def upcoming_of(width, depth, data, epochs=8):
    params = params_of(width, depth, data, epochs)
    variables = {"width": width, "depth": depth, "data": data, "epochs": epochs}
    return Upcoming(f"{width}x{depth}", compute_of(params, epochs), variables)


def test_larger_runs_are_forecast_and_set_against_what_came(curves):
    larger = [upcoming_of(512, 4, 2_000_000), upcoming_of(512, 2, 2_000_000)]
    told = forecast_runs(curves, larger, 1, draws=40, seed=0)
    assert told["runs"] == len(curves) == 36
    assert [row["run"] for row in told["forecasts"]] == ["512x4", "512x2"]
    for row, run in zip(told["forecasts"], larger, strict=True):
        value = law(run.compute, {})
        assert row["frontier"]["metric"] == pytest.approx(value, rel=0.02)
        assert row["frontier"]["low"] <= row["frontier"]["metric"] <= row["frontier"]["high"]
        assert row["joint"] is None  # no joint law has this form, so the law over compute forecasts better
    assert (told["joint_law"], told["joint_law_error"]) == (None, None)
    assert 0 < told["law_error"] < 0.02


@pytest.mark.slow
def test_a_joint_law_stands_beside_the_forecast_with_its_own_error():
    larger = [upcoming_of(256, 2, 400_000, 20), upcoming_of(512, 2, 400_000, 20)]
    curves = additive_curves(0.01, seed=0)
    told = forecast_runs(curves, larger, 1, draws=20, seed=0)
    assert told["joint_law"] == "power_with_offset in width, depth and targets"
    assert 0 < told["joint_law_error"] <= told["law_error"] < 0.03
    for row, width in zip(told["forecasts"], (256, 512), strict=True):
        assert row["joint"]["metric"] == pytest.approx(additive(params_of(width, 2, 400_000, 20), 20), rel=0.03)
        assert row["joint"]["low"] <= row["joint"]["metric"] <= row["joint"]["high"]
        # The interval of a single run holds its noise too.
        assert row["joint"]["high"] / row["joint"]["low"] > np.exp(2 * 0.005)
    came = curves[-1]._replace(name="256x2", values=np.array([0.11, 0.2, 0.16]))
    rows = with_outcomes(told, {"256x2": came}, 1)["forecasts"]
    assert (rows[0]["best"], rows[0]["end"]) == (0.2, 0.16)
    assert rows[0]["frontier_error"] == pytest.approx(rows[0]["frontier"]["metric"] / 0.2 - 1)
    assert rows[0]["joint_error"] == pytest.approx(rows[0]["joint"]["metric"] / 0.16 - 1)
    assert (rows[1]["best"], rows[1]["end"]) == (None, None)
