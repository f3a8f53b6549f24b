import bz2
import gzip
import hashlib
import json
import math
import pathlib
import sqlite3
import tracemalloc

import mlflow
import numpy as np
import pytest
from scaling_runs import METRIC, MadeRun, compute_of, params_of, write_database

from seqrec_jax.errors import InputError
from seqrec_jax.scaling import run_table
from seqrec_jax.scaling.run_table import configurations_of, read_runs

PARAMS = params_of(64, 2, 100_000, 10)


def test_compute_is_epochs_times_flops_times_targets_over_the_batch(tmp_path):
    write_database(tmp_path / "runs.sqlite", [MadeRun(PARAMS, {5: 0.1, 10: 0.2})])
    (curve,) = read_runs(str(tmp_path / "runs.sqlite"), METRIC).curves
    np.testing.assert_allclose(curve.epochs, [5, 10])
    np.testing.assert_allclose(curve.compute, [compute_of(PARAMS, 5), compute_of(PARAMS, 10)])
    np.testing.assert_allclose(curve.values, [0.1, 0.2])


def test_steps_that_do_not_reach_the_epochs_are_counted_from_zero(tmp_path):
    write_database(tmp_path / "runs.sqlite", [MadeRun(PARAMS, {4: 0.1, 9: 0.2})])
    (curve,) = read_runs(str(tmp_path / "runs.sqlite"), METRIC).curves
    np.testing.assert_allclose(curve.epochs, [5, 10])


def test_steps_of_our_own_runs_are_counted_from_one_even_if_they_stopped_early(tmp_path):
    write_database(tmp_path / "runs.sqlite", [MadeRun(PARAMS | {"train_step_flops": 1e9}, {4: 0.1})])
    (curve,) = read_runs(str(tmp_path / "runs.sqlite"), METRIC).curves
    np.testing.assert_allclose(curve.epochs, [4])


def test_runs_that_cannot_be_used_are_named_with_the_reason(tmp_path):
    without = {name: value for name, value in PARAMS.items() if name != "n_inters"}
    runs = [
        MadeRun(PARAMS, {10: 0.1}),
        MadeRun(without, {10: 0.1}),
        MadeRun(PARAMS, {}),
        MadeRun(PARAMS, {10: math.nan}),
    ]
    write_database(tmp_path / "runs.sqlite", runs)
    table = read_runs(str(tmp_path / "runs.sqlite"), METRIC)
    assert len(table.curves) == 1
    assert table.skipped == {
        "has no param n_inters": ["run0001"],
        f"has no metric {METRIC}": ["run0002"],
        f"has no value of {METRIC} that is finite and above 0": ["run0003"],
    }


def test_runs_of_a_configuration_differ_in_nothing_but_the_seed_and_the_machine(tmp_path):
    params = PARAMS | {"loss": "full_softmax", "item_encoder": "text", "seed": 1, "train_step_bytes": 5, "devices": 1}
    half = params | {"users_share": 0.5, "n_tokens": 7}
    runs = [
        params, params | {"seed": 2, "train_step_bytes": 6, "devices": 4, "device_kind": "gpu", "peak_flops": 1e12},
        params | {"loss": "bpr"}, params | {"item_encoder": "id"}, params | {"n_inters": 99_000},
        half, half | {"seed": 2, "n_inters": 51_000, "n_tokens": 8}, half | {"users_share": 0.25},
    ]  # fmt: skip
    write_database(tmp_path / "runs.sqlite", [MadeRun(of, {10: 0.1}) for of in runs])
    curves = read_runs(str(tmp_path / "runs.sqlite"), METRIC).curves
    assert configurations_of(curves).tolist() == [0, 0, 1, 2, 3, 4, 4, 5]


def test_evaluations_that_are_not_finite_are_counted(tmp_path):
    write_database(tmp_path / "runs.sqlite", [MadeRun(PARAMS, {1: 0.0, 5: math.nan, 10: 0.1})])
    table = read_runs(str(tmp_path / "runs.sqlite"), METRIC)
    assert table.dropped == {"not finite": 1, "not above 0": 1}
    np.testing.assert_allclose(table.curves[0].epochs, [10])


