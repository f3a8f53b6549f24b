"""The folder of a run: who holds it, what it was begun with, and what is left in the end."""

import json

import pytest

from seqrec_jax.errors import InputError, Interrupted
from seqrec_jax.runs.folder import report_folder
from seqrec_jax.runs.run import Run
from seqrec_jax.runs.settings import Checkpoints, Reports, RunSettings
from seqrec_jax.runs.stopping import StopRequests

CONFIG = {"TrainConfig": {"epochs": 4, "loss": {"name": "sampled_softmax", "n_negatives": 300}, "ks": (5, 10)}}


def changed(**settings):
    return {"TrainConfig": CONFIG["TrainConfig"] | settings}


def test_a_run_begins_goes_on_and_is_finished(tmp_path):
    for _ in range(2):
        with Run(tmp_path / "run", RunSettings(config_text="epochs = 4")) as run:
            assert run.begin(CONFIG) is None
            run.metrics.add("step", 1, 1, {"loss": 1.0})
    assert (run.path / "config.gin").read_text() == "epochs = 4"
    assert len((run.path / "metrics.jsonl").read_text().splitlines()) == 1
    with Run(tmp_path / "run") as run:
        assert run.recorded("TrainConfig.epochs") == 4
        assert run.recorded("TrainConfig.loss.nothing") is None
        run.begin(CONFIG)
        run.finish({"test": 1})
    with Run(tmp_path / "run") as run:
        assert run.begin(CONFIG) == {"test": 1}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (changed(epochs=5), r"TrainConfig\.epochs = 4 \(now 5\);"),
        (
            changed(loss={"name": "sampled_softmax", "n_negatives": 64}),
            r"softmax\.n_negatives = 300 \(now 64\)",
        ),
        (
            changed(loss={"name": "bpr"}, ks=[5]),
            r"TrainConfig\.ks = .* \(now \[5\]\), TrainConfig\.loss = sampled",
        ),
        ({"Sweep": {}}, r"Sweep = unset \(now {.*}\), TrainConfig = {.*} \(now unset\)"),
    ],
)
def test_another_configuration_is_refused_field_by_field(tmp_path, config, words):
    with Run(tmp_path / "run") as run:
        run.begin(CONFIG)
    with pytest.raises(InputError, match=words), Run(tmp_path / "run") as run:
        run.begin(config)
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == json.loads(json.dumps(CONFIG))


def test_overwriting_removes_what_runs_write_and_nothing_else(tmp_path):
    with Run(tmp_path / "run", writes=("mine",)) as run:
        run.begin(CONFIG)
        run.finish({})
        for name in ("checkpoints", "mine", "yours"):
            (run.path / name).mkdir()
    with Run(tmp_path / "run", RunSettings(overwrite=True), ("mine",)) as run:
        assert run.recorded("TrainConfig.epochs") is None
        assert run.begin(changed(epochs=5)) is None
    assert {path.name for path in run.path.iterdir()} == {"config.json", "yours", ".lock"}


def test_a_folder_that_cannot_be_had_is_refused_and_an_empty_one_removed(tmp_path):
    with Run(tmp_path / "run") as run:
        with pytest.raises(InputError, match="another process is at work there"), Run(run.path):
            pass
        assert run.path.exists()
    assert not run.path.exists()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file; bind RUN_DIR to a folder"), Run(tmp_path / "file"):
        pass


def test_the_tracker_is_closed_with_what_the_run_ended_with(tmp_path, monkeypatch):
    closed = []
    monkeypatch.setattr("seqrec_jax.runs.tracking.Tracker.close", lambda self, status: closed.append(status))
    for error in (None, InputError("bad"), Interrupted("stopped", 143)):
        try:
            with Run(tmp_path / "run"):
                if error is not None:
                    raise error
        except (InputError, Interrupted):
            pass
    assert closed == ["FINISHED", "FAILED", "KILLED"]


def test_checkpoints_that_do_not_fit_on_the_disk_are_refused(tmp_path):
    with Run(tmp_path / "run") as run:
        run.check_disk(10**3, 4)
        with pytest.raises(InputError, match=r"4 checkpoints need 4000000.00 GB of disk, but .* GB are free"):
            run.check_disk(10**15, 4)


