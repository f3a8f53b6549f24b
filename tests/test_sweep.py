"""A sweep runs its trials, goes on where it was interrupted, and ends with a table and a plot."""

import json

import pytest

from seqrec_jax.errors import InputError, Interrupted
from seqrec_jax.runs.stopping import StopRequests
from seqrec_jax.studies import engine
from seqrec_jax.studies.sweep import Sweep, sweep
from seqrec_jax.studies.tables import trials_table

BASE = """
run.task = @pretrain
pretrain.corpus = @Corpus()
pretrain.run_dir = %RUN_DIR
pretrain.architecture = @Architecture()
pretrain.config = @TrainConfig()
pretrain.settings = @RunSettings()
RunSettings.tracker = @Tracker()
Corpus.datasets = %DATASET
TrainConfig.epochs = 2
TrainConfig.train_batch_size = 400
TrainConfig.loss = @sampled_softmax
Architecture.hidden_size = 16
Architecture.n_layers = 1
sampled_softmax.n_negatives = 20
"""


class FakeProcess:
    """A trial whose metric is the binding x, recorded over three epochs; one below 0 fails."""

    started, stopped = (), ()

    def __init__(self, job, cpus=None):
        bound = dict(binding.split(" = ", 1) for binding in job.bindings)
        assert bound["DATASET"] == "'data'"
        FakeProcess.started += ((job.run_dir.name, bound["x"]),)
        self.value, self.run_dir, self.looks = float(bound["x"]), job.run_dir, 0
        self.run_dir.mkdir(parents=True, exist_ok=True)

    def status(self):
        self.looks += 1
        if self.value < 0:
            return 2
        if self.looks < 5:
            records = [
                {"kind": "epoch", "epoch": epoch, "metrics": {"valid/ndcg_at_10": self.value * epoch / 3}}
                for epoch in range(1, min(3, self.looks) + 1)
            ]
            (self.run_dir / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
            return None
        results = {part: {"ndcg_at_10": self.value} for part in ("valid", "test")}
        (self.run_dir / "results.json").write_text(json.dumps(results))
        return 0

    def stop(self):
        FakeProcess.stopped += (self.run_dir.name,)

    def last_line(self):
        return "x is below 0"


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(engine, "JobProcess", FakeProcess)
    monkeypatch.setattr(engine, "SECONDS_BETWEEN_LOOKS", 0.0)
    FakeProcess.started, FakeProcess.stopped = (), ()
    return FakeProcess


def search(folder, space, **settings):
    return sweep(Sweep("base.gin", "data", space, **settings), folder)


def test_a_grid_tries_every_point_once(fake, tmp_path):
    rows = search(tmp_path / "sweep", {"x": [0.1, 0.3, 0.2], "y": ["'a'", "'b'"]}, sampler="grid")
    assert [row["valid/ndcg_at_10"] for row in rows] == [0.3, 0.3, 0.2, 0.2, 0.1, 0.1]
    assert sorted((row["bindings"]["x"], row["bindings"]["y"]) for row in rows)[0] == ("0.1", repr("'a'"))
    assert json.loads((tmp_path / "sweep" / "sweep.json").read_text()) == rows
    page = (tmp_path / "sweep" / "parallel_coordinates.html").read_text()
    assert "parcoords" in page
    assert [column.header for column in trials_table(rows).columns][:3] == ["trial", "x", "y"]
    assert len(fake.started) == 6
    search(tmp_path / "sweep", {"x": [0.1, 0.3, 0.2], "y": ["'a'", "'b'"]}, sampler="grid")
    assert len(fake.started) == 6  # finished already


@pytest.mark.parametrize(("sampler", "trials"), [("tpe", 12), ("random", 5)])  # the first 10 of TPE are random, too
def test_an_interrupted_sweep_goes_on_and_chooses_the_same(fake, tmp_path, monkeypatch, sampler, trials):
    space, settings = {"x": ("uniform", 0.0, 1.0)}, {"sampler": sampler, "trials": trials}
    search(tmp_path / "one", space, **settings)
    undisturbed, fake.started = fake.started, ()
    looks = iter(range(1000))
    with monkeypatch.context() as patch:
        patch.setattr(StopRequests, "asked", property(lambda self: next(looks) == 16))
        with pytest.raises(Interrupted, match="after run 3; its checkpoint is written"):
            search(tmp_path / "two", space, **settings)
    assert fake.stopped == ("0003",)
    search(tmp_path / "two", space, **settings)
    assert fake.started == (*undisturbed[:4], undisturbed[3], *undisturbed[4:])
    search(tmp_path / "two", space, sampler=sampler, trials=trials + 1)
    assert len(fake.started) == trials + 2


def test_trials_that_fall_behind_are_ended_early(fake, tmp_path):
    space = {"x": [0.9, 0.8, 0.7, 0.6, 0.85, 0.1, 0.05]}
    rows = search(tmp_path / "sweep", space, sampler="grid", pruner="median")
    assert {row["bindings"]["x"] for row in rows if row["state"] == "pruned"} == {"0.1", "0.05"}
    assert len(fake.stopped) == 2


def test_a_trial_that_fails_is_told_and_the_first_ends_the_sweep(fake, tmp_path):
    with pytest.raises(InputError, match="trial 0: x is below 0"):
        search(tmp_path / "sweep", {"x": [-1.0]}, sampler="grid")
    rows = search(tmp_path / "other", {"x": [0.5, -1.0]}, sampler="grid")
    assert [row["state"] for row in rows] == ["complete", "fail"]


@pytest.mark.parametrize(
    ("space", "settings", "words"),
    [
        ({}, {}, "Sweep.space names nothing"),
        ({"x": 3}, {}, r"Sweep.space\['x'\] = 3 is neither a list of choices nor"),
        ({"x": ("log", 0.0, 1.0)}, {}, "bounds must rise, and be above 0"),
        ({"x": ("int", 4, 1)}, {}, "bounds must rise"),
        ({"x": ("int", 1, 4)}, {"sampler": "grid"}, "a grid needs a list of choices"),
        ({"x": [1]}, {"sampler": "best"}, "Sweep.sampler = 'best' is not one of tpe, random, grid"),
        ({"x": [1]}, {"pruner": "all"}, "Sweep.pruner = 'all' is not one of None, median, hyperband"),
        ({"x": [1]}, {"trials": 0}, "Sweep.trials = 0 is below 1"),
    ],
)
def test_senseless_searches_are_refused(fake, tmp_path, space, settings, words):
    with pytest.raises(InputError, match=words):
        search(tmp_path / "sweep", space, **settings)
    assert not (tmp_path / "sweep").exists()


@pytest.mark.slow
def test_trials_are_runs_of_their_own_and_children_in_mlflow(shop_folder, tmp_path, run_module):
    (tmp_path / "base.gin").write_text(BASE)
    store = f"sqlite:///{tmp_path}/mlruns.sqlite"
    settings = {
        "BASE": "'base.gin'", "DATASET": f"'{shop_folder}'", "RUN_DIR": "'sweep'", "SAMPLER": "'grid'",
        "SPACE": "{'TrainConfig.learning_rate': [1e-3]}", "Tracker__uri": f"'{store}'",
    }  # fmt: skip
    done = run_module("seqrec_jax.main", "gin/sweep.gin", **settings)
    assert done.returncode == 0, done.stderr
    assert "Trials" in done.stdout
    assert json.loads((tmp_path / "sweep/trials/0000/results.json").read_text())["test"]
    from mlflow import MlflowClient

    client = MlflowClient(store)
    parent, child = client.search_runs([client.get_experiment_by_name("seqrec_jax").experiment_id])
    if "mlflow.parentRunId" in parent.data.tags:
        parent, child = child, parent
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.info.run_name == "trial 0"
    assert {item.path for item in client.list_artifacts(parent.info.run_id)} >= {
        "sweep.json",
        "parallel_coordinates.html",
    }
