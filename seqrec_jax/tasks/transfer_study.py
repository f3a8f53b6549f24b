"""Task: methods of fine-tuning against training from scratch, over shares of the small domain's users and seeds."""

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gin
import numpy as np
from rich.console import Console
from rich.table import Table

from seqrec_jax.errors import InputError
from seqrec_jax.files import write_text
from seqrec_jax.tasks.child import Job, bound, command, run_jobs, tracked_under
from seqrec_jax.training.run_dir import CONFIG, RESULTS, RunDir
from seqrec_jax.training.stopping import StopRequests
from seqrec_jax.training.tracking import Tracker

RUNS = "runs"
SUMMARY = "transfer_study.json"
PLOT = "transfer_study.png"


class Cell(NamedTuple):
    """One run of the study.

    Attributes:
        method: its name.
        users_share: of the domain's users, for training and validation.
        seed: of the share and of the training.
    """

    method: str
    users_share: float
    seed: int

    def run_dir(self, folder: Path) -> Path:
        """Where it lies."""
        method = "".join(c if c.isalnum() else "_" for c in self.method)
        return folder / RUNS / f"{method}_{100 * self.users_share:g}_{self.seed}"

    def __str__(self) -> str:
        return f"{self.method}, {100 * self.users_share:g} % of users, seed {self.seed}"


class Study(NamedTuple):
    """What a study runs; see transfer_study."""

    checkpoint: str
    dataset: str
    pretraining_dataset: Any
    methods: Mapping[str, Sequence[str]]
    bindings: Sequence[str]
    folder: Path
    tracker: Tracker
    parent: str | None

    def command(self, cell: Cell) -> list[str]:
        """What a cell runs."""
        gin_file, *of_method = self.methods[cell.method]
        places = {
            "CHECKPOINT": repr(self.checkpoint),
            "DATASET": repr(self.dataset),
            "PRETRAINING_DATASET": repr(self.pretraining_dataset),
            "RUN_DIR": repr(str(cell.run_dir(self.folder))),
            "SEED": repr(cell.seed),
            "USERS_SHARE": repr(cell.users_share),
        }
        tracked = tracked_under(self.tracker, self.parent, str(cell))
        return command(gin_file, [*of_method, *self.bindings, *bound(places | tracked)])

    def job(self, cell: Cell) -> Job:
        """A cell's run."""
        return Job(str(cell), self.command(cell), cell.run_dir(self.folder))


def collect(cells: Sequence[Cell], folder: Path) -> list[dict[str, Any]]:
    """What came of each cell that is finished."""
    rows = []
    for cell in cells:
        path = cell.run_dir(folder) / RESULTS
        if path.exists():
            results = json.loads(path.read_text())
            kept = ("valid", "test", "zero_shot", "slices", "pretraining", "chosen", "train", "dataset")
            rows.append(cell._asdict() | {name: results[name] for name in kept if name in results})
    return rows


def summarize_cells(rows: Sequence[Mapping[str, Any]], metric: str, scratch: Sequence[str]) -> list[dict[str, Any]]:
    """Mean and standard deviation over seeds of each method and share, and the gain over training from scratch.

    Args:
        rows: see collect.
        metric: of test.
        scratch: methods that train from scratch; the better of them, by its mean, is what a gain is measured against.
    """
    groups: dict[tuple[str, float], list[float]] = {}
    for row in rows:
        groups.setdefault((row["method"], row["users_share"]), []).append(row["test"][metric])
    means = {key: float(np.mean(values)) for key, values in groups.items()}
    table = []
    for (method, share), values in groups.items():
        bars = [means[name, share] for name in scratch if (name, share) in means]
        table.append(
            {
                "method": method,
                "users_share": share,
                "seeds": len(values),
                "mean": means[method, share],
                "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
                "gain": means[method, share] / max(bars) - 1 if bars and max(bars) > 0 else None,
            }
        )
    return table


def study_table(summary: Sequence[Mapping[str, Any]], metric: str) -> Table:
    """A row a method, a column a share of the users."""
    shares = sorted({row["users_share"] for row in summary})
    table = Table(title=f"Test {metric}, mean ± standard deviation, and gain over the better from-scratch")
    table.add_column("")
    for share in shares:
        table.add_column(f"{100 * share:g} %", justify="right")
    for method in dict.fromkeys(row["method"] for row in summary):
        cells = {row["users_share"]: row for row in summary if row["method"] == method}
        table.add_row(method, *(_told(cells.get(share)) for share in shares))
    return table


