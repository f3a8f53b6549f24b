"""A scaling study: runs of many sizes, the largest forecast before they are made, and the law that they follow."""

import dataclasses
import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from absl import logging

from seqrec_jax.data.split import Split, leave_one_out
from seqrec_jax.data.store import Dataset
from seqrec_jax.errors import InputError
from seqrec_jax.files import write_text
from seqrec_jax.runs.folder import RESULTS
from seqrec_jax.runs.run import Run
from seqrec_jax.runs.settings import RunSettings
from seqrec_jax.runs.stopping import StopRequests
from seqrec_jax.scaling.run_table import read_runs
from seqrec_jax.scaling.upcoming import Upcoming, forecast_runs, with_outcomes
from seqrec_jax.studies.engine import Job, gin_bindings, identity, run_jobs, split_bindings
from seqrec_jax.studies.scaling_law import LawSettings, scaling_law
from seqrec_jax.studies.study_costs import Cell, Costs, targets_of

RUNS, PROBES, LAW = "runs", "probes", "law"
ESTIMATE, FORECAST, SUMMARY = "estimate.json", "forecast.json", "scaling_study.json"
LEAST_RUNS = 8  # below which no law can be fitted and judged


@dataclasses.dataclass(frozen=True)
class ScalingStudy:
    """What a scaling study trains: models of every width and depth, on every share of the data."""

    base: str  # Gin file of a run of pretrain, with the macros DATASET, RUN_DIR, SEED and SPLIT
    datasets: Sequence[str]  # dataset folders, each a size of data
    widths: Sequence[int]  # hidden sizes
    depths: Sequence[int]  # numbers of blocks
    epochs: Sequence[int]  # epochs to train for
    shares: Sequence[float] = (1.0,)  # shares of a dataset's users to train on
    bindings: Sequence[str] = ()  # bindings of all runs
    of_width: Mapping[int, Sequence[str]] = dataclasses.field(default_factory=dict)  # bindings for each width
    inner_per_width: float = 4.0  # inner_size for each unit of hidden_size
    holdout: int = 2  # runs of most compute to forecast before they are made
    budgets: Sequence[float] = ()  # compute to forecast and to plan for, in the unit of total_flops
    metric: str = "ndcg_at_10"  # `<metric>_at_<k>` of validation
    processes: int = 1  # runs at a time, each with its share of the CPUs
    most_hours: float | None = None  # refuse to begin where the estimate, with so many processes, is beyond
    split: Callable[[Dataset], Split] = leave_one_out  # split of the datasets
    draws: int = 200  # bootstrap draws of runs, for intervals
    seed: int = 2020  # seed of the runs and of the draws

    def __post_init__(self):
        for name in ("datasets", "shares", "widths", "depths", "epochs"):
            values, place = getattr(self, name), f"ScalingStudy.{name} = {getattr(self, name)!r}"
            if not isinstance(values, list | tuple) or not values:
                raise InputError(f"{place} is no list of at least one")
            if len(set(values)) < len(values):
                raise InputError(f"{place} names something twice")
            if name != "datasets" and not all(isinstance(v, int | float) and v > 0 for v in values):
                raise InputError(f"{place} holds something that is no number above 0")
        if len({Path(dataset).resolve().name for dataset in self.datasets}) < len(self.datasets):
            place = f"ScalingStudy.datasets = {list(self.datasets)}"
            raise InputError(f"{place}: two folders have one name; they need different ones")
        if max(self.shares) > 1:
            raise InputError(f"ScalingStudy.shares = {list(self.shares)} holds a share above 1")
        n_cells = len(self.cells())
        if self.holdout < 0 or n_cells - self.holdout < LEAST_RUNS:
            place = f"ScalingStudy.holdout = {self.holdout}: of {n_cells} runs at least {LEAST_RUNS} must be left"
            raise InputError(f"{place} to make a forecast from; name more widths, depths, shares or epochs")
        if self.processes < 1:
            raise InputError(f"ScalingStudy.processes = {self.processes} is below 1")
        if not self.metric or self.metric.startswith("valid/"):
            place = f"ScalingStudy.metric = {self.metric!r}"
            raise InputError(f"{place} is not the name of a metric of validation, such as 'ndcg_at_10'")

    def cells(self) -> list[Cell]:
        """The runs."""
        return [Cell(*c) for c in itertools.product(self.datasets, self.shares, self.widths, self.depths, self.epochs)]

    def job(self, cell: Cell, folder: Path) -> Job:
        """The run of a cell, in `folder`."""
        values = {
            "DATASET": cell.dataset, "RUN_DIR": str(folder / cell.name), "SEED": self.seed,
            "Corpus.users_share": cell.users_share, "TrainConfig.epochs": cell.epochs,
            "Architecture.hidden_size": cell.width, "Architecture.n_layers": cell.depth,
            "Architecture.inner_size": round(self.inner_per_width * cell.width),
        }  # fmt: skip
        shared = [*self.bindings, *self.of_width.get(cell.width, ()), *split_bindings(self.split)]
        return Job(cell.name, folder / cell.name, self.base, [*shared, *gin_bindings(values)])


