"""The task, from a database to a page."""

import json
import subprocess
import sys

import mlflow
import pytest
from scaling_runs import METRIC, MadeRun, additive_curves, grid_of_runs, params_of, write_database

from seqrec_jax.errors import InputError
from seqrec_jax.runs.settings import RunSettings, Tracking
from seqrec_jax.studies.scaling_law import LawSettings, _warn_of_the_impossible, scaling_law
from seqrec_jax.studies.tables import scaling_law_tables


def offset_law(compute, params):
    del params
    return 0.17 - 3.5 * compute**-0.125


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "mlruns.sqlite"
    write_database(path, grid_of_runs(offset_law, noise=0.01, seed=0))
    return path


@pytest.fixture(scope="module")
def analysis(database, tmp_path_factory):
    """One analysis."""
    folder = tmp_path_factory.mktemp("law")
    settings = RunSettings(tracker=Tracking(f"sqlite:///{folder}/mine.sqlite"), config_text="# how it was asked for")
    results = scaling_law(str(database), folder / "run", LawSettings(METRIC, budgets=[1e16, 1e17], draws=40), settings)
    return folder, results


def test_the_law_of_the_runs_is_found_with_its_forecast(analysis):
    folder, results = analysis
    assert results == json.loads((folder / "run" / "scaling_law.json").read_text())
    assert results["chosen"] == "power_with_offset"
    assert results["runs"]["used"] == 36
    for prediction in results["predictions"]:
        truth = offset_law(prediction["budget"], None)
        assert prediction["low"] <= truth <= prediction["high"]
        assert prediction["metric"] == pytest.approx(truth, rel=0.05)
    for name, truth in {"limit": 0.17, "exponent": 0.125}.items():
        parameter = results["laws"]["power_with_offset"]["parameters"][name]
        assert parameter["low"] <= truth <= parameter["high"]
    assert {"width", "depth", "data"} <= set(results["effects"])
    assert results["plans"] == []  # of a law of compute alone no joint law forecasts as well


@pytest.mark.slow
def test_a_joint_law_that_forecasts_as_well_plans(tmp_path, caplog):
    curves = additive_curves(0.01, seed=0)
    runs = [MadeRun(of.params, dict(zip(of.epochs.astype(int).tolist(), of.values, strict=True))) for of in curves]
    write_database(tmp_path / "runs.sqlite", runs)
    results = scaling_law(
        str(tmp_path / "runs.sqlite"), tmp_path / "law", LawSettings(METRIC, budgets=[1e14], draws=20)
    )
    (plan,) = results["plans"]
    chosen = results["laws"][results["chosen"]]
    assert plan["forecast_error"] <= chosen["forecast_error"]
    assert plan["metric"] == pytest.approx(results["predictions"][0]["metric"], rel=0.05)
    assert "What to train" in (tmp_path / "law" / "scaling_law.html").read_text()
    assert [str(table.title) for table in scaling_law_tables(results)][-1] == "What to train"
    assert "no plan" not in caplog.text


def test_the_tables_of_the_terminal(analysis):
    titles = [str(table.title) for table in scaling_law_tables(analysis[1])]
    assert titles == [
        "Laws over compute", "Predictions", "What doubling does, all else equal", "Joint laws",
    ]  # fmt: skip


def test_the_page_needs_no_network_and_holds_plots_and_tables(analysis):
    folder, _ = analysis
    page = (folder / "run" / "scaling_law.html").read_text()
    assert page.count('class="plotly-graph-div"') == 3
    assert 'src="http' not in page
    for heading in ("Laws over compute", "Predictions", "What doubling does", "Joint laws", "What to train"):
        assert heading in page
    assert (folder / "run" / "scaling_law.png").stat().st_size > 10_000