def _told(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ""
    spread = "" if row["sd"] is None else f" ± {row['sd']:.4f}"
    gain = "" if row["gain"] is None else f"\n{100 * row['gain']:+.0f} %"
    return f"{row['mean']:.4f}{spread}{gain}"


def plot(summary: Sequence[Mapping[str, Any]], metric: str, path: Path) -> None:
    """Draws each method's test figure over the share of the users, with its spread."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for method in dict.fromkeys(row["method"] for row in summary):
        rows = sorted((row for row in summary if row["method"] == method), key=lambda row: row["users_share"])
        shares = [100 * row["users_share"] for row in rows]
        spread = [row["sd"] or 0 for row in rows]
        axes.errorbar(shares, [row["mean"] for row in rows], spread, marker="o", capsize=3, label=method)
    ticks = sorted({100 * row["users_share"] for row in summary})
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:g} %" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("share of the domain's users in training")
    axes.set_ylabel(f"test {metric}")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    partial = path.with_name(f".partial.{path.name}")
    figure.savefig(partial, dpi=150)
    os.replace(partial, path)


def _check(methods: Mapping[str, Any], scratch: Sequence[str], shares: Sequence[float], processes: int) -> None:
    for name, what in methods.items():
        if not isinstance(what, list | tuple) or not what or not all(isinstance(part, str) for part in what):
            raise InputError(f"METHODS[{name!r}] = {what!r} is no list of a Gin file and bindings")
    if not methods:
        raise InputError("METHODS = {} names no method")
    for name in scratch:
        if name not in methods:
            raise InputError(f"transfer_study.scratch names {name!r}, which is none of METHODS: {', '.join(methods)}")
    for share in shares:
        if not 0 < share <= 1:
            raise InputError(f"SHARES holds {share}, which is not in (0, 1]")
    if processes < 1:
        raise InputError(f"PROCESSES = {processes} is below 1")


@gin.configurable
def transfer_study(
    checkpoint: str = gin.REQUIRED,
    dataset: str = gin.REQUIRED,
    run_dir: str = gin.REQUIRED,
    methods: Mapping[str, Any] = gin.REQUIRED,
    pretraining_dataset: str | Sequence[str] | None = None,
    scratch: Sequence[str] = (),
    shares: Sequence[float] = (0.1, 0.25, 0.5, 1.0),
    seeds: Sequence[int] = (2020, 2021, 2022),
    bindings: Sequence[str] = (),
    metric: str = "ndcg_at_10",
    processes: int = 1,
    max_hours: float | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Fine-tunes a checkpoint by each method, on each share of the small domain's users, with each seed.

    Each is a run in a process of its own, in `RUN_DIR/runs`, and a child of the study's run in MLflow. Interrupted, the
    same command goes on. Ends with a table, `transfer_study.json` and `transfer_study.png`.

    Args:
        checkpoint: the RUN_DIR of a training run.
        dataset: dataset folder of the small domain.
        run_dir: of the study.
        methods: by name, a Gin file and bindings.
        pretraining_dataset: that of the checkpoint; see finetune.
        scratch: those of the methods that train from scratch.
        shares: of the domain's users, for training and validation; test keeps all.
        seeds: of each.
        bindings: of all runs, such as 'EPOCHS = 10'.
        metric: of test, to compare, `<metric>_at_<k>`.
        processes: runs at a time, each with its share of the CPUs.
        max_hours: after which the study ends; None for no limit.
        overwrite: remove the study that the folder holds.

    Returns:
        What transfer_study.json holds.

    Raises:
        InputError: a setting is wrong, or the first run was refused.
        Interrupted: the study was asked to stop.
    """
    _check(methods, scratch, shares, processes)
    cells = [Cell(*cell) for cell in itertools.product(methods, shares, seeds)]
    cells.sort(key=lambda cell: seeds.index(cell.seed))  # a whole table with one seed first
    tracker, folder = Tracker(), RunDir(run_dir, (RUNS, SUMMARY, PLOT))
    with folder.held() as path:
        folder.begin(gin.operative_config_str(), overwrite)
        tracker.start(path)
        tracker.log_artifact(path / CONFIG)
        tracker.log_params({"checkpoint": checkpoint, "dataset": dataset, "methods": dict(methods)})
        parent = tracker.run_id(timeout=60)
        study = Study(checkpoint, dataset, pretraining_dataset, methods, bindings, path, tracker, parent)
        with tracker.until_closed():
            with StopRequests(max_hours) as stop:
                run_jobs([study.job(cell) for cell in cells], processes, stop)
            rows = collect(cells, path)
            summary = summarize_cells(rows, metric, scratch)
            results = {"metric": metric, "table": summary, "cells": rows}
            write_text(path / SUMMARY, json.dumps(results, indent=2) + "\n")
            plot(summary, metric, path / PLOT)
            for name in (SUMMARY, PLOT):
                tracker.log_artifact(path / name)
    Console(width=120).print(study_table(summary, metric))
    return results