def measure_costs(study: ScalingStudy, folder: Path, stop: StopRequests) -> Costs:
    """Trains the smallest and the largest model for an epoch of the least data."""
    targets = targets_of(study.datasets, study.shares, study.seed, study.split)
    dataset, share = min(targets, key=lambda key: targets[key])
    shapes = sorted((cell.width, cell.depth) for cell in study.cells())
    probes = list(dict.fromkeys(Cell(dataset, share, *shape, 1) for shape in (shapes[0], shapes[-1])))
    jobs = [study.job(probe, folder / PROBES).tracked(None) for probe in probes]
    begun = time.time()
    run_jobs(jobs, study.processes, stop)
    results = [job.results() for job in jobs]
    end = max((job.run_dir / RESULTS).stat().st_mtime for job in jobs)
    rounds = -(-len(jobs) // study.processes)
    apart = (end - begun - sum(of["train"]["seconds"] for of in results[-rounds:])) / rounds
    return Costs(results[0], results[-1], targets, max(0.0, apart), study.inner_per_width)


def _estimate(study: ScalingStudy, folder: Path, stop: StopRequests) -> dict[str, dict[str, float]]:
    """Compute, targets and hours of each run by name, the least compute first; made once, before anything else."""
    path = folder / ESTIMATE
    if not path.exists():
        costs = measure_costs(study, folder, stop)
        rows = {cell.name: costs.row(cell) for cell in study.cells()}
        write_text(path, json.dumps(dict(sorted(rows.items(), key=lambda row: row[1]["compute"])), indent=2) + "\n")
    return json.loads(path.read_text())


def _forecast(
    study: ScalingStudy, largest: Sequence[Cell], estimate: Mapping[str, Mapping[str, float]], folder: Path
) -> dict[str, Any]:
    """What is expected of the largest runs, or why nothing can be; made once, before they are."""
    path = folder / FORECAST
    if not path.exists():
        upcoming = []
        for cell in largest:
            of = estimate[cell.name]
            variables = {"width": cell.width, "depth": cell.depth, "data": of["targets"], "epochs": cell.epochs}
            upcoming.append(Upcoming(cell.name, of["compute"], variables))
        names, metric = {cell.name for cell in largest}, f"valid/{study.metric}"
        curves = [curve for curve in read_runs(str(folder / RUNS), metric).curves if curve.name not in names]
        forecast: dict[str, Any] = {"made": datetime.now(UTC).isoformat(timespec="seconds"), "metric": metric}
        try:
            forecast |= forecast_runs(curves, upcoming, 1, study.draws, study.seed)
        except InputError as error:
            logging.warning("no forecast can be made: %s", error)
            forecast |= {"error": str(error), "forecasts": []}
        write_text(path, json.dumps(forecast, indent=2) + "\n")
    return json.loads(path.read_text())


def _run(study: ScalingStudy, run: Run, stop: StopRequests) -> dict[str, Any]:
    """Estimates, runs the smaller ones, forecasts, and runs the larger ones."""
    estimate, processes, most = _estimate(study, run.path, stop), study.processes, study.most_hours
    hours = sum(of["hours"] for of in estimate.values())
    at_once = hours / processes
    logging.info("%d runs take about %.2f hours, %.2f with %d at a time", len(estimate), hours, at_once, processes)
    for name, of in estimate.items():
        figures = (of["targets"], of["compute"], 60 * of["hours"])
        logging.info("%s: %d targets an epoch, compute %.3g, %.1f minutes", name, *figures)
    if most is not None and at_once > most:
        place = f"ScalingStudy.most_hours = {most}"
        raise InputError(f"{place}: the study would take about {at_once:.2f} hours; name fewer runs")
    cells = [cell for name in estimate for cell in study.cells() if cell.name == name]
    jobs = [study.job(cell, run.path / RUNS).part_of(run) for cell in cells]
    n_smaller = len(jobs) - study.holdout
    run_jobs(jobs[:n_smaller], processes, stop)
    if not study.holdout:
        return {"estimate": estimate, "forecast": None}
    forecast = _forecast(study, cells[n_smaller:], estimate, run.path)
    logging.info("%s says what is expected of the %d largest runs", run.path / FORECAST, study.holdout)
    run_jobs(jobs[: n_smaller - 1 : -1], processes, stop)
    curves = {curve.name: curve for curve in read_runs(str(run.path / RUNS), forecast["metric"]).curves}
    return {"estimate": estimate, "forecast": with_outcomes(forecast, curves, 1)}


def scaling_study(study: ScalingStudy, run_dir: str | Path, settings: RunSettings | None = None) -> dict[str, Any]:
    """Trains models of every width and depth, on every share of the data, and finds the law that they follow.

    What it will cost is estimated first, from one epoch each of the smallest and the largest model. Each run is a
    process of its own, in `RUN_DIR/runs`, and a part of the study's run in MLflow; validation is the same for all. The
    runs of most compute come last, once `forecast.json` says what is expected of them. Writes the law of all runs to
    `RUN_DIR/law`, and `scaling_study.json`; returns what that holds: the estimate, and the forecasts with what came.
    InputError where the study would take too long, the first run was refused, or the runs carry no law; Interrupted
    where it was asked to stop: the same call goes on.
    """
    settings = settings or RunSettings()
    lists = {name: list(getattr(study, name)) for name in ("datasets", "shares", "widths", "depths", "epochs")}
    with Run(run_dir, settings, (RUNS, PROBES, LAW, ESTIMATE, FORECAST, SUMMARY)) as run:
        run.begin(identity(study, "budgets", "most_hours", "processes"))
        run.track({"base": study.base, **lists})
        with run.stop as stop:
            results = _run(study, run, stop)
        write_text(run.path / SUMMARY, json.dumps(results, indent=2) + "\n")
        run.track(artifacts=[run.path / name for name in (ESTIMATE, FORECAST, SUMMARY)])
        law = LawSettings(f"valid/{study.metric}", budgets=study.budgets, draws=study.draws, seed=study.seed)
        scaling_law(str(run.path / RUNS), run.path / LAW, law, RunSettings(tracker=settings.tracker))
    return results
