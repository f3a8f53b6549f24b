"""Task: runs of many sizes, the largest forecast before they are made, and the law of scaling that they follow."""

import dataclasses
import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import gin
import numpy as np
from absl import logging
from rich.console import Console
from rich.table import Table

from seqrec_jax.data.split import Split, leave_one_out
from seqrec_jax.data.store import Dataset
from seqrec_jax.errors import InputError
from seqrec_jax.files import write_text
from seqrec_jax.scaling.run_table import read_runs
from seqrec_jax.scaling.upcoming import Upcoming, forecast_runs, with_outcomes
from seqrec_jax.tasks.child import Job, bound, command, run_jobs, tracked_under
from seqrec_jax.tasks.scaling_law import scaling_law
from seqrec_jax.tasks.study_costs import Cell, Costs, line_through, targets_of
from seqrec_jax.training.run_dir import CONFIG, RESULTS, RunDir, split_bound
from seqrec_jax.training.stopping import StopRequests
from seqrec_jax.training.tracking import Tracker

RUNS, PROBES, LAW = "runs", "probes", "law"
ESTIMATE = "estimate.json"
FORECAST = "forecast.json"
SUMMARY = "scaling_study.json"
LEAST_RUNS = 8
"""Below which no law can be fitted and judged."""
SECONDS_PER_HOUR = 3600.0


