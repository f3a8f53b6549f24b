"""Forecasts of runs that are not made yet."""

import numpy as np
import pytest
from scaling_runs import METRIC, compute_of, grid_of_runs, params_of, write_database

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
        assert row["joint"]["metric"] == pytest.approx(value, rel=0.08)  # its form is not quite this law's
        for of in (row["frontier"], row["joint"]):
            assert of["low"] <= of["metric"] <= of["high"]
        # The interval of a single run holds its noise too.
        assert row["joint"]["high"] / row["joint"]["low"] > np.exp(2 * 0.005)
    came = curves[-1]._replace(name="512x4", values=np.array([0.11, 0.2, 0.16]))
    rows = with_outcomes(told, {"512x4": came}, 1)["forecasts"]
    assert (rows[0]["best"], rows[0]["end"]) == (0.2, 0.16)
    assert rows[0]["frontier_error"] == pytest.approx(rows[0]["frontier"]["metric"] / 0.2 - 1)
    assert rows[0]["joint_error"] == pytest.approx(rows[0]["joint"]["metric"] / 0.16 - 1)
    assert (rows[1]["best"], rows[1]["end"]) == (None, None)
