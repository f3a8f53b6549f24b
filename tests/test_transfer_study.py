"""A study runs its cells, goes on where it was interrupted, and ends with a table, a file and a plot."""

import json

import pytest

from seqrec_jax.errors import InputError, Interrupted
from seqrec_jax.runs.stopping import StopRequests
from seqrec_jax.studies import engine
from seqrec_jax.studies.tables import transfer_table
from seqrec_jax.studies.transfer_study import Cell, TransferStudy, summarize_cells, transfer_study

METHODS = {"scratch": ["gin/finetune_from_scratch.gin"], "full": ["gin/finetune_full.gin", "finetune.seed = 0"]}


class FakeProcess:
    """A run whose metric follows from what it is bound to."""

    started, stopped, fails = [], [], ()

    def __init__(self, job, cpus=None):
        command, run_dir = job.command, job.run_dir
        self.bound = dict(part.removeprefix("--gin_bindings=").split(" = ", 1) for part in command if " = " in part)
        self.gin_file = next(part.removeprefix("--gin_file=") for part in command if "--gin_file" in part)
        FakeProcess.started.append(run_dir.name)
        self.run_dir, self.looks = run_dir, 0

    def status(self):
        self.looks += 1
        if self.looks < 2:
            return None
        if self.run_dir.name in FakeProcess.fails:
            return 2
        gain = 2 if "full" in self.gin_file else 1
        value = gain * float(self.bound["USERS_SHARE"]) / 10 + 0.001 * int(self.bound["SEED"])
        self.run_dir.mkdir(parents=True, exist_ok=True)
        results = {part: {"ndcg_at_10": value} for part in ("valid", "test")}
        (self.run_dir / "results.json").write_text(json.dumps(results))
        return 0

    def stop(self):
        FakeProcess.stopped.append(self.run_dir.name)

    def last_line(self):
        return "no such checkpoint"


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    monkeypatch.setattr(engine, "JobProcess", FakeProcess)
    monkeypatch.setattr(engine, "SECONDS_BETWEEN_LOOKS", 0.0)
    FakeProcess.started, FakeProcess.stopped, FakeProcess.fails = [], [], ()


def study(tmp_path, **settings):
    settings = {"scratch": ["scratch"], "shares": [0.1, 1.0], "seeds": [0, 2]} | settings
    return transfer_study(TransferStudy("c", "d", METHODS, **settings), tmp_path / "study")


def test_every_cell_is_run_once_and_told(tmp_path):
    results = study(tmp_path, processes=2)
    assert len(FakeProcess.started) == len(results["cells"]) == 8
    assert FakeProcess.started[:4] == ["scratch_10_0", "scratch_100_0", "full_10_0", "full_100_0"]
    rows = {(row["method"], row["users_share"]): row for row in results["table"]}
    assert rows["full", 1.0]["mean"] == pytest.approx(0.201)
    assert rows["full", 1.0]["sd"] == pytest.approx(0.002 / 2**0.5)
    assert rows["full", 1.0]["gain"] == pytest.approx(0.201 / 0.101 - 1)
    assert rows["scratch", 0.1]["gain"] == 0
    assert json.loads((tmp_path / "study" / "transfer_study.json").read_text()) == results
    assert (tmp_path / "study" / "transfer_study.png").stat().st_size > 10_000
    table = transfer_table(results)
    assert [str(column.header) for column in table.columns] == ["", "10 %", "100 %"]
    assert str(next(iter(table.columns[2].cells))) == "0.1010 ± 0.0014\n+0 %"
    FakeProcess.started = []
    assert study(tmp_path) == results
    assert not FakeProcess.started


def test_an_interrupted_study_stops_its_runs_and_goes_on(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(StopRequests, "asked", property(lambda self: True))
        with pytest.raises(Interrupted, match="after run 0;"):
            study(tmp_path, processes=2)
    assert sorted(FakeProcess.stopped) == ["scratch_100_0", "scratch_10_0"]
    assert len(study(tmp_path)["cells"]) == 8


def test_a_run_that_fails_ends_the_study_or_leaves_a_gap(tmp_path):
    FakeProcess.fails = ("scratch_10_0",)
    with pytest.raises(InputError, match=r"scratch, 10 % of users, seed 0: no such checkpoint"):
        study(tmp_path)
    FakeProcess.fails = ("full_10_2",)
    results = study(tmp_path)
    assert len(results["cells"]) == 7
    assert next(row for row in results["table"] if row["method"] == "full" and row["users_share"] == 0.1)["seeds"] == 1


def test_the_better_of_several_from_scratch_is_the_bar():
    rows = [{"method": m, "users_share": 1.0, "seed": 0, "test": {"x": v}} for m, v in (("a", 1), ("b", 2), ("c", 3))]
    table = summarize_cells(rows, "x", ["a", "b"])
    assert [row["gain"] for row in table] == [-0.5, 0.0, 0.5]
    assert [row["sd"] for row in table] == [None, None, None]


def test_what_fits_no_study_is_refused(tmp_path):
    cases = {
        r"TransferStudy.methods\['x'\] = 'y' is no list": {"methods": {"x": "y"}},
        r"TransferStudy.methods = {} names no method": {"methods": {}},
        r"TransferStudy.scratch names 'z'": {"scratch": ["z"]},
        r"TransferStudy.shares holds 0": {"shares": [0]},
        r"TransferStudy.processes = 0 is below 1": {"processes": 0},
    }
    for message, settings in cases.items():
        with pytest.raises(InputError, match=message):
            TransferStudy("c", "d", **({"methods": METHODS} | settings))
    assert str(Cell("text, id", 0.25, 7).run_dir(tmp_path)).endswith("runs/text, id_25_7")


def test_a_study_of_other_methods_is_refused_and_more_seeds_are_not(tmp_path):
    study(tmp_path)
    with pytest.raises(InputError, match=r"TransferStudy.metric = ndcg_at_10 \(now hit_at_5\); bind another RUN_DIR"):
        study(tmp_path, metric="hit_at_5")
    FakeProcess.started = []
    assert len(study(tmp_path, seeds=[0, 2, 4])["cells"]) == 12
    assert FakeProcess.started == ["scratch_10_4", "scratch_100_4", "full_10_4", "full_100_4"]