def test_time_that_is_up_asks_to_stop():
    with StopRequests(1e-9) as stop:
        assert stop.asked
        assert "MAX_HOURS = 1e-09 after step 1,000; its" in str(stop.reason(1000))
        assert stop.reason(1).status == 0
    with StopRequests() as stop:
        assert not stop.asked


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: RunSettings(max_hours=0), "RunSettings.max_hours = 0 is not above 0"),
        (lambda: RunSettings(model_axis=0), "RunSettings.model_axis = 0 is below 1"),
        (lambda: Checkpoints(keep=1), "Checkpoints.keep = 1 is below 2"),
        (lambda: Checkpoints(every_minutes=0.0), "Checkpoints.every_minutes = 0.0 is not above 0"),
        (lambda: Reports(every_steps=0), "Reports.every_steps = 0 is below 1"),
        (lambda: Reports(fit_users=-1), "Reports.fit_users = -1 is below 0"),
        (lambda: Reports(trace=(5, 3)), r"Reports.trace = \(5, 3\) is no pair of a first and a last step"),
    ],
)
def test_senseless_settings_are_refused(make, words):
    with pytest.raises(InputError, match=words):
        make()


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "name", ["checkpoints/1/params/d/x", "runs/mine.csv", "results.json", "notes.txt", "trace/x", ".hidden", "a/b/c"]
)
@pytest.mark.parametrize("settings", [RunSettings(), RunSettings(overwrite=True)])
def test_a_folder_that_is_no_runs_is_refused_and_left_alone(tmp_path, name, settings):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match=rf"holds {name.split('/')[0]} and is no run.*; bind RUN_DIR to a new folder"):
        Run(tmp_path, settings, ("runs", "trials")).__enter__()
    assert tree(tmp_path) == {name: b"mine"}


@pytest.mark.parametrize(
    "name", ["checkpoints/mine.bin", "runs/notes/a.txt", "checkpoints/1/mine", "damaged/x/y", "runs/x"]
)
def test_overwriting_stops_at_what_no_run_has_written(tmp_path, name):
    with Run(tmp_path / "run", writes=("runs",)) as run:
        run.begin(CONFIG)
        for ours in (
            "checkpoints/1/params/d/x",
            "checkpoints/1/checksums.json",
            "runs/a/results.json",
            "metrics.jsonl",
        ):
            (run.path / ours).parent.mkdir(parents=True, exist_ok=True)
            (run.path / ours).write_text("{}")
    (run.path / name).parent.mkdir(parents=True, exist_ok=True)
    (run.path / name).write_text("mine")
    before = tree(run.path)
    again = Run(run.path, RunSettings(overwrite=True), ("runs",))
    with pytest.raises(InputError, match=rf"{name}: no run has written this, .*; move it away"), again:
        again.begin(changed(epochs=5))
    assert tree(run.path) == before
    (run.path / name).unlink()
    with again:
        again.begin(changed(epochs=5))
    assert set(tree(run.path)) == {".lock", "config.json"}


def test_a_link_is_removed_and_what_it_names_is_not(tmp_path):
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "x").write_text("mine")
    with Run(tmp_path / "run") as run:
        run.begin(CONFIG)
        (run.path / "checkpoints").symlink_to(tmp_path / "big")
    with Run(run.path, RunSettings(overwrite=True)) as run:
        run.begin(changed(epochs=5))
    assert (tmp_path / "big" / "x").read_text() == "mine"
    assert not (run.path / "checkpoints").exists()


@pytest.mark.parametrize("name", ["lr[1e-3]", "what?", "all*"])
def test_a_path_that_orbax_takes_for_a_pattern_is_refused(tmp_path, name):
    with pytest.raises(InputError, match=r"with which no checkpoint can be read back; bind RUN_DIR to a path without"):
        Run(tmp_path / name / "run").__enter__()
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("content", ["", "{", "[]", "\0\0\0", "3"])
@pytest.mark.parametrize("name", ["config.json", "results.json"])
def test_a_damaged_record_is_a_line_that_says_what_to_do(tmp_path, name, content):
    with Run(tmp_path / "run") as run:
        run.begin(CONFIG)
        run.finish({"test": {}})
    (run.path / name).write_text(content)
    again = Run(run.path)
    with again:
        if name == "results.json" and content in ("[]", "3"):
            return
        with pytest.raises(InputError, match=rf"{name}: is (damaged|no configuration).*; (remove it|bind another)"):
            again.begin(CONFIG)


def test_a_report_is_written_beside_no_run(tmp_path):
    assert report_folder(tmp_path / "new", "results.json").is_dir()
    (tmp_path / "new" / "results.json").touch()
    report_folder(tmp_path / "new", "results.json")
    with Run(tmp_path / "run") as run:
        run.begin(CONFIG)
    with pytest.raises(InputError, match="run: holds a run; bind RUN_DIR to another folder, or to none"):
        report_folder(run.path, "results.json")
    (tmp_path / "new" / "photos").mkdir()
    with pytest.raises(InputError, match="new: holds photos; bind RUN_DIR to another folder"):
        report_folder(tmp_path / "new", "results.json")


def test_a_folder_that_was_there_before_stays(tmp_path):
    with Run(tmp_path):
        pass
    assert tmp_path.is_dir()
