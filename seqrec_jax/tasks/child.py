"""A run of its own process, for tasks that make many."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from seqrec_jax.training.metrics_log import METRICS
from seqrec_jax.training.tracking import Tracker

SECONDS_TO_STOP = 300
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
