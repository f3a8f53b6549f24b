"""A transfer study: methods of fine-tuning against training from scratch, by share of the target's users and seed."""

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np

from seqrec_jax.errors import InputError
from seqrec_jax.files import write_text
from seqrec_jax.runs.run import Run
from seqrec_jax.runs.settings import RunSettings
from seqrec_jax.scaling.report import plot_at
from seqrec_jax.studies.engine import Job, gin_bindings, identity, run_jobs

RUNS, SUMMARY, PLOT = "runs", "transfer_study.json", "transfer_study.png"
KEPT = ("valid", "test", "zero_shot", "slices", "pretraining", "chosen", "train", "dataset")


class Cell(NamedTuple):
    """One run of the study."""

    method: str  # name of the method
    users_share: float  # share of the target's users, for training and validation
    seed: int  # seed of the share and of the training

    def run_dir(self, folder: Path) -> Path:
        """Folder of the run."""
        return folder / RUNS / f"{quote(self.method, safe=' ,')}_{100 * self.users_share:g}_{self.seed}"

    def __str__(self) -> str:
        return f"{self.method}, {100 * self.users_share:g} % of users, seed {self.seed}"


@dataclasses.dataclass(frozen=True)
class TransferStudy:
    """What is compared with what."""

    checkpoint: str  # RUN_DIR of a training run
    dataset: str  # dataset folder of the target
    methods: Mapping[str, Any]  # by name, a Gin file and bindings
    pretraining_dataset: str | Sequence[str] | None = None  # of the checkpoint, to measure what is forgotten
    scratch: Sequence[str] = ()  # methods that train from scratch; a gain is measured against the better of them
    shares: Sequence[float] = (0.1, 0.25, 0.5, 1.0)  # of the target's users, to train and validate on; test keeps all
    seeds: Sequence[int] = (2020, 2021, 2022)  # seeds of each
    bindings: Sequence[str] = ()  # bindings of all runs, such as 'EPOCHS = 10'
    metric: str = "ndcg_at_10"  # `<metric>_at_<k>` of test to compare
    processes: int = 1  # runs at a time, each with its share of the CPUs

    def __post_init__(self):
        for name, what in self.methods.items():
            if not isinstance(what, list | tuple) or not what or not all(isinstance(part, str) for part in what):
                raise InputError(f"TransferStudy.methods[{name!r}] = {what!r} is no list of a Gin file and bindings")
        if not self.methods:
            raise InputError("TransferStudy.methods = {} names no method")
        for name in self.scratch:
            if name not in self.methods:
                known = ", ".join(self.methods)
                raise InputError(f"TransferStudy.scratch names {name!r}, which is none of the methods {known}")
        for share in self.shares:
            if not 0 < share <= 1:
                raise InputError(f"TransferStudy.shares holds {share}, which is not in (0, 1]")
        if self.processes < 1:
            raise InputError(f"TransferStudy.processes = {self.processes} is below 1")

    def cells(self) -> list[Cell]:
        """The runs: a whole table with one seed first."""
        return [Cell(m, share, seed) for seed, m, share in itertools.product(self.seeds, self.methods, self.shares)]

    def job(self, cell: Cell, folder: Path) -> Job:
        """The run of a cell, in the folder of the study."""
        gin_file, *of_method = self.methods[cell.method]
        run_dir = cell.run_dir(folder)
        places = {
            "CHECKPOINT": self.checkpoint, "DATASET": self.dataset, "PRETRAINING_DATASET": self.pretraining_dataset,
            "RUN_DIR": str(run_dir), "SEED": cell.seed, "USERS_SHARE": cell.users_share,
        }  # fmt: skip
        return Job(str(cell), run_dir, gin_file, [*of_method, *self.bindings, *gin_bindings(places)])


def summarize_cells(rows: Sequence[Mapping[str, Any]], metric: str, scratch: Sequence[str]) -> list[dict[str, Any]]:
    """Mean and standard deviation over seeds of each method and share, and the gain over the better from scratch.

    `rows` are the study's `cells`; `metric` is `<metric>_at_<k>` of test.
    """
    groups: dict[tuple[str, float], list[float]] = {}
    for row in rows:
        groups.setdefault((row["method"], row["users_share"]), []).append(row["test"][metric])
    means = {key: float(np.mean(values)) for key, values in groups.items()}
    table = []
    for (method, share), values in groups.items():
        mean, bars = means[method, share], [means[name, share] for name in scratch if (name, share) in means]
        table.append({
            "method": method, "users_share": share, "seeds": len(values), "mean": mean,
            "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
            "gain": mean / max(bars) - 1 if bars and max(bars) > 0 else None,
        })  # fmt: skip
    return table


def plot(summary: Sequence[Mapping[str, Any]], metric: str, path: Path) -> None:
    """Draws each method's metric on test over the share of the users, with its spread."""
    with plot_at(path) as axes:
        for method in dict.fromkeys(row["method"] for row in summary):
            rows = sorted((row for row in summary if row["method"] == method), key=lambda row: row["users_share"])
            shares, spread = [100 * row["users_share"] for row in rows], [row["sd"] or 0 for row in rows]
            axes.errorbar(shares, [row["mean"] for row in rows], spread, marker="o", capsize=3, label=method)
        ticks = sorted({100 * row["users_share"] for row in summary})
        axes.set(xscale="log", xlabel="share of the target's users in training", ylabel=f"test {metric}")
        axes.set_xticks(ticks, [f"{tick:g} %" for tick in ticks])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.legend()


def transfer_study(study: TransferStudy, run_dir: str | Path, settings: RunSettings | None = None) -> dict[str, Any]:
    """Fine-tunes a checkpoint by each method, on each share of the target's users, with each seed.

    Each is a run in a process of its own, in `RUN_DIR/runs`, and a part of the study's run in MLflow. Writes
    `transfer_study.json` and `transfer_study.png`. Returns what the former holds: `table` (a row a method and share)
    and `cells` (a row a run). InputError where the first run was refused; Interrupted where the study was asked to
    stop: the same call goes on.
    """
    free = ("checkpoint", "dataset", "pretraining_dataset", "shares", "seeds", "processes")
    with Run(run_dir, settings, (RUNS, SUMMARY, PLOT)) as run:
        run.begin(identity(study, *free))
        run.track({"checkpoint": study.checkpoint, "dataset": study.dataset, "methods": study.methods})
        jobs = [study.job(cell, run.path).part_of(run) for cell in study.cells()]
        with run.stop as stop:
            run_jobs(jobs, study.processes, stop)
        finished = [(cell, job.results()) for cell, job in zip(study.cells(), jobs, strict=True) if job.finished]
        rows = [cell._asdict() | {name: found[name] for name in KEPT if name in found} for cell, found in finished]
        summary = summarize_cells(rows, study.metric, study.scratch)
        results = {"metric": study.metric, "table": summary, "cells": rows}
        write_text(run.path / SUMMARY, json.dumps(results, indent=2) + "\n")
        plot(summary, study.metric, run.path / PLOT)
        run.track(artifacts=[run.path / SUMMARY, run.path / PLOT])
    return results