def test_the_analysis_is_kept_in_mlflow(analysis):
    folder, _ = analysis
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mine.sqlite")
    (run,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert run.data.params["law"] == "power_with_offset"
    names = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert {"scaling_law.html", "scaling_law.json", "scaling_law.png", "config.gin"} <= names


def test_a_law_that_is_taken_too_far_says_so(caplog):
    rows = [{"budget": 1e15, "metric": 0.9}, {"budget": 1e17, "metric": 1.2}]
    _warn_of_the_impossible({"metric": "valid/ndcg_at_5", "predictions": rows, "plans": rows[:1]})
    assert "the law over compute expects a valid/ndcg_at_5 above 1 for 1e+17" in caplog.text
    caplog.clear()
    _warn_of_the_impossible({"metric": "valid/valid_loss", "predictions": rows, "plans": rows})
    assert not caplog.text


def test_a_loss_falls_with_compute(tmp_path):
    runs = grid_of_runs(lambda compute, params: 2 + 60 * compute**-0.12, noise=0.003, seed=1)
    write_database(tmp_path / "runs.sqlite", runs, "valid/valid_loss")
    law = LawSettings("valid/valid_loss", budgets=[1e17], draws=20)
    results = scaling_law(str(tmp_path / "runs.sqlite"), tmp_path / "law", law)
    (prediction,) = results["predictions"]
    assert prediction["metric"] == pytest.approx(2 + 60 * 1e17**-0.12, rel=0.03)


@pytest.mark.parametrize(
    ("bound", "message"),
    [
        ({"unit": "gpu_hours"}, "bind FLOPS_PER_SECOND"),
        ({"unit": "price", "flops_per_second": 1e14}, "bind PRICE_PER_HOUR"),
        ({"unit": "euros"}, "LawSettings.unit = 'euros' is not one of compute, gpu_hours, price"),
        ({"budgets": [-1.0]}, "LawSettings.budgets holds -1.0"),
        ({"draws": 3}, "LawSettings.draws = 3 is below 20"),
        ({"frontier": "best"}, "LawSettings.frontier = 'best' is not one of"),
        ({"metric": "valid/none"}, "it has no metric valid/none"),
    ],
)
def test_bad_bindings_are_refused_and_nothing_is_written(database, tmp_path, bound, message):
    with pytest.raises(InputError, match=message):
        scaling_law(str(database), tmp_path / "law", LawSettings(**bound))
    assert not (tmp_path / "law").exists()


def test_too_few_runs_carry_no_law(tmp_path):
    params = params_of(32, 1, 10_000, 8)
    write_database(tmp_path / "runs.sqlite", [MadeRun(params, {8: 0.1})])
    with pytest.raises(InputError, match="a law needs at least 3; bind RUNS to a database of more runs"):
        scaling_law(str(tmp_path / "runs.sqlite"), tmp_path / "law", LawSettings(METRIC))
    assert not (tmp_path / "law").exists()


def test_a_training_runs_folder_is_refused(database, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"TrainConfig": {"epochs": 3}}')
    with pytest.raises(InputError, match="holds a run of another configuration"):
        scaling_law(str(database), tmp_path / "run", LawSettings(METRIC, draws=20))
    assert not (tmp_path / "run" / "scaling_law.json").exists()


@pytest.mark.slow
def test_the_command(database, run_module):
    done = run_module(
        "seqrec_jax.main", "gin/scaling_law.gin", RUNS=f"'{database}'", RUN_DIR="'law'", BUDGETS="[1e16]", DRAWS="20",
        UNIT="'gpu_hours'", FLOPS_PER_SECOND="1e12", Tracker__uri="None",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "What doubling does" in done.stdout
    bad = run_module("seqrec_jax.main", "gin/scaling_law.gin", RUNS="'nowhere.sqlite'", RUN_DIR="'law2'")
    assert bad.returncode == 2
    assert len(bad.stderr.strip().splitlines()) == 1
    assert "there is no such file" in bad.stderr


def test_scaling_imports_no_jax():
    code = "import sys, seqrec_jax.scaling.report, seqrec_jax.scaling.planner; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