def test_the_file_is_not_written_to(tmp_path):
    path = tmp_path / "runs.sqlite"
    write_database(path, [MadeRun(PARAMS, {10: 0.1})])
    before = hashlib.sha256(path.read_bytes()).digest()
    path.chmod(0o444)
    read_runs(f"sqlite:///{path}", METRIC)
    assert hashlib.sha256(path.read_bytes()).digest() == before
    assert [file.name for file in tmp_path.iterdir()] == ["runs.sqlite"]


def test_a_store_of_todays_mlflow_reads_the_same_by_file_and_by_client(tmp_path):
    uri = f"sqlite:///{tmp_path}/runs.sqlite"
    client = mlflow.MlflowClient(tracking_uri=uri)
    run = client.create_run(client.create_experiment("e"), run_name="mine")
    for name, value in PARAMS.items():
        client.log_param(run.info.run_id, name, value)
    for epoch in (5, 10):
        client.log_metric(run.info.run_id, METRIC, epoch / 100, step=epoch)
    other = client.create_run(client.create_experiment("other"), run_name="not mine")
    client.log_param(other.info.run_id, "n_layers", 2)
    table = read_runs(uri, METRIC, "e")
    assert [curve.name for curve in table.curves] == ["mine"]
    assert not table.skipped
    assert read_runs(uri, METRIC).skipped == {"has no param n_inters": ["not mine"]}
    with pytest.raises(InputError, match="EXPERIMENT = 'f': the database has no such experiment, only Default, e"):
        read_runs(uri, METRIC, "f")
    np.testing.assert_allclose(table.curves[0].values, [0.05, 0.1])


def test_a_packed_database_is_read_in_memory(tmp_path):
    write_database(tmp_path / "runs.sqlite", [MadeRun(PARAMS, {10: 0.1})])
    content = (tmp_path / "runs.sqlite").read_bytes()
    for name, packed in {"runs.sqlite.bz2": bz2.compress(content), "runs.sqlite.gz": gzip.compress(content)}.items():
        (tmp_path / name).write_bytes(packed)
        assert len(read_runs(str(tmp_path / name), METRIC).curves) == 1
    (tmp_path / "half.bz2").write_bytes(bz2.compress(content)[:-100])
    with pytest.raises(InputError, match="cannot be unpacked"):
        read_runs(str(tmp_path / "half.bz2"), METRIC)
    (tmp_path / "text.gz").write_bytes(gzip.compress(b"text"))
    with pytest.raises(InputError, match="holds no SQLite file"):
        read_runs(str(tmp_path / "text.gz"), METRIC)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such file"),
        (b"run_id,metric", "is not a SQLite file"),
    ],
)
def test_a_file_that_is_no_database_is_refused(tmp_path, content, message):
    path = tmp_path / "runs.sqlite"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_runs(str(path), METRIC)


def test_a_database_that_is_not_mlflows_or_is_empty_is_refused(tmp_path):
    sqlite3.connect(tmp_path / "other.sqlite").execute("CREATE TABLE t (x INT)").connection.commit()
    with pytest.raises(InputError, match="it has no table 'runs'"):
        read_runs(str(tmp_path / "other.sqlite"), METRIC)
    write_database(tmp_path / "empty.sqlite", [])
    with pytest.raises(InputError, match="holds no run"):
        read_runs(str(tmp_path / "empty.sqlite"), METRIC)
    write_database(tmp_path / "bare.sqlite", [MadeRun({}, {10: 0.1})])
    with pytest.raises(InputError, match="no run can be used; 1 of 1 of them: it has no param n_inters"):
        read_runs(str(tmp_path / "bare.sqlite"), METRIC)


