"""The curves of training runs over compute, read from an MLflow database or from their folders, never written to."""

import bz2
import contextlib
import gzip
import math
import operator
import sqlite3
import time
import zlib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from seqrec_jax.errors import InputError, in_short
from seqrec_jax.files import JSON_AT_MOST, parse_json, read_json

# Params without which a run has no place in a law; their names are the reference's.
NEEDED = ("n_inters", "n_layers", "hidden_size", "train_batch_size", "total_flops", "epochs")
# Params of a run and not of its configuration: its seed and machine, what follows from them, and the reference's ids.
OF_A_RUN = {"seed", "devices", "device_kind", "peak_flops", "train_step_bytes", "train_step_flops",
            "train_step_hardware_flops", "task_id", "fda_tag_args-hash"}  # fmt: skip
OF_DRAWN_USERS = {"n_inters", "n_tokens"}  # params that follow from the seed, too, where a share of the users trains
OURS = "train_step_flops"  # a param that this project logs and the reference does not
SQLITE = b"SQLite format 3\0"
UNPACKED_AT_MOST, VALUE_AT_MOST = 1 << 28, 1 << 24  # bytes of a packed database, and of a value
SECONDS, BYTES_A_SECOND, OPERATIONS_BETWEEN = 5.0, 1e7, 10_000  # that reading a database may take
PACKED: Mapping[bytes, Callable[[Path], Any]] = {b"BZh": bz2.open, b"\x1f\x8b": gzip.open}  # by how files begin


class Curve(NamedTuple):
    """A run's metric as it was trained."""

    name: str  # name of the run
    params: Mapping[str, float]  # numbers among what was logged
    epochs: np.ndarray  # [n] float64, after which the metric was taken, ascending
    values: np.ndarray  # [n] float64, the metric, above 0
    compute: np.ndarray  # [n] float64, spent until then, in multiply-adds of linear layers, forward (as total_flops)
    configuration: Hashable  # equal for runs that differ in nothing but the seed and the machine


def _configuration(params: Mapping[str, Any], numbers: Mapping[str, float]) -> frozenset[tuple[str, str]]:
    """Params of a run, texts too, without OF_A_RUN; of a run on a share of the users without OF_DRAWN_USERS.

    A batch size that was found automatically is among them: runs with other batches learn differently.
    """
    ignored = OF_A_RUN | (OF_DRAWN_USERS if numbers.get("users_share", 1) < 1 else set())
    return frozenset((str(name), str(text)) for name, text in params.items() if name not in ignored)


def configurations_of(curves: Sequence[Curve]) -> np.ndarray:
    """The number of each run's configuration, from 0, in the order in which they come: [n] int64."""
    distinct = dict.fromkeys(curve.configuration for curve in curves)
    numbers = {configuration: number for number, configuration in enumerate(distinct)}
    return np.array([numbers[curve.configuration] for curve in curves])


def draw_runs(configurations: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Indices of a bootstrap draw of runs: of configurations, each with all of its seeds.

    Seeds of one configuration share what it gains or lacks, so that drawing run by run would take them for so many
    independent measurements. What differs between them stays in the draws.
    """
    members = [np.flatnonzero(configurations == number) for number in np.unique(configurations)]
    return np.concatenate([members[of] for of in generator.integers(len(members), size=len(members))])


class RunTable(NamedTuple):
    """Runs that can be laid over compute, and why others could not."""

    curves: Sequence[Curve]  # curves of the runs
    skipped: Mapping[str, Sequence[str]]  # names of runs, by the reason
    dropped: Mapping[str, int]  # evaluations left out, by the reason


class _Logged(NamedTuple):
    """A run as the database has it."""

    name: str
    params: dict[str, Any]
    history: dict[int, float]


def _unpacked(path: Path, opener: Callable[[Path], Any]) -> bytes:
    """A packed file's content; an InputError where it cannot be unpacked, or is above UNPACKED_AT_MOST."""
    try:
        with opener(path) as file:
            content = file.read(UNPACKED_AT_MOST + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"RUNS: {path} cannot be unpacked ({in_short(error)})") from error
    if len(content) > UNPACKED_AT_MOST:
        raise InputError(f"RUNS: {path} holds more than {UNPACKED_AT_MOST:,} bytes; unpack it, if you trust it")
    return content


def _connect(path: Path) -> sqlite3.Connection:
    """Opens a SQLite file, or one that is packed, to read; it can neither run code of its own nor go on for ever."""
    with path.open("rb") as file:
        begins = file.read(len(SQLITE))
    unpack = next((opener for magic, opener in PACKED.items() if begins.startswith(magic)), None)
    if unpack is None and begins != SQLITE:
        raise InputError(f"RUNS: {path} is not a SQLite file; bind RUNS to an MLflow database")
    if unpack is None:
        size, connection = path.stat().st_size, sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
    else:
        content = _unpacked(path, unpack)
        if not content.startswith(SQLITE):
            raise InputError(f"RUNS: {path} holds no SQLite file; bind RUNS to an MLflow database")
        size, connection = len(content), sqlite3.connect(":memory:")
        connection.deserialize(content)
    deadline = time.thread_time() + SECONDS + size / BYTES_A_SECOND
    connection.set_progress_handler(lambda: time.thread_time() > deadline, OPERATIONS_BETWEEN)
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, VALUE_AT_MOST)
    for setting in ("trusted_schema = OFF", "cell_size_check = ON", "ignore_check_constraints = ON"):
        connection.execute(f"PRAGMA {setting}")
    return connection