class Study(NamedTuple):
    """A study under way; see scaling_study for the settings."""

    base: str
    cells: Sequence[Cell]
    bindings: Sequence[str]
    of_width: Mapping[int, Sequence[str]]
    inner_per_width: float
    split: Mapping[str, str]
    seed: int
    metric: str
    processes: int
    folder: Path
    tracker: Tracker
    parent: str | None

    def job(self, cell: Cell, place: str = RUNS, more: Sequence[str] = ()) -> Job:
        """A cell's run."""
        run_dir = self.folder / place / cell.name
        values = {
            "DATASET": repr(cell.dataset),
            "RUN_DIR": repr(str(run_dir)),
            "SEED": repr(self.seed),
            **self.split,
            "pretrain.users_share": repr(cell.users_share),
            "pretrain.epochs": repr(cell.epochs),
            "Architecture.hidden_size": repr(cell.width),
            "Architecture.inner_size": repr(round(self.inner_per_width * cell.width)),
            "Architecture.n_layers": repr(cell.depth),
        }
        tracked = tracked_under(self.tracker, self.parent, cell.name)
        of_width = self.of_width.get(cell.width, ())
        return Job(cell.name, command(self.base, [*self.bindings, *of_width, *bound(values | tracked), *more]), run_dir)

    def costs(self, targets: Mapping[tuple[str, float], int], stop: StopRequests) -> Costs:
        """Trains the smallest and the largest model for an epoch of the least data, and reckons from there."""
        least = min(targets, key=lambda key: targets[key])
        shapes = [min(self.cells, key=lambda c: (c.width, c.depth)), max(self.cells, key=lambda c: (c.width, c.depth))]
        probes = [cell._replace(dataset=least[0], users_share=least[1], epochs=1) for cell in shapes]
        probes = list(dict.fromkeys(probes))
        jobs = [self.job(probe, PROBES, ["Tracker.uri = None"]) for probe in probes]
        begun = time.time()
        run_jobs(jobs, self.processes, stop)
        results = [json.loads((job.run_dir / RESULTS).read_text()) for job in jobs]
        ends = [(job.run_dir / RESULTS).stat().st_mtime for job in jobs]
        rounds = -(-len(jobs) // self.processes)
        apart = (max(ends) - begun - sum(of["train"]["seconds"] for of in results[-rounds:])) / rounds
        small, large = results[0]["params"], results[-1]["params"]
        costs = Costs(small, large, targets, (0.0, 0.0), max(0.0, apart), self.inner_per_width)
        points = [
            (costs.per_target(probe), of["train"]["seconds"] / of["train"]["targets"])
            for probe, of in zip(probes, results, strict=True)
        ]
        return dataclasses.replace(costs, seconds_per_target=line_through(points[0], points[-1]))

    def estimate(self, targets: Mapping[tuple[str, float], int], stop: StopRequests) -> dict[str, dict[str, float]]:
        """Compute and hours of each cell by name, the least compute first; made once, before anything else is run.

        Args:
            targets: see targets_of.
            stop: asks to stop before.
        """
        path = self.folder / ESTIMATE
        if not path.exists():
            costs = self.costs(targets, stop)
            rows = {
                cell.name: {
                    "compute": costs.compute(cell),
                    "targets": costs.targets[cell.dataset, cell.users_share],
                    "hours": costs.seconds(cell) / SECONDS_PER_HOUR,
                }
                for cell in self.cells
            }
            write_text(path, json.dumps(dict(sorted(rows.items(), key=lambda row: row[1]["compute"])), indent=2) + "\n")
        found: dict[str, dict[str, float]] = json.loads(path.read_text())
        return found

    def forecast(self, held: Sequence[Cell], estimate: Mapping[str, Mapping[str, float]], draws: int) -> dict[str, Any]:
        """What is expected of the largest runs, or why nothing can be; made once, before they are."""
        path = self.folder / FORECAST
        if not path.exists():
            upcoming = [
                Upcoming(
                    cell.name, estimate[cell.name]["compute"],
                    {"width": cell.width, "depth": cell.depth, "data": estimate[cell.name]["targets"],
                     "epochs": cell.epochs},
                )
                for cell in held
            ]  # fmt: skip
            table = read_runs(str(self.folder / RUNS), f"valid/{self.metric}")
            names = {cell.name for cell in held}
            curves = [curve for curve in table.curves if curve.name not in names]
            made = {"made": datetime.now(UTC).isoformat(timespec="seconds"), "metric": f"valid/{self.metric}"}
            try:
                forecast = made | forecast_runs(curves, upcoming, 1, draws, self.seed)
            except InputError as error:
                logging.warning("no forecast can be made: %s", error)
                forecast = made | {"error": str(error), "forecasts": []}
            write_text(path, json.dumps(forecast, indent=2) + "\n")
        found: dict[str, Any] = json.loads(path.read_text())
        return found


def estimate_table(estimate: Mapping[str, Mapping[str, float]], processes: int) -> Table:
    """What the runs will cost, for the terminal."""
    hours = sum(of["hours"] for of in estimate.values())
    table = Table(
        title=f"{len(estimate)} runs, about {hours:.2f} hours, {hours / processes:.2f} with {processes} at a time"
    )
    for column in ("run", "targets an epoch", "compute", "minutes"):
        table.add_column(column, justify="left" if column == "run" else "right")
    for name, of in estimate.items():
        table.add_row(name, f"{of['targets']:,}", f"{of['compute']:.3g}", f"{60 * of['hours']:.1f}")
    return table


def forecast_table(forecast: Mapping[str, Any]) -> Table:
    """What was expected and what came, for the terminal."""
    title = (
        f"{forecast['metric']} of the largest runs, forecast from {forecast['runs']} smaller ones at {forecast['made']}"
    )
    table = Table(title=title)
    columns = (
        "run",
        "compute",
        f"best, by {forecast['law']}",
        "came",
        "error",
        "end, by the joint law",
        "came",
        "error",
    )
    for column in columns:
        table.add_column(column, justify="left" if column == "run" else "right")

    def told(of: Mapping[str, float] | None) -> str:
        return "" if of is None else f"{of['metric']:.4f} ({of['low']:.4f} to {of['high']:.4f})"

    def figure(value: float | None, form: str) -> str:
        return "" if value is None else form.format(value)

    for row in forecast["forecasts"]:
        table.add_row(
            row["run"], f"{row['compute']:.3g}", told(row["frontier"]), figure(row.get("best"), "{:.4f}"),
            figure(row.get("frontier_error"), "{:+.1%}"), told(row["joint"]), figure(row.get("end"), "{:.4f}"),
            figure(row.get("joint_error"), "{:+.1%}"),
        )  # fmt: skip
    return table


def _check(lists: Mapping[str, Sequence[Any]], held: int, n_cells: int, processes: int, metric: str) -> None:
    for name, values in lists.items():
        if not isinstance(values, list | tuple) or not values:
            raise InputError(f"{name} = {values!r} is no list of at least one")
        if len(set(values)) < len(values):
            raise InputError(f"{name} = {values!r} names something twice")
        if name != "DATASETS" and not all(isinstance(v, int | float) and v > 0 for v in values):
            raise InputError(f"{name} = {values!r} holds something that is no number above 0")
    if len({Path(dataset).resolve().name for dataset in lists["DATASETS"]}) < len(lists["DATASETS"]):
        raise InputError(f"DATASETS = {list(lists['DATASETS'])}: two folders have one name; they need different ones")
    if max(lists["SHARES"]) > 1:
        raise InputError(f"SHARES = {list(lists['SHARES'])} holds a share above 1")
    if held < 0 or n_cells - held < LEAST_RUNS:
        raise InputError(
            f"HELD = {held}: of {n_cells} runs at least {LEAST_RUNS} must be left to make a forecast from; name more "
            "WIDTHS, DEPTHS, SHARES or EPOCHS"
        )
    if processes < 1:
        raise InputError(f"PROCESSES = {processes} is below 1")
    if not metric or metric.startswith("valid/"):
        raise InputError(f"METRIC = {metric!r} is not the name of a metric of validation, such as 'ndcg_at_10'")


@gin.configurable
def scaling_study(
    base: str = gin.REQUIRED,
    datasets: Sequence[str] = gin.REQUIRED,
    run_dir: str = gin.REQUIRED,
    widths: Sequence[int] = gin.REQUIRED,
    depths: Sequence[int] = gin.REQUIRED,
    shares: Sequence[float] = (1.0,),
    epochs: Sequence[int] = gin.REQUIRED,
    bindings: Sequence[str] = (),
    of_width: Mapping[int, Sequence[str]] | None = None,
    inner_per_width: float = 4.0,
    held: int = 2,
    budgets: Sequence[float] = (),
    metric: str = "ndcg_at_10",
    processes: int = 1,
    most_hours: float | None = None,
    split: Callable[[Dataset], Split] = leave_one_out,
    draws: int = 200,
    seed: int = 2020,
    max_hours: float | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Trains models of every width and depth, on every share of the data, and finds the law that they follow.

    What it will cost is estimated first, from one epoch each of the smallest and the largest model. Each run is a
    process of its own, in `RUN_DIR/runs`, and a child of the study's run in MLflow; validation is the same for all.
    The `held` runs of most compute come last, once `forecast.json` says what is expected of them. Interrupted, the same
    command goes on. Ends with `scaling_study.json`, and the law of all runs in `RUN_DIR/law` (see scaling_law).

    Args:
        base: Gin file of a run of pretrain, with the macros DATASET, RUN_DIR and SEED.
        datasets: dataset folders, each a size of data.
        run_dir: folder of the study.
        widths: hidden sizes.
        depths: numbers of blocks.
        shares: of a dataset's users to train on.
        epochs: to train for.
        bindings: of all runs.
        of_width: bindings for each width, such as its learning rate.
        inner_per_width: inner_size for each unit of hidden_size.
        held: runs of most compute to forecast.
        budgets: to forecast and to plan for, in the unit of total_flops.
        metric: of validation, `<metric>_at_<k>`.
        processes: runs at a time, each with its share of the CPUs.
        most_hours: refuse to begin where the estimate, with so many processes, is beyond; None for any.
        split: of the datasets; see pretrain.
        draws: bootstrap draws of runs, for intervals.
        seed: of the runs and of the draws.
        max_hours: after which the study ends; None for no limit.
        overwrite: remove the study that the folder holds.

    Returns:
        What scaling_study.json holds: the estimate, and the forecasts with what came.

    Raises:
        InputError: a setting is wrong, the study would take too long, or the first run was refused.
        Interrupted: the study was asked to stop.
    """
    lists = {"DATASETS": datasets, "SHARES": shares, "WIDTHS": widths, "DEPTHS": depths, "EPOCHS": epochs}
    n_cells = int(np.prod([len(values) for values in lists.values()]))
    _check(lists, held, n_cells, processes, metric)
    cells = [Cell(*cell) for cell in itertools.product(datasets, shares, widths, depths, epochs)]
    tracker, folder = Tracker(), RunDir(run_dir, (RUNS, PROBES, LAW, ESTIMATE, FORECAST, SUMMARY))
    with folder.held() as path:
        targets = targets_of(datasets, shares, seed, split)
        folder.begin(gin.operative_config_str(), overwrite)
        tracker.start(path)
        tracker.log_artifact(path / CONFIG)
        tracker.log_params({"base": base, **{name.lower(): list(values) for name, values in lists.items()}})
        study = Study(
            base, cells, bindings, of_width or {}, inner_per_width, split_bound(gin.operative_config_str()), seed,
            metric, processes, path, tracker, tracker.run_id(timeout=60),
        )  # fmt: skip
        with tracker.until_closed():
            with StopRequests(max_hours) as stop:
                results = _run(study, targets, held, most_hours, draws, stop)
            write_text(path / SUMMARY, json.dumps(results, indent=2) + "\n")
            for name in (ESTIMATE, FORECAST, SUMMARY):
                tracker.log_artifact(path / name)
        scaling_law(str(path / RUNS), str(path / LAW), f"valid/{metric}", budgets=budgets, draws=draws, seed=seed)
    if results["forecast"] is not None and results["forecast"]["forecasts"]:
        Console(width=140).print(forecast_table(results["forecast"]))
    return results


def _run(
    study: Study,
    targets: Mapping[tuple[str, float], int],
    held: int,
    most_hours: float | None,
    draws: int,
    stop: StopRequests,
) -> dict[str, Any]:
    """Estimates, runs the smaller ones, forecasts, and runs the larger ones."""
    estimate = study.estimate(targets, stop)
    Console(width=140).print(estimate_table(estimate, study.processes))
    hours = sum(of["hours"] for of in estimate.values()) / study.processes
    if most_hours is not None and hours > most_hours:
        raise InputError(f"MOST_HOURS = {most_hours}: the study would take about {hours:.2f} hours; name fewer runs")
    by_name = {cell.name: cell for cell in study.cells}
    ordered = [by_name[name] for name in estimate]
    smaller, larger = ordered[: len(ordered) - held], ordered[len(ordered) - held :]
    run_jobs([study.job(cell) for cell in smaller], study.processes, stop)
    forecast = study.forecast(larger, estimate, draws) if larger else None
    if forecast is not None:
        logging.info("%s says what is expected of the %d largest runs", study.folder / FORECAST, len(larger))
        run_jobs([study.job(cell) for cell in reversed(larger)], study.processes, stop)
        curves = {curve.name: curve for curve in read_runs(str(study.folder / RUNS), forecast["metric"]).curves}
        forecast = with_outcomes(forecast, curves, 1)
    return {"estimate": estimate, "forecast": forecast}