def test_a_folder_of_finished_runs_is_read_like_a_database(tmp_path):
    params = {name: str(value) for name, value in params_of(64, 2, 1000, 4).items()} | {"train_step_flops": "1"}
    values = [0.1, None, 0.0, 0.3]
    for name, written in (("a", values), ("unfinished", values[:1])):
        run = tmp_path / "runs" / name
        run.mkdir(parents=True)
        lines = [
            json.dumps({"kind": "epoch", "step": e, "epoch": e, "time": 0, "metrics": {METRIC: value}})
            for e, value in enumerate(written, 1)
        ]
        step = json.dumps({"kind": "step", "step": 1, "epoch": 1, "time": 0, "metrics": {"step/loss": 1.0}})
        (run / "metrics.jsonl").write_text("\n".join([step, *lines]) + "\n")
    (tmp_path / "runs" / "a" / "results.json").write_text(json.dumps({"params": params}))
    table = read_runs(str(tmp_path / "runs"), METRIC)
    (curve,) = table.curves
    assert curve.name == "a"
    np.testing.assert_array_equal(curve.epochs, [1, 4])
    np.testing.assert_allclose(curve.compute, [compute_of(params_of(64, 2, 1000, 4), e) for e in (1, 4)])
    assert table.dropped == {"not finite": 1, "not above 0": 1}
    with pytest.raises(InputError, match=r"EXPERIMENT = 'x': .* is a folder of runs"):
        read_runs(str(tmp_path / "runs"), METRIC, "x")
    (tmp_path / "runs" / "a" / "metrics.jsonl").write_text("{")
    with pytest.raises(InputError, match=r"RUNS: .*runs/a: cannot be read as a run's folder"):
        read_runs(str(tmp_path / "runs"), METRIC)
    with pytest.raises(InputError, match="it holds no run"):
        read_runs(str(tmp_path / "runs" / "a"), METRIC)


def altered(path, script):
    """A database of three runs, changed by a script."""
    write_database(path, [MadeRun(PARAMS | {"seed": seed}, {5: 0.1, 10: 0.2}) for seed in range(3)])
    connection = sqlite3.connect(path)
    connection.executescript(script)
    connection.commit()
    connection.close()
    return str(path)


ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT"


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (f"DROP TABLE params; CREATE VIEW params AS {ENDLESS} i AS run_uuid, i AS key, i AS value FROM n",
         "it has no table 'params'"),
        ("DROP TABLE runs; CREATE VIRTUAL TABLE runs USING fts5(run_uuid, name)", "its table 'runs' is computed"),
        ("ALTER TABLE metrics ADD COLUMN more BLOB AS (zeroblob(1000000000))", "its table 'metrics' is computed"),
        ("UPDATE metrics SET value = 'many'", "is 'many' at step 5: no number"),
        ("UPDATE metrics SET value = NULL", "is None at step 5: no number"),
        ("UPDATE metrics SET value = x'00'", r"is b'\\x00' at step 5: no number"),
        ("UPDATE metrics SET step = 'first'", "at step 'first': no number"),
        ("UPDATE metrics SET step = 1.5", "at step 1.5: no number"),
        ("UPDATE metrics SET is_nan = 'perhaps'", "no number"),
        ("UPDATE metrics SET value = 9e999", "it has no value of .* that is finite and above 0"),
        ("UPDATE metrics SET step = -9223372036854775808", "it has no value of .* after an epoch"),
        ("UPDATE params SET value = NULL", "it has no param n_inters"),
        ("UPDATE params SET value = x'3132'", "it has no param n_inters"),
        ("UPDATE params SET value = '1e300'", "it needs a compute that is not finite"),
        ("UPDATE params SET key = NULL", "it has no param n_inters"),
        ("UPDATE params SET key = x'ff'", "it has no param n_inters"),
        ("UPDATE metrics SET run_uuid = NULL", "it has no metric"),
        ("ALTER TABLE params DROP COLUMN value", "cannot be read as an MLflow database"),
        ("UPDATE runs SET name = CAST(x'ff' AS TEXT)", "cannot be read as an MLflow database"),
        ("PRAGMA writable_schema = ON; UPDATE sqlite_master SET rootpage = 10000 WHERE name = 'params'",
         "cannot be read as an MLflow database"),
        ("PRAGMA writable_schema = ON; UPDATE sqlite_master SET rootpage = 2", "cannot be read as an MLflow database"),
        ("PRAGMA writable_schema = ON; UPDATE sqlite_master SET sql = 'CREATE VIEW runs AS SELECT 1' "
         "WHERE name = 'runs'", "cannot be read as an MLflow database"),
    ],
)  # fmt: skip
def test_a_hostile_database_is_refused(tmp_path, script, words):
    path = altered(tmp_path / "runs.sqlite", script)
    for place in (path, packed(path)):
        with pytest.raises(InputError, match=words) as refused:
            read_runs(place, METRIC)
        assert "\n" not in str(refused.value)


