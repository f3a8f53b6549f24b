"""A scaling study estimates, runs from small to large, forecasts the largest first, and goes on where it stopped."""

import json
import re

import numpy as np
import pytest

from seqrec_jax.errors import InputError, Interrupted
from seqrec_jax.model.spec import Architecture
from seqrec_jax.runs import flops
from seqrec_jax.runs.stopping import StopRequests
from seqrec_jax.studies import engine
from seqrec_jax.studies import scaling_study as module
from seqrec_jax.studies.scaling_study import ScalingStudy, scaling_study
from seqrec_jax.studies.study_costs import line_through

BATCH, NEGATIVES = 3200, 100
TARGETS = {0.25: 500, 0.5: 1000, 1.0: 2000}


class FakeProcess:
    """A run whose metric follows a law of its compute, and which says what it cost."""

    started, fails = [], ()

    def __init__(self, job, cpus=None):
        command, run_dir = job.command, job.run_dir
        self.bound = dict(part.removeprefix("--gin_bindings=").split(" = ", 1) for part in command if " = " in part)
        self.run_dir = run_dir
        FakeProcess.started.append(f"{run_dir.parent.name}/{run_dir.name}")

    def status(self):
        if self.run_dir.name in FakeProcess.fails:
            return 2
        bound = self.bound
        width, depth, epochs = (
            int(bound[name]) for name in ("Architecture.hidden_size", "Architecture.n_layers", "TrainConfig.epochs")
        )
        shape = Architecture(
            n_layers=depth,
            n_heads=2,
            hidden_size=width,
            inner_size=int(bound["Architecture.inner_size"]),
            max_length=50,
        )
        total = flops.total_multiply_adds(shape, 1, BATCH, NEGATIVES, True)
        targets = TARGETS[float(bound["Corpus.users_share"])]
        params = {
            "n_layers": depth, "n_heads": 2, "hidden_size": width, "inner_size": shape.inner_size,
            "embedding_size": width, "MAX_ITEM_LIST_LENGTH": 50, "selected_features": "['title']",
            "train_batch_size": BATCH, "nce_num_negatives": NEGATIVES, "nce_global_negatives": True, "epochs": epochs,
            "n_inters": targets, "total_flops": total, "train_step_flops": 1,
        }  # fmt: skip
        noise = np.random.default_rng(width + depth + targets).normal(0, 0.005, epochs)
        compute = np.arange(1, epochs + 1) * targets * total / BATCH
        values = (0.2 - 2.0 * compute**-0.13) * np.exp(noise)
        self.run_dir.mkdir(parents=True, exist_ok=True)
        lines = [
            json.dumps({"kind": "epoch", "step": e, "epoch": e, "time": e, "metrics": {"valid/ndcg_at_10": value}})
            for e, value in enumerate(values, 1)
        ]
        (self.run_dir / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        train = {"seconds": 1e-12 * targets * total * epochs / BATCH + 1e-5 * targets * epochs}
        train["targets"] = targets * epochs
        results = {"params": {name: str(value) for name, value in params.items()}, "train": train}
        (self.run_dir / "results.json").write_text(json.dumps(results))
        return 0

    def stop(self):
        pass

    def last_line(self):
        return "Architecture.n_heads does not fit"


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    monkeypatch.setattr(engine, "JobProcess", FakeProcess)
    monkeypatch.setattr(engine, "SECONDS_BETWEEN_LOOKS", 0.0)
    monkeypatch.setattr(
        module, "targets_of", lambda datasets, shares, *_: {("d", share): TARGETS[share] for share in shares}
    )
    FakeProcess.started, FakeProcess.fails = [], ()


@pytest.fixture
def no_law(monkeypatch):
    """Leaves out the fits, which take seconds."""
    forecast = {"runs": 16, "law": "power", "joint_law": None, "forecasts": []}
    monkeypatch.setattr(module, "forecast_runs", lambda *_: forecast)
    monkeypatch.setattr(module, "scaling_law", lambda *_, **__: None)


def study(tmp_path, **settings):
    defaults = {"widths": [16, 32, 64], "depths": [1, 2], "shares": [0.25, 0.5, 1.0], "epochs": [6], "draws": 20}
    return scaling_study(ScalingStudy("b", ["d"], **(defaults | settings)), tmp_path / "study")


def test_the_largest_runs_are_forecast_before_they_are_made(tmp_path, monkeypatch):
    made_with = []

    def forecast_runs(curves, upcoming, *rest):
        made_with.append((len(FakeProcess.started), [run.name for run in upcoming]))
        return real(curves, upcoming, *rest)

    real = module.forecast_runs
    monkeypatch.setattr(module, "forecast_runs", forecast_runs)
    results = study(tmp_path, of_width={64: ["TrainConfig.learning_rate = 0.5"]})
    assert FakeProcess.started[:2] == [f"probes/width_{w}_depth_{d}_data_d_25_epochs_1" for w, d in ((16, 1), (64, 2))]
    largest = ["width_64_depth_1_data_d_100_epochs_6", "width_64_depth_2_data_d_100_epochs_6"]
    assert made_with == [(2 + 16, largest)]
    assert sorted(FakeProcess.started[-2:]) == [f"runs/{name}" for name in largest]
    rows = results["forecast"]["forecasts"]
    for row in rows:
        params = json.loads((tmp_path / "study" / "runs" / row["run"] / "results.json").read_text())["params"]
        assert row["compute"] == pytest.approx(6 * 2000 * int(params["total_flops"]) / BATCH)
        assert abs(row["frontier_error"]) < 0.03
        assert row["joint"] is None  # these runs follow a law of compute, so no joint law forecasts as well
    assert json.loads((tmp_path / "study" / "scaling_study.json").read_text()) == results
    assert json.loads((tmp_path / "study" / "law" / "scaling_law.json").read_text())["runs"]["used"] == 18
    # Given once more, nothing is run and the forecast stays what it was.
    FakeProcess.started = []
    assert study(tmp_path, of_width={64: ["TrainConfig.learning_rate = 0.5"]}) == results
    assert not FakeProcess.started
    assert len(made_with) == 1


def test_the_estimate_is_of_what_the_probes_took(tmp_path, no_law):
    results = study(tmp_path)
    computes = [row["compute"] for row in results["estimate"].values()]
    assert computes == sorted(computes)
    for name, row in results["estimate"].items():
        train = json.loads((tmp_path / "study" / "runs" / name / "results.json").read_text())["train"]
        assert 3600 * row["hours"] >= train["seconds"] * 0.999
        assert 3600 * row["hours"] < train["seconds"] + 5  # what starting takes
    assert line_through((1.0, 3.0), (3.0, 5.0)) == (2.0, 1.0)
    assert line_through((1.0, 1.0), (3.0, 5.0)) == (0.0, 5 / 3)  # nothing takes less than no time
    assert line_through((2.0, 4.0), (2.0, 4.0)) == (4.0, 0.0)


def test_an_interrupted_study_goes_on(tmp_path, monkeypatch, no_law):
    with monkeypatch.context() as patched:
        patched.setattr(StopRequests, "asked", property(lambda self: len(FakeProcess.started) > 7))
        with pytest.raises(Interrupted, match="after run"):
            study(tmp_path)
    before = list(FakeProcess.started)
    assert not (tmp_path / "study" / "forecast.json").exists()
    study(tmp_path)
    again = [name for name in FakeProcess.started[len(before) :] if name in before]
    assert len(again) <= 1  # the one that was under way
    assert len(set(FakeProcess.started)) == 2 + 18


def test_a_study_that_would_take_too_long_does_not_begin(tmp_path):
    with pytest.raises(InputError, match=r"ScalingStudy.most_hours = 1e-07: the study would take about .* hours"):
        study(tmp_path, most_hours=1e-7)
    assert all(name.startswith("probes/") for name in FakeProcess.started)


def test_a_study_without_a_law_says_so_and_makes_all_runs(tmp_path):
    with pytest.raises(InputError, match="bind RUNS to a database of more runs"):
        study(tmp_path, widths=[16], depths=[1, 2, 3, 4, 5], shares=[1.0], epochs=[1, 2])
    assert "more runs" in json.loads((tmp_path / "study" / "forecast.json").read_text())["error"]
    assert len(list((tmp_path / "study" / "runs").glob("*/results.json"))) == 10


def test_the_first_run_that_is_refused_ends_the_study(tmp_path):
    FakeProcess.fails = ("width_16_depth_1_data_d_25_epochs_1",)
    with pytest.raises(InputError, match=r"width_16_depth_1_data_d_25_epochs_1: Architecture\.n_heads does not fit"):
        study(tmp_path)


def test_what_makes_no_study_is_refused(tmp_path):
    for settings, message in (
        ({"widths": []}, r"ScalingStudy.widths = \[\] is no list"),
        ({"widths": [16, 16]}, "names something twice"),
        ({"epochs": [0]}, r"ScalingStudy.epochs = \[0\] holds something that is no number above 0"),
        ({"shares": [0.5, 2.0]}, "holds a share above 1"),
        ({"holdout": 15}, "ScalingStudy.holdout = 15: of 18 runs at least 8"),
        ({"processes": 0}, "ScalingStudy.processes = 0"),
        ({"metric": "valid/ndcg_at_10"}, re.escape("ScalingStudy.metric = 'valid/ndcg_at_10'")),
    ):
        with pytest.raises(InputError, match=message):
            study(tmp_path, **settings)
    assert not (tmp_path / "study").exists()
    with pytest.raises(InputError, match="two folders have one name"):
        ScalingStudy("b", ["x/d", "y/d"], widths=[1, 2, 3, 4, 5, 6], depths=[1], epochs=[1, 2])
