"""A run's metrics reach the tracking store once, whatever becomes of it meanwhile, and the run never waits."""

import json
import time
from types import SimpleNamespace

import pytest

from seqrec_jax.runs import tracking
from seqrec_jax.runs.folder import METRICS
from seqrec_jax.runs.metrics_log import MetricsLog, damaged_lines, read_records
from seqrec_jax.runs.settings import Tracking
from seqrec_jax.runs.tracking import Tracker


class Store:
    """What the tracker uses of an MLflow client; `gone` requests fail before it answers."""

    def __init__(self):
        self.gone, self.runs, self.metrics, self.params, self.files, self.status = 0, 0, [], {}, [], None
        self.deleted, self.experiment = set(), None

    def _answer(self):
        if self.gone:
            self.gone -= 1
            raise ConnectionError("connection refused")

    def get_experiment_by_name(self, name):
        self._answer()
        return self.experiment

    def create_experiment(self, name, artifact_location=None):
        return "1"

    def get_run(self, run_id):
        self._answer()
        stage = "deleted" if run_id in self.deleted else "active"
        return type("Run", (), {"info": type("Info", (), {"lifecycle_stage": stage})})

    def create_run(self, experiment, run_name=None, tags=None):
        self.runs += 1
        info = type("Info", (), {"run_id": f"run{self.runs}"})
        return type("Run", (), {"info": info})

    def update_run(self, run_id, status):
        self.status = status

    def log_batch(self, run_id, metrics=(), params=()):
        self._answer()
        self.metrics += [(metric.key, metric.value, metric.step) for metric in metrics]
        self.params |= {param.key: param.value for param in params}

    def log_artifact(self, run_id, path):
        self.files.append(path.rsplit("/")[-1])

    def set_terminated(self, run_id, status):
        self.status = status


@pytest.fixture
def store(monkeypatch):
    store = Store()
    monkeypatch.setattr(tracking, "_connect", lambda uri: store)
    monkeypatch.setattr(tracking, "SECONDS_BETWEEN_SENDS", 0.02)
    monkeypatch.setattr(tracking, "MOST_SECONDS_BETWEEN_TRIES", 0.05)
    return store


def until(condition, seconds=20):
    ends = time.monotonic() + seconds
    while not condition() and time.monotonic() < ends:
        time.sleep(0.01)
    assert condition()


def log(folder, steps):
    metrics = MetricsLog(folder / METRICS)
    for step in steps:
        metrics.add("step", step, 1, {"step/loss": step / 10, "step/grad_norm": float("nan")})


def test_all_is_sent_once_though_the_store_goes_away(store, tmp_path, caplog):
    store.gone = 3
    tracker = Tracker(Tracking("http://nowhere"))
    started = time.monotonic()
    tracker.start(tmp_path)
    tracker.log_params({"seed": 1})
    log(tmp_path, range(1, 4))
    assert time.monotonic() - started < 0.5
    until(lambda: len(store.metrics) == 3)
    store.gone = 2
    log(tmp_path, range(1, 6))
    (tmp_path / "results.json").write_text("{}")
    tracker.log_artifact(tmp_path / "results.json")
    until(lambda: store.files)
    tracker.close("FINISHED")
    assert store.metrics == [("step/loss", step / 10, step) for step in range(1, 6)]
    assert (store.runs, store.params, store.files, store.status) == (1, {"seed": "1"}, ["results.json"], "FINISHED")
    assert caplog.text.count("connection refused; the run goes on") == 2


def test_what_is_left_is_sent_by_the_next_process(store, tmp_path, caplog):
    store.gone = 1000
    tracker = Tracker(Tracking("http://nowhere", patience=0.2))
    tracker.start(tmp_path)
    log(tmp_path, range(1, 4))
    until(lambda: "the run goes on" in caplog.text)
    tracker.close("KILLED")
    assert "running the same command again sends it" in caplog.text
    assert not store.metrics
    store.gone = 0
    again = Tracker(Tracking("http://nowhere"))
    again.start(tmp_path)
    log(tmp_path, range(2, 5))
    again.close("FINISHED")
    assert [step for _, _, step in store.metrics] == [1, 2, 3, 4]
    assert (store.runs, store.status) == (1, "FINISHED")


def test_another_store_gets_a_run_of_its_own(store, tmp_path):
    log(tmp_path, range(1, 4))
    for runs, uri in ((1, "http://one"), (1, "http://one"), (2, "http://other")):
        tracker = Tracker(Tracking(uri))
        tracker.start(tmp_path)
        assert tracker.run_id(5) == f"run{runs}"
        tracker.close("FINISHED")
    assert len(store.metrics) == 6