def packed(path):
    content = gzip.compress(pathlib.Path(path).read_bytes())
    pathlib.Path(f"{path}.gz").write_bytes(content)
    return f"{path}.gz"


@pytest.mark.parametrize("kind", ["INTEGER", "TEXT", "BLOB"])
def test_an_experiment_has_an_id_of_any_type(tmp_path, kind):
    value = {"INTEGER": "7", "TEXT": "'7; DROP TABLE runs'", "BLOB": "x'00'"}[kind]
    script = f"""
        CREATE TABLE experiments (name TEXT, experiment_id {kind});
        INSERT INTO experiments VALUES ('e', {value}), (NULL, NULL);
        ALTER TABLE runs ADD COLUMN experiment_id {kind};
        UPDATE runs SET experiment_id = {value} WHERE run_uuid = 'run0001';
    """
    path = altered(tmp_path / "runs.sqlite", script)
    assert [curve.name for curve in read_runs(path, METRIC, "e").curves] == ["run0001"]
    with pytest.raises(InputError, match="the database has no such experiment, only None, e"):
        read_runs(path, METRIC, "f")


def test_a_database_that_takes_too_long_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(run_table, "SECONDS", -1e9)
    monkeypatch.setattr(run_table, "OPERATIONS_BETWEEN", 1)
    with pytest.raises(InputError, match=r"cannot be read as an MLflow database \(interrupted"):
        read_runs(altered(tmp_path / "runs.sqlite", ""), METRIC)


@pytest.mark.parametrize("opener", [bz2, gzip])
def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch, opener):
    monkeypatch.setattr(run_table, "UNPACKED_AT_MOST", 1 << 20)
    begins, zeros = opener.compress(b"SQLite format 3\0"), opener.compress(bytes(1 << 24))
    (tmp_path / "bomb").write_bytes(begins + zeros * 20)
    tracemalloc.start()
    with pytest.raises(InputError, match="holds more than 1,048,576 bytes"):
        read_runs(str(tmp_path / "bomb"), METRIC)
    assert tracemalloc.get_traced_memory()[1] < 10 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("results.json", "", "results.json: is damaged"),
        ("results.json", "[]", "cannot be read as a run's folder"),
        ("results.json", '{"params": 3}', "cannot be read as a run's folder"),
        ("results.json", '{"params": null}', "cannot be read as a run's folder"),
        ("results.json", "[" * 100_000, "it is too large, or too deep"),
        ("metrics.jsonl", '{"kind": "epoch"}\n', "metrics.jsonl, line 1"),
        ("metrics.jsonl", "{}\n[]\n", "metrics.jsonl, line 1"),
        ("metrics.jsonl", '{"kind": "epoch", "epoch": "1", "metrics": {"M": 1}}\n', "metrics.jsonl, line 1"),
        ("metrics.jsonl", '{"kind": "epoch", "epoch": 1, "metrics": {"M": "x"}}\n', "metrics.jsonl, line 1"),
        ("metrics.jsonl", '{"kind": "epoch", "epoch": 1, "metrics": {"M": [1]}}\n', "metrics.jsonl, line 1"),
        ("metrics.jsonl", '{"kind": "step", "metrics": {}}\n\0\0\0\n', "metrics.jsonl, line 2"),
        ("metrics.jsonl", '{"kind": "epoch", "epoch": 1, "metrics": 5}\n', "metrics.jsonl, line 1"),
    ],
)
def test_a_damaged_folder_is_refused_with_the_place(tmp_path, name, content, words):
    run = tmp_path / "runs" / "a"
    run.mkdir(parents=True)
    (run / "results.json").write_text("{}")
    (run / "metrics.jsonl").write_text("")
    (run / name).write_text(content.replace("M", METRIC))
    with pytest.raises(InputError, match=words) as refused:
        read_runs(str(tmp_path / "runs"), METRIC)
    assert str(run) in str(refused.value)
    assert "\n" not in str(refused.value)