def _columns(connection: sqlite3.Connection, path: Path, table: str) -> set[str]:
    """Columns of a table that holds what it holds: no view, nothing virtual and nothing computed."""
    asked = "SELECT rootpage FROM sqlite_master WHERE name = ? AND type = 'table'"
    found = connection.execute(asked, (table,)).fetchall()
    if not found:
        raise InputError(f"RUNS: {path} is no MLflow database: it has no table {table!r}")
    rows = connection.execute(f"PRAGMA table_xinfo({table})").fetchall()
    if found != [(found[0][0],)] or not found[0][0] or any(hidden for *_, hidden in rows):
        raise InputError(f"RUNS: {path} is no MLflow database: its table {table!r} is computed")
    return {row[1] for row in rows}


def _values(connection: sqlite3.Connection, path: Path, metric: str) -> Iterator[tuple[str, int, float]]:
    """Run, step and value of a metric, in the order of their times; an InputError where one is no number."""
    asked = "SELECT run_uuid, step, value, is_nan FROM metrics WHERE key = ? ORDER BY timestamp"
    for run, step, value, is_nan in connection.execute(asked, (metric,)):
        numbers = isinstance(step, int), isinstance(is_nan or 0, int), is_nan or isinstance(value, int | float)
        if not all(numbers):
            raise InputError(f"RUNS: {path}: {metric} of run {run!r} is {value!r} at step {step!r}: no number")
        yield run, step, math.nan if is_nan else value


def _experiment_id(name: str, ids: Mapping[str, Any]) -> Any:
    if name not in ids:
        known = ", ".join(sorted(map(str, ids))) or "none"
        raise InputError(f"EXPERIMENT = {name!r}: the database has no such experiment, only {known}")
    return ids[name]


def _sqlite_runs(path: Path, metric: str, experiment: str | None) -> Iterator[_Logged]:
    """Runs of a SQLite store of any schema of MLflow, opened to read."""
    try:
        with contextlib.closing(_connect(path)) as connection:
            columns, *_ = (_columns(connection, path, table) for table in ("runs", "params", "metrics"))
            if (wrong := connection.execute("PRAGMA quick_check(1)").fetchone()) != ("ok",):
                raise sqlite3.DatabaseError(f"it is damaged: {wrong[0]}")
            where, given = "lifecycle_stage <> 'deleted'" if "lifecycle_stage" in columns else "1", []
            if experiment is not None:
                _columns(connection, path, "experiments")
                ids = dict(connection.execute("SELECT name, experiment_id FROM experiments"))
                where, given = f"{where} AND experiment_id = ?", [_experiment_id(experiment, ids)]
            params: dict[str, dict[str, Any]] = {}
            for run, key, value in connection.execute("SELECT run_uuid, key, value FROM params"):
                params.setdefault(run, {})[key] = value
            history: dict[str, dict[int, float]] = {}
            for run, step, value in _values(connection, path, metric):
                history.setdefault(run, {})[step] = value
            named = "name" if "name" in columns else "run_uuid"
            asked = f"SELECT run_uuid, {named} FROM runs WHERE {where} ORDER BY run_uuid"
            for run, name in connection.execute(asked, given):
                yield _Logged(str(name or run), params.get(run, {}), history.get(run, {}))
    except (sqlite3.Error, OSError) as error:
        text = " ".join(str(error).split())
        raise InputError(f"RUNS: {path}: cannot be read as an MLflow database ({text})") from error


def _served_runs(uri: str, metric: str, experiment: str | None) -> Iterator[_Logged]:
    """Runs of any store that MLflow's client reaches."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        client = MlflowClient(tracking_uri=uri)
        ids = {found.name: found.experiment_id for found in client.search_experiments()}
        experiments = list(ids.values()) if experiment is None else [_experiment_id(experiment, ids)]
        token: str | None = None
        while True:
            page = client.search_runs(experiments, page_token=token)
            for run in page:
                history = client.get_metric_history(run.info.run_id, metric)
                latest = {point.step: point.value for point in sorted(history, key=lambda point: point.timestamp)}
                yield _Logged(run.info.run_name or run.info.run_id, dict(run.data.params), latest)
            if not (token := page.token):
                return
    except MlflowException as error:
        raise InputError(f"RUNS = {uri!r}: cannot be read ({in_short(error)})") from error


def _epochs(log: Path, metric: str) -> Iterator[tuple[int, float]]:
    """Epochs and values of a metric, of a run's metrics.jsonl; a ValueError names the line that is damaged."""
    with log.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(JSON_AT_MOST + 1), b""), 1):
            try:
                record = parse_json(line)
                if record["kind"] != "epoch" or metric not in record["metrics"]:
                    continue
                epoch, value = record["epoch"], record["metrics"][metric]
                yield operator.index(epoch), math.nan if value is None else float(value)
            except (ValueError, LookupError, TypeError, OverflowError) as error:
                raise ValueError(f"{log.name}, line {number}: {error}") from error