def test_a_run_that_was_deleted_is_begun_anew_with_all_that_the_folder_holds(store, tmp_path, caplog):
    log(tmp_path, range(1, 4))
    for _ in range(2):
        tracker = Tracker(Tracking("http://one"))
        tracker.start(tmp_path)
        tracker.log_params({"seed": 1})
        tracker.close("FINISHED")
        store.deleted = {"run1"}
    assert [step for _, _, step in store.metrics] == [1, 2, 3, 1, 2, 3]
    assert json.loads((tmp_path / "tracking.json").read_text())["run_id"] == "run2"
    assert "run run1 was deleted; a new one is begun" in caplog.text
    assert "running the same command again" not in caplog.text


def test_a_deleted_experiment_is_named_with_what_to_do(store, tmp_path, caplog):
    store.experiment = SimpleNamespace(experiment_id="1", lifecycle_stage="deleted")
    tracker = Tracker(Tracking("http://one", experiment="shop"))
    tracker.start(tmp_path)
    started = time.monotonic()
    assert tracker.run_id(20) is None  # the thread has ended
    assert time.monotonic() - started < 10
    tracker.close("FINISHED")
    assert "experiment 'shop' was deleted: restore it, or bind Tracker.experiment to another" in caplog.text
    assert "running the same command again" not in caplog.text
    assert store.runs == 0


def test_a_store_that_is_gone_is_waited_for_once(store, tmp_path):
    store.gone = 1000
    tracker = Tracker(Tracking("http://nowhere", patience=0.1))
    tracker.start(tmp_path)
    started = time.monotonic()
    assert [tracker.run_id(0.5) for _ in range(5)] == [None] * 5
    assert 0.5 < time.monotonic() - started < 1.5
    tracker.close("KILLED")


def test_without_a_store_nothing_is_written(tmp_path):
    tracker = Tracker(None)
    tracker.start(tmp_path)
    tracker.log_params({"seed": 1})
    assert tracker.run_id(0) is None
    tracker.close("FINISHED")
    assert not list(tmp_path.iterdir())


def test_records_are_written_once_and_a_cut_line_is_mended(tmp_path):
    path = tmp_path / METRICS
    log(tmp_path, range(1, 4))
    whole = path.read_text()
    with path.open("a") as file:
        file.write('{"kind": "step", "st')
    log(tmp_path, range(2, 5))
    lines = path.read_text().splitlines()
    assert path.read_text().startswith(whole)
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]
    assert json.loads(lines[0])["metrics"] == {"step/loss": 0.1, "step/grad_norm": None}


@pytest.mark.parametrize(
    "damage", [b"\0" * 40 + b"\n", b"{}\n", b"[1]\n", b'{"kind": "step"}\n', b"\xff\xfe\n", b"\0\0", b'{"a": "\n']
)
@pytest.mark.parametrize("place", ["end", "middle"])
def test_damaged_records_are_removed_and_said(tmp_path, damage, place, caplog):
    path = tmp_path / METRICS
    log(tmp_path, range(1, 4))
    first, *rest = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + damage + b"".join(rest) if place == "middle" else first + b"".join(rest) + damage)
    assert {1, 3} <= {record["step"] for record in read_records(path)}
    log(tmp_path, range(1, 6))
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()][-2:] == [4, 5]
    assert damaged_lines(path) == []
    assert "cut off or damaged, and are removed" in caplog.text


@pytest.mark.parametrize("content", ["", "\0\0", "{", "[]", "{}", '{"uri": "http://nowhere"}', "3"])
def test_a_damaged_record_of_what_was_sent_sends_it_anew(store, tmp_path, content, caplog):
    log(tmp_path, range(1, 3))
    (tmp_path / tracking.TRACKING).write_text(content)
    tracker = Tracker(Tracking("http://nowhere"))
    tracker.start(tmp_path)
    tracker.close("FINISHED")
    assert [step for _, _, step in store.metrics] == [1, 2]
    assert "tracking.json: is" in caplog.text
    assert json.loads((tmp_path / tracking.TRACKING).read_text())["status"] == "FINISHED"


def test_metrics_whose_log_was_mended_are_sent_whole(store, tmp_path):
    log(tmp_path, range(1, 4))
    tracker = Tracker(Tracking("http://nowhere"))
    tracker.start(tmp_path)
    until(lambda: len(store.metrics) == 3)
    tracker.close("FINISHED")
    path = tmp_path / METRICS
    path.write_bytes(path.read_bytes()[30:])
    log(tmp_path, range(1, 5))
    again = Tracker(Tracking("http://nowhere"))
    again.start(tmp_path)
    again.close("FINISHED")
    assert {step for _, _, step in store.metrics} == {1, 2, 3, 4}
