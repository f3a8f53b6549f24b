"""A sweep runs its trials, goes on where it was interrupted, and ends with a table and a plot."""

import json
import sqlite3

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
            (self.run_dir / "config.json").write_text("{}")  # it had begun
            return 2 if self.value == -1 else int(self.value)  # which is a signal's number
        if self.looks < 5:
            values = [
                (epoch, {"valid/ndcg_at_10": self.value * epoch / 3}) for epoch in range(1, min(3, self.looks) + 1)
            ]
            records = [
                {"kind": "epoch", "step": e, "epoch": e, "time": 0.0, "metrics": metrics} for e, metrics in values
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
    assert [str(column.header) for column in trials_table(rows).columns][:3] == ["trial", "x", "y"]
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


def test_a_trial_that_was_killed_or_kept_out_is_taken_up_again(fake, tmp_path, monkeypatch):
    space = {"x": [0.5, -9.0]}
    with pytest.raises(InputError, match="trial 1: was killed by signal 9; run the same again"):
        search(tmp_path / "sweep", space, sampler="grid")
    monkeypatch.setattr(fake, "status", lambda self: 2)
    monkeypatch.setattr(fake, "last_line", lambda self: "sweep/trials/0001: another process is at work there; wait")
    with pytest.raises(InputError, match=r"trial 1: .* another process is at work there"):
        search(tmp_path / "sweep", space, sampler="grid")
    monkeypatch.undo()
    monkeypatch.setattr(engine, "JobProcess", FakeProcess)
    monkeypatch.setattr(FakeProcess, "status", lambda self: finish(self, 0.9))
    rows = search(tmp_path / "sweep", space, sampler="grid")
    assert [(row["trial"], row["state"]) for row in rows] == [(1, "complete"), (0, "complete")]


def finish(process, value):
    results = {part: {"ndcg_at_10": value} for part in ("valid", "test")}
    (process.run_dir / "results.json").write_text(json.dumps(results))
    return 0


def test_a_trial_refused_before_it_began_is_tried_again(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(fake, "status", lambda self: 2)
    with pytest.raises(InputError, match="trial 0: x is below 0"):
        search(tmp_path / "sweep", {"x": [0.5]}, sampler="grid")
    monkeypatch.setattr(fake, "status", lambda self: finish(self, 0.5))
    assert [row["state"] for row in search(tmp_path / "sweep", {"x": [0.5]}, sampler="grid")] == ["complete"]


def test_a_trial_without_parameters_gets_those_it_would_have_had(fake, tmp_path):
    space, settings = {"x": ("uniform", 0.0, 1.0)}, {"sampler": "tpe", "trials": 3}
    rows = search(tmp_path / "one", space, **settings)
    with sqlite3.connect(tmp_path / "one" / "sweep.sqlite") as database:
        chosen = database.execute("SELECT trial_id FROM trials WHERE number = 2").fetchone()
        database.execute("DELETE FROM trial_params WHERE trial_id = ?", chosen)
        database.execute("DELETE FROM trial_values WHERE trial_id = ?", chosen)
        database.execute("UPDATE trials SET state = 'RUNNING' WHERE number = 2")
    assert search(tmp_path / "one", space, **settings) == rows


@pytest.mark.parametrize("name", ["a?b", "a#b", "a%41b", "a b&c"])
def test_a_folder_may_be_called_anything(fake, tmp_path, name):
    if "?" in name:
        with pytest.raises(InputError, match=r"holds '\?', with which no checkpoint can be read back"):
            search(tmp_path / name, {"x": [0.5]}, sampler="grid")
        return
    search(tmp_path / name, {"x": [0.5]}, sampler="grid")
    assert (tmp_path / name / "sweep.sqlite").exists()
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("content", [b"", b"SQLite format 3\0 and then not", b"nothing of the kind" * 300])
def test_a_damaged_database_is_a_line(fake, tmp_path, content):
    search(tmp_path / "sweep", {"x": [0.5]}, sampler="grid")
    (tmp_path / "sweep" / "sweep.sqlite").write_bytes(content)
    if not content:  # nothing is lost but what was chosen; the trials are there
        assert search(tmp_path / "sweep", {"x": [0.5]}, sampler="grid")[0]["state"] == "complete"
        return
    with pytest.raises(InputError, match=r"sweep\.sqlite: is damaged .*; bind another RUN_DIR, or RunS"):
        search(tmp_path / "sweep", {"x": [0.5]}, sampler="grid")


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