def _folder_runs(folder: Path, metric: str) -> Iterator[_Logged]:
    """Finished runs of this project, each in a folder of its own within `folder`."""
    for results in sorted(folder.glob("*/results.json")):
        try:
            params = read_json(results, "copy the run again").get("params", {})
            history = dict(_epochs(results.parent / "metrics.jsonl", metric))
            yield _Logged(results.parent.name, dict(params), history)
        except (InputError, OSError, ValueError, TypeError, AttributeError) as error:
            raise InputError(f"RUNS: {results.parent}: cannot be read as a run's folder ({in_short(error)})") from error


def _logged(runs: str, metric: str, experiment: str | None) -> list[_Logged]:
    path = Path(runs.removeprefix("sqlite:///"))
    if path.is_dir():
        if experiment is not None:
            raise InputError(f"EXPERIMENT = {experiment!r}: {path} is a folder of runs, which have no experiments")
        return list(_folder_runs(path, metric))
    if "://" in runs and not runs.startswith("sqlite:///"):
        return list(_served_runs(runs, metric, experiment))
    if not path.is_file():
        raise InputError(f"RUNS: {path}: there is no such file; bind RUNS to an MLflow database, or to a server's URI")
    return list(_sqlite_runs(path, metric, experiment))


def _numbers(params: Mapping[str, Any]) -> dict[str, float]:
    """Those of the params that are finite numbers, or texts of some."""
    numbers = {}
    for name, text in params.items():
        with contextlib.suppress(ValueError, OverflowError):
            if isinstance(name, str) and isinstance(text, str | int | float) and math.isfinite(value := float(text)):
                numbers[name] = value
    return numbers


def _first_step(logged: Sequence[_Logged]) -> int:
    """The step of a metric that was taken after one epoch: 1 as we count, 0 as the reference does."""
    for run in logged:
        if 0 in run.history:
            return 0
        if OURS in run.params or max(run.history, default=-math.inf) >= _numbers(run.params).get("epochs", math.inf):
            return 1
    return 0


def _flops_of_an_epoch(numbers: Mapping[str, float]) -> float:
    """What an epoch of a run spends, in the unit of total_flops."""
    return numbers["total_flops"] * numbers["n_inters"] / numbers["train_batch_size"]


def _why_not(run: _Logged, numbers: Mapping[str, float], metric: str) -> str | None:
    """Why a run has no curve; None if it has."""
    if missing := [name for name in NEEDED if name not in numbers]:
        return f"has no param {missing[0]}"
    if wrong := [name for name in NEEDED if numbers[name] <= 0]:
        return f"has a param {wrong[0]} that is not above 0"
    if not run.history:
        return f"has no metric {metric}"
    if not math.isfinite(_flops_of_an_epoch(numbers)):
        return "needs a compute that is not finite"
    if not any(math.isfinite(value) and value > 0 for value in run.history.values()):
        return f"has no value of {metric} that is finite and above 0"
    return None


def read_runs(runs: str, metric: str, experiment: str | None = None) -> RunTable:
    """Reads the curves of all runs, or of an experiment's; InputError where none of them can be laid over compute.

    `runs` is the file of an MLflow SQLite store of any schema, which may be packed by bzip2 or gzip, another store's
    URI, or a folder that holds folders of finished runs; `metric`, one of validation by epoch, as `valid/ndcg_at_5`.
    """
    if not (logged := _logged(runs, metric, experiment)):
        raise InputError(f"RUNS = {runs!r}: it holds no run")
    first = _first_step(logged)
    curves, skipped, dropped = [], dict[str, list[str]](), dict[str, int]()
    for run in logged:
        numbers = _numbers(run.params)
        if reason := _why_not(run, numbers, metric):
            skipped.setdefault(reason, []).append(run.name)
            continue
        steps = sorted(run.history)
        values, epochs = np.array([run.history[step] for step in steps], float), np.array(steps, float) + (1 - first)
        faults = {"not finite": ~np.isfinite(values), "not above 0": values <= 0, "before the first epoch": epochs <= 0}
        for reason, fault in faults.items():
            if fault.any():
                dropped[reason] = dropped.get(reason, 0) + int(fault.sum())
        good = ~np.any(list(faults.values()), axis=0)
        if not good.any():
            skipped.setdefault(f"has no value of {metric} after an epoch", []).append(run.name)
            continue
        compute = epochs[good] * _flops_of_an_epoch(numbers)
        configuration = _configuration(run.params, numbers)
        curves.append(Curve(run.name, numbers, epochs[good], values[good], compute, configuration))
    if not curves:
        reason, names = max(skipped.items(), key=lambda item: len(item[1]))
        raise InputError(f"RUNS = {runs!r}: no run can be used; {len(names)} of {len(logged)} of them: it {reason}")
    return RunTable(curves, skipped, dropped)
