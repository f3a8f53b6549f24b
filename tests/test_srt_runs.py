"""The paper's own runs: its law found again, and forecasts of the larger runs from the smaller."""

import numpy as np
import pytest
from conftest import shared_file

from seqrec_jax.scaling.forecast import study_frontier
from seqrec_jax.scaling.frontier import ENVELOPE, points_of
from seqrec_jax.scaling.joint import effects, runs_of, study_joint
from seqrec_jax.scaling.run_table import configurations_of, read_runs

CUTS = (1e14, 1e15)


@pytest.fixture(scope="module")
def curves():
    return read_runs(str(shared_file("data/srt-runs/mlruns.sqlite.bz2")), "valid/ndcg_at_5").curves


@pytest.fixture(scope="module")
def study(curves):
    return study_frontier(points_of(curves, 1, 0.1), 60, 2020, CUTS)


def published(compute):
    """The law of the frontier in the paper."""
    return 0.396 / (1 + np.exp(-0.18 * (np.log(compute) - 24.44))) - 0.247


def test_all_runs_are_read(curves):
    assert len(curves) == 119
    assert sum(len(curve.values) for curve in curves) == 1190
    assert all(curve.epochs[-1] == 50 for curve in curves)
    assert len(np.unique(configurations_of(curves))) == 116  # three were run twice


def test_the_published_law_is_found_again(study):
    assert study.frontier.method == ENVELOPE
    compute = np.geomspace(1e13, 4e16, 20)
    ours, _, _ = study.predict("sigmoid", compute)
    assert np.abs(ours / published(compute) - 1).max() < 0.04
    near = study.frontier.points
    late = near.z + near.centre > np.log(1e13)
    off = near.values[late] - published(np.exp(near.z[late] + near.centre))
    assert np.sqrt(np.mean(off**2)) < 0.004


def test_a_power_law_with_offset_forecasts_the_larger_runs_best(study):
    assert study.chosen == "power_with_offset"
    errors = {name: [forecast.error for forecast in judged.forecasts] for name, judged in study.judged.items()}
    assert [forecast.runs for forecast in study.judged["sigmoid"].forecasts] == [30, 68]
    for place in range(len(CUTS)):
        assert min(errors, key=lambda name: errors[name][place]) == "power_with_offset"
    assert errors["power_with_offset"][0] < 0.12
    assert errors["power_with_offset"][1] < 0.04


def test_a_joint_law_in_width_depth_and_data_forecasts_them_better_still(curves):
    runs = runs_of(curves)
    name, judged = next(iter(study_joint(runs, 2, 0, CUTS).items()))
    assert name == "power_with_offset in width and depth"
    assert all(error < 0.04 for _, _, error in judged.forecasts)
    found = effects(runs, 200, 0)
    assert found["width"].low > 1.35
    assert found["depth"].high < 1
    assert found["data"].low > 1.05
    assert 1.01 < found["negatives"].low < found["negatives"].high < 1.05
