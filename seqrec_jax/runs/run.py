"""A run: a folder that one process writes, and the typed configuration that it was begun with."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from seqrec_jax.errors import Interrupted
from seqrec_jax.files import write_text
from seqrec_jax.hosts import is_first_host, raise_on_all_hosts
from seqrec_jax.runs.metrics_log import METRICS, MetricsLog
from seqrec_jax.runs.settings import RunSettings
from seqrec_jax.runs.stopping import StopRequests
from seqrec_jax.runs.tracking import TRACKING, Tracker

RESULTS, CONFIG, CONFIG_TEXT, LOCK = "results.json", "config.json", "config.gin", ".lock"
CHECKPOINTS, TRACE = "checkpoints", "trace"
WRITTEN = (RESULTS, CONFIG, CONFIG_TEXT, METRICS, TRACKING, CHECKPOINTS, TRACE, "damaged")


def differences(before: Any, now: Any, place: str = "") -> Iterator[str]:
    """What two configurations (JSON) say differently, such as `TrainConfig.epochs = 4 (now 5)`; `place` names both."""
    if isinstance(before, dict) and isinstance(now, dict) and before.get("name") == now.get("name"):
        place = before.get("name", place)
        for key in sorted(before.keys() | now.keys()):
            if before.get(key) != now.get(key):
                yield from differences(before.get(key, "unset"), now.get(key, "unset"), f"{place}.{key}".strip("."))
    elif before != now:
        values = [value.get("name", value) if isinstance(value, dict) else value for value in (before, now)]
        yield f"{place} = {values[0]} (now {values[1]})"


class Run:
    """Context manager that holds the folder of a run; on several hosts the first one holds it and writes.

    `writes` names what is written there beside what every run writes. Entering raises an InputError where the folder
    cannot be written to, or another process holds it. Leaving closes the run in MLflow as FINISHED, KILLED
    (Interrupted) or FAILED (any other exception), and removes a folder that nothing was written to.
    """

    def __init__(self, run_dir: str | Path, settings: RunSettings | None = None, writes: Sequence[str] = ()):
        self.path, self.settings, self._writes = Path(run_dir), settings or RunSettings(), writes
        self.first, self._lock = is_first_host(), -1  # the first host is the one that writes
        self.metrics = MetricsLog(None)  # keeps nothing before `begin`, and nothing on other hosts than the first
        self.tracker = Tracker(self.settings.tracker if self.first else None)  # sends nothing before `begin`
        self.stop = StopRequests(self.settings.max_hours)  # to be entered around the work that can be stopped

    def _take(self) -> str | None:
        """Makes the folder and locks it; returns why it cannot be had."""
        if self.path.exists() and not self.path.is_dir():
            return f"{self.path}: is a file; bind RUN_DIR to a folder"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / LOCK, os.O_CREAT | os.O_RDWR, 0o644)
        except OSError as error:
            return f"{self.path}: cannot be written to ({error.strerror}); bind RUN_DIR to a folder that can"
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return f"{self.path}: another process is at work there; wait for it, or bind another RUN_DIR"
        return None

    def __enter__(self) -> "Run":
        raise_on_all_hosts(self._take() if self.first else None)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.tracker.close("FINISHED" if kind is None else "KILLED" if issubclass(kind, Interrupted) else "FAILED")
        if self.first:
            if [path.name for path in self.path.iterdir()] == [LOCK]:
                shutil.rmtree(self.path)
            os.close(self._lock)

    def recorded(self, name: str) -> Any:
        """What the run that the folder holds was begun with under a dotted name; None where it will not go on."""
        path = self.path / CONFIG
        value = json.loads(path.read_text()) if path.exists() and not self.settings.overwrite else {}
        for key in name.split("."):
            value = (value or {}).get(key)
        return value

    def begin(self, config: Mapping[str, Any]) -> dict[str, Any] | None:
        """Writes the configuration, or compares it with that of the run that the folder holds.

        It is JSON, objects such as `TrainConfig` by name. An InputError names each difference. Returns the results of a
        run that had finished, with whatever MLflow lacked of it sent; None where there is work to do.
        """
        raise_on_all_hosts(self._compare(json.loads(json.dumps(config))) if self.first else None)
        if self.first:
            self.metrics = MetricsLog(self.path / METRICS)
            self.tracker.start(self.path)
            self.track(artifacts=[self.path / CONFIG, self.path / CONFIG_TEXT])
        if not (self.path / RESULTS).exists():
            return None
        logging.info("%s: the run is finished; RunSettings.overwrite = True starts it afresh", self.path)
        self.track(artifacts=[self.path / RESULTS])
        return json.loads((self.path / RESULTS).read_text())

    def _compare(self, config: dict[str, Any]) -> str | None:
        """Begins a run, or returns why the one that is there cannot go on."""
        path = self.path / CONFIG
        if path.exists() and not self.settings.overwrite:
            different = ", ".join(differences(json.loads(path.read_text()), config))
            return None if not different else (
                f"{self.path}: holds a run of another configuration, {different}; bind another RUN_DIR, or "
                "RunSettings.overwrite = True to remove it and start afresh"
            )  # fmt: skip
        if (self.path / CHECKPOINTS).exists() and not path.exists() and not self.settings.overwrite:
            return f"{self.path}: holds checkpoints that are no run's, as it has no {CONFIG}; bind another RUN_DIR"
        for written in (self.path / name for name in (*WRITTEN, *self._writes)):
            if written.is_dir():
                shutil.rmtree(written)
            else:
                written.unlink(missing_ok=True)
        text = json.dumps(config, indent=2) + "\n"
        if self.settings.config_text is not None:
            write_text(self.path / CONFIG_TEXT, self.settings.config_text)
        write_text(path, text)
        logging.info("configuration:\n%s", self.settings.config_text or text)
        return None

    def track(self, params: Mapping[str, Any] | None = None, artifacts: Sequence[Path] = ()) -> None:
        """Keeps parameters and copies of files in MLflow."""
        self.tracker.log_params(params or {})
        for path in artifacts:
            self.tracker.log_artifact(path)

    def finish(self, results: Any) -> None:
        """Writes results.json, with which the run is finished."""
        if self.first:
            write_text(self.path / RESULTS, json.dumps(results, indent=2) + "\n")
            self.track(artifacts=[self.path / RESULTS])

    def check_disk(self, checkpoint_bytes: int, n_checkpoints: int) -> None:
        """Refuses to train where so many checkpoints do not fit on the disk: an InputError with what they need."""
        error = None
        if self.first:
            there = sum(path.stat().st_size for path in (self.path / CHECKPOINTS).rglob("*") if path.is_file())
            need, free = checkpoint_bytes * n_checkpoints - there, shutil.disk_usage(self.path).free
            if need > free:
                needs = f"{n_checkpoints} checkpoints need {need / 1e9:.2f} GB of disk"
                error = f"{self.path}: {needs}, but {free / 1e9:.2f} GB are free"
        raise_on_all_hosts(error)
