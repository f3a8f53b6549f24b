"""Jobs: runs in processes of their own, some at a time, which go on where they were interrupted."""

import contextlib
import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from seqrec_jax.describe import describe
from seqrec_jax.errors import InputError
from seqrec_jax.runs.folder import LOG, METRICS, RESULTS
from seqrec_jax.runs.metrics_log import read_records
from seqrec_jax.runs.results import read_results
from seqrec_jax.runs.run import HELD, Run
from seqrec_jax.runs.settings import Tracking
from seqrec_jax.runs.stopping import StopRequests

SECONDS_TO_STOP, SECONDS_BETWEEN_LOOKS, SECONDS_FOR_PARENT = 300, 0.5, 60


def gin_bindings(values: Mapping[str, Any]) -> list[str]:
    """Values by name as Gin bindings, such as `EPOCHS = 10`."""
    return [f"{name} = {value!r}" for name, value in values.items()]


def split_bindings(split: Callable[..., Any]) -> list[str]:
    """Gin bindings of a split and its settings, for configurations that have the macro SPLIT."""
    settings = describe(split)
    name = settings.pop("name")
    return [f"SPLIT = @{name}", *gin_bindings({f"{name}.{key}": value for key, value in settings.items()})]


def identity(study: Any, *free: str) -> dict[str, Any]:
    """What a study is compared by when it goes on: its settings, but for the `free` ones."""
    return {type(study).__name__: {name: value for name, value in describe(study).items() if name not in free}}


@dataclasses.dataclass(frozen=True)
class Job:
    """A run to make; it is finished when its results are there."""

    name: str  # name for people, and of the run in MLflow
    run_dir: Path  # folder of the run
    gin_file: str  # Gin file that names the task
    bindings: Sequence[str]  # Gin bindings over it

    @property
    def command(self) -> list[str]:
        """Command that makes the run, and that ends with the process that started it."""
        flags = [f"--gin_file={self.gin_file}", *(f"--gin_bindings={binding}" for binding in self.bindings)]
        return [sys.executable, "-m", "seqrec_jax.child", str(os.getpid()), *flags]

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return (self.run_dir / RESULTS).exists()

    def results(self) -> dict[str, Any]:
        """What the run's results.json holds."""
        return read_results(self.run_dir / RESULTS, "remove it, and the same command makes it again")

    def evaluations(self, metric: str) -> dict[int, float]:
        """The metric after each epoch that was evaluated so far."""
        epochs = [record for record in read_records(self.run_dir / METRICS) if record["kind"] == "epoch"]
        return {record["epoch"]: record["metrics"][metric] for record in epochs if metric in record["metrics"]}

    def tracked(self, tracker: Tracking | None, parent: str | None = None) -> "Job":
        """The same, tracked where `tracker` says, as a part of the run with the id `parent`."""
        store = tracker or Tracking(uri=None)
        values = {"uri": store.uri, "experiment": store.experiment, "run_name": self.name, "parent_run_id": parent}
        tracking = gin_bindings({f"Tracker.{name}": value for name, value in values.items()})
        return dataclasses.replace(self, bindings=[*self.bindings, *tracking])

    def part_of(self, run: Run) -> "Job":
        """The same, in MLflow a part of `run`."""
        return self.tracked(run.settings.tracker, run.tracker.run_id(SECONDS_FOR_PARENT))


class JobError(InputError):
    """A job ended with an error of its own; it was neither killed nor kept from its folder."""


class JobProcess:
    """A job under way, on some of the CPUs; None for all."""

    def __init__(self, job: Job, cpus: set[int] | None = None):
        job.run_dir.mkdir(parents=True, exist_ok=True)
        self._log = job.run_dir / LOG
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                job.command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        if cpus is not None:  # Before it has made its threads, which inherit this.
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(self._process.pid, cpus)

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
        """The last line that the process printed."""
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1].removeprefix("error: ") if lines else "it printed nothing"


def run_jobs(
    jobs: Sequence[Job], processes: int, stop: StopRequests, watch: Callable[[Job], bool] = lambda job: False,
    done: int = 0,
) -> None:  # fmt: skip
    """Runs what is left of the jobs in their order, `processes` at a time, each with its share of the CPUs.

    `watch` looks at a job that is under way; it is stopped where this is True. `done` jobs are finished beside these.
    InputError where a job failed before any other was finished, or for a reason that is none of its own: it was killed,
    or another process holds its folder; Interrupted where the study was asked to stop.
    """
    left = [job for job in jobs if not job.finished]
    done += len(jobs) - len(left)
    cpus = sorted(os.sched_getaffinity(0)) if processes > 1 and hasattr(os, "sched_setaffinity") else []
    running: dict[int, tuple[Job, JobProcess]] = {}

    def stop_all() -> None:
        for _, process in running.values():
            process.stop()

    while left or running:
        for place in range(processes):
            if place not in running and left:
                job = left.pop(0)  # with CPUs of its own, so that jobs do not wait for one another
                running[place] = job, JobProcess(job, set(cpus[place::processes]) or None)
        if stop.asked:
            stop_all()
            raise stop.reason(done, "run")
        for place, (job, process) in list(running.items()):
            if (status := process.status()) is None and not watch(job):
                continue
            del running[place]
            if status is None:
                process.stop()
            elif status == 0:
                done += 1
                logging.info("%s: finished, %d in all", job.name, done)
            else:
                reason = process.last_line() if status > 0 else f"was killed by signal {-status}; run the same again"
                of_its_own = status > 0 and HELD not in reason
                if not (of_its_own and done):
                    stop_all()
                    raise (JobError if of_its_own else InputError)(f"{job.name}: {reason}")
                logging.warning("%s failed: %s", job.name, reason)
        time.sleep(SECONDS_BETWEEN_LOOKS)
