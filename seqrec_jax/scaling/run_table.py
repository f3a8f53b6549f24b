"""The curves of training runs over compute, read from an MLflow database or from their folders, never written to."""

import bz2
import contextlib
import gzip
import json
import math
import sqlite3
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from seqrec_jax.errors import InputError

# Params without which a run has no place in a law; their names are the reference's.
NEEDED = ("n_inters", "n_layers", "hidden_size", "train_batch_size", "total_flops", "epochs")
# Params of a run and not of its configuration: its seed and machine, what follows from them, and the reference's ids.
OF_A_RUN = {"seed", "devices", "device_kind", "peak_flops", "train_step_bytes", "train_step_flops",
            "train_step_hardware_flops", "task_id", "fda_tag_args-hash"}  # fmt: skip
OF_DRAWN_USERS = {"n_inters", "n_tokens"}  # params that follow from the seed, too, where a share of the users trains
OURS = "train_step_flops"  # a param that this project logs and the reference does not
SQLITE = b"SQLite format 3\0"
PACKED: Mapping[bytes, Callable[[Path], Any]] = {b"BZh": bz2.open, b"\x1f\x8b": gzip.open}  # by how files begin


class Curve(NamedTuple):
    """A run's metric as it was trained."""

    name: str  # name of the run
    params: Mapping[str, float]  # numbers among what was logged
    epochs: np.ndarray  # [n] float64, after which the metric was taken, ascending
    values: np.ndarray  # [n] float64, the metric, above 0
    compute: np.ndarray  # [n] float64, spent until then, in multiply-adds of linear layers, forward (as total_flops)
    configuration: Hashable  # equal for runs that differ in nothing but the seed and the machine


def _configuration(params: Mapping[str, str], numbers: Mapping[str, float]) -> frozenset[tuple[str, str]]:
    """Params of a run, texts too, without OF_A_RUN; of a run on a share of the users without OF_DRAWN_USERS.

    A batch size that was found automatically is among them: runs with other batches learn differently.
    """
    ignored = OF_A_RUN | (OF_DRAWN_USERS if numbers.get("users_share", 1) < 1 else set())
    return frozenset((name, text) for name, text in params.items() if name not in ignored)


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
    params: dict[str, str]
    history: dict[int, float]


def _connect(path: Path) -> sqlite3.Connection:
    """Opens a SQLite file, or one that is packed, to read."""
    with path.open("rb") as file:
        begins = file.read(len(SQLITE))
    if begins == SQLITE:
        return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
    unpack = next((opener for magic, opener in PACKED.items() if begins.startswith(magic)), None)
    if unpack is None:
        raise InputError(f"RUNS: {path} is not a SQLite file; bind RUNS to an MLflow database")
    try:
        with unpack(path) as file:
            content = file.read()
    except (OSError, EOFError) as error:
        raise InputError(f"RUNS: {path} cannot be unpacked ({error})") from error
    if not content.startswith(SQLITE):
        raise InputError(f"RUNS: {path} holds no SQLite file; bind RUNS to an MLflow database")
    connection = sqlite3.connect(":memory:")
    connection.deserialize(content)
    return connection


def _experiment_id(name: str, ids: Mapping[str, Any]) -> Any:
    if name not in ids:
        known = ", ".join(sorted(ids)) or "none"
        raise InputError(f"EXPERIMENT = {name!r}: the database has no such experiment, only {known}")
    return ids[name]


def _sqlite_runs(path: Path, metric: str, experiment: str | None) -> Iterator[_Logged]:
    """Runs of a SQLite store of any schema of MLflow, opened to read."""
    connection = _connect(path)
    try:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if missing := [name for name in ("runs", "params", "metrics") if name not in tables]:
            raise InputError(f"RUNS: {path} is no MLflow database: it has no table {missing[0]!r}")
        columns = {row[1] for row in connection.execute("PRAGMA table_info(runs)")}
        where = "lifecycle_stage <> 'deleted'" if "lifecycle_stage" in columns else "1"
        if experiment is not None:
            asked = "SELECT name, experiment_id FROM experiments"
            ids = dict(connection.execute(asked)) if "experiments" in tables else {}
            where += f" AND experiment_id = {int(_experiment_id(experiment, ids))}"
        params: dict[str, dict[str, str]] = {}
        for run, key, value in connection.execute("SELECT run_uuid, key, value FROM params"):
            params.setdefault(run, {})[key] = value
        history: dict[str, dict[int, float]] = {}
        asked = "SELECT run_uuid, step, value, is_nan FROM metrics WHERE key = ? ORDER BY timestamp"
        for run, step, value, is_nan in connection.execute(asked, (metric,)):
            history.setdefault(run, {})[step] = math.nan if is_nan else value
        named = "name" if "name" in columns else "run_uuid"
        for run, name in connection.execute(f"SELECT run_uuid, {named} FROM runs WHERE {where} ORDER BY run_uuid"):
            yield _Logged(name or run, params.get(run, {}), history.get(run, {}))
    except sqlite3.DatabaseError as error:
        raise InputError(f"RUNS: {path}: cannot be read as an MLflow database ({error})") from error
    finally:
        connection.close()


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
        raise InputError(f"RUNS = {uri!r}: cannot be read ({' '.join(str(error).split())[:200]})") from error


def _folder_runs(folder: Path, metric: str) -> Iterator[_Logged]:
    """Finished runs of this project, each in a folder of its own within `folder`."""
    for results in sorted(folder.glob("*/results.json")):
        try:
            params = json.loads(results.read_text()).get("params", {})
            records = [json.loads(line) for line in (results.parent / "metrics.jsonl").read_text().splitlines()]
        except (OSError, ValueError) as error:
            raise InputError(f"RUNS: {results.parent}: cannot be read as a run's folder ({error})") from error
        epochs = [record for record in records if record["kind"] == "epoch" and metric in record["metrics"]]
        values = {record["epoch"]: record["metrics"][metric] for record in epochs}
        history = {epoch: math.nan if value is None else value for epoch, value in values.items()}
        yield _Logged(results.parent.name, params, history)


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


def _numbers(params: Mapping[str, str]) -> dict[str, float]:
    """Those of the params that are finite numbers."""
    numbers = {}
    for name, text in params.items():
        with contextlib.suppress(ValueError):
            if math.isfinite(value := float(text)):
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


def _why_not(run: _Logged, numbers: Mapping[str, float], metric: str) -> str | None:
    """Why a run has no curve; None if it has."""
    if missing := [name for name in NEEDED if name not in numbers]:
        return f"has no param {missing[0]}"
    if wrong := [name for name in NEEDED if numbers[name] <= 0]:
        return f"has a param {wrong[0]} that is not above 0"
    if not run.history:
        return f"has no metric {metric}"
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
        values = np.array([run.history[step] for step in steps])
        good = np.isfinite(values) & (values > 0)
        for reason, n in (("not finite", (~np.isfinite(values)).sum()), ("not above 0", (values <= 0).sum())):
            if n:
                dropped[reason] = dropped.get(reason, 0) + int(n)
        epochs = np.array(steps, float)[good] + (1 - first)
        per_epoch = numbers["total_flops"] * numbers["n_inters"] / numbers["train_batch_size"]
        configuration = _configuration(run.params, numbers)
        curves.append(Curve(run.name, numbers, epochs, values[good], epochs * per_epoch, configuration))
    if not curves:
        reason, names = max(skipped.items(), key=lambda item: len(item[1]))
        raise InputError(f"RUNS = {runs!r}: no run can be used; {len(names)} of {len(logged)} of them: it {reason}")
    return RunTable(curves, skipped, dropped)
