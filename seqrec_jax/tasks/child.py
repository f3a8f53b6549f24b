"""A run of its own process, for tasks that make many."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from absl import logging

from seqrec_jax.errors import InputError
from seqrec_jax.training.metrics_log import METRICS
from seqrec_jax.training.run_dir import RESULTS
from seqrec_jax.training.stopping import StopRequests
from seqrec_jax.training.tracking import Tracker

SECONDS_TO_STOP = 300
SECONDS_BETWEEN_LOOKS = 0.5
LOG = "log.txt"


def command(gin_file: str, bindings: Sequence[str]) -> list[str]:
    """Runs the task of a Gin file, and ends with the process that started it."""
    flags = [f"--gin_bindings={binding}" for binding in bindings]
    return [sys.executable, "-m", "seqrec_jax.main", f"--gin_file={gin_file}", "--ends_with_parent", *flags]


def tracked_under(tracker: Tracker, parent: str | None, name: str) -> dict[str, str]:
    """Bindings that make a child's run in MLflow one of its parent's."""
    store = {f"Tracker.{key}": repr(value) for key, value in tracker.store.items()}
    return {"Tracker.run_name": repr(name), "Tracker.parent_run_id": repr(parent)} | store


def bound(values: Mapping[str, str]) -> list[str]:
    """Values, as Gin writes them, as bindings."""
    return [f"{name} = {value}" for name, value in values.items()]


class Child:
    """A run in a process of its own.

    Args:
        command: to run.
        run_dir: of the run.
        cpus: that it may use; None for all.
    """

    def __init__(self, command: Sequence[str], run_dir: Path, cpus: set[int] | None = None):
        run_dir.mkdir(parents=True, exist_ok=True)
        self._run_dir, self._log = run_dir, run_dir / LOG
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        if cpus is not None:  # Before it has made its threads, which inherit this.
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(self._process.pid, cpus)

    def evaluations(self, metric: str) -> dict[int, float]:
        """The metric of each evaluated epoch so far."""
        with contextlib.suppress(FileNotFoundError):
            lines = (self._run_dir / METRICS).read_bytes().split(b"\n")[:-1]
            epochs = [record for record in map(json.loads, lines) if record["kind"] == "epoch"]
            return {e["epoch"]: e["metrics"][metric] for e in epochs if metric in e["metrics"]}
        return {}

    def status(self) -> int | None:
        """The exit status; None while it runs."""
        return self._process.poll()

    def stop(self) -> None:
        """Has the run write its checkpoint and end."""
        self._process.terminate()
        try:
            self._process.wait(SECONDS_TO_STOP)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def last_line(self) -> str:
        """What the process said last."""
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"


class Job(NamedTuple):
    """A run to make; it is finished when its results are there.

    Attributes:
        name: to tell it by.
        command: see command.
        run_dir: of the run.
    """

    name: str
    command: Sequence[str]
    run_dir: Path

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return (self.run_dir / RESULTS).exists()


def run_jobs(jobs: Sequence[Job], processes: int, stop: StopRequests) -> None:
    """Runs what is left of the jobs, some at a time, in their order.

    Args:
        jobs: of a study.
        processes: at a time, each with its share of the CPUs.
        stop: asks to stop before.

    Raises:
        InputError: a job failed before any other was finished.
        Interrupted: the study was asked to stop.
    """
    left = [job for job in jobs if not job.finished]
    done = len(jobs) - len(left)
    shares = _cpu_shares(processes)
    running: dict[int, tuple[Job, Child]] = {}
    while left or running:
        for place in range(processes):
            if place not in running and left:
                job = left.pop(0)
                running[place] = job, Child(job.command, job.run_dir, shares[place])
        if stop.asked:
            for _, child in running.values():
                child.stop()
            raise stop.reason(done, "run")
        for place, (job, child) in list(running.items()):
            if (status := child.status()) is None:
                continue
            del running[place]
            if status == 0:
                done += 1
                logging.info("%d of %d: %s", done, len(jobs), job.name)
                continue
            if not done:
                for _, other in running.values():
                    other.stop()
                raise InputError(f"{job.name}: {child.last_line().removeprefix('error: ')}")
            logging.warning("%s failed: %s", job.name, child.last_line())
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _cpu_shares(processes: int) -> list[set[int] | None]:
    """CPUs for each of several processes, so that they do not wait for one another; None for all."""
    if processes == 1 or not hasattr(os, "sched_setaffinity"):
        return [None] * processes
    cpus = sorted(os.sched_getaffinity(0))
    return [set(cpus[place::processes]) or None for place in range(processes)]
