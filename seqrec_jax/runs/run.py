"""A run: a folder that one process writes, and the typed configuration that it was begun with."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from seqrec_jax.describe import identity_of
from seqrec_jax.errors import InputError, Interrupted
from seqrec_jax.files import check_no_pattern, read_json, write_text
from seqrec_jax.hosts import is_first_host, raise_on_all_hosts
from seqrec_jax.runs.folder import (
    CHECKPOINTS,
    CONFIG,
    CONFIG_TEXT,
    DAMAGED,
    LOCK,
    METRICS,
    RESULTS,
    TRACE,
    TRACKING,
    check_new,
    remove,
)
from seqrec_jax.runs.metrics_log import MetricsLog
from seqrec_jax.runs.results import read_results, write_results
from seqrec_jax.runs.settings import RunSettings
from seqrec_jax.runs.stopping import StopRequests
from seqrec_jax.runs.tracking import Tracker

WRITTEN = (  # beside config.json
    RESULTS, METRICS, TRACKING, CHECKPOINTS, TRACE, DAMAGED, CONFIG_TEXT, "tokenizer.model", "transitions.npz",
)  # fmt: skip
HELD = "another process is at work there"
FINISHED_REMEDY = "remove it, and the same command makes it again"


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
    cannot be written to, holds other things and no run, or is held by another process. Leaving closes the run in MLflow
    as FINISHED, KILLED (Interrupted) or FAILED (any other exception), and removes a folder that nothing was written to.
    """

    def __init__(self, run_dir: str | Path, settings: RunSettings | None = None, writes: Sequence[str] = ()):
        self.path, self.settings, self._writes = Path(run_dir), settings or RunSettings(), writes
        self.first, self._lock = is_first_host(), -1  # the first host is the one that writes
        self._made = False  # whether the folder is this object's making
        self.identity = ""  # of the configuration, from `begin` on
        self.metrics = MetricsLog(None)  # keeps nothing before `begin`, and nothing on other hosts than the first
        self.tracker = Tracker(self.settings.tracker if self.first else None)  # sends nothing before `begin`
        self.stop = StopRequests(self.settings.max_hours)  # to be entered around the work that can be stopped

    def _take(self) -> str | None:
        """Makes the folder and locks it; returns why it cannot be had."""
        if self.path.exists() and not self.path.is_dir():
            return f"{self.path}: is a file; bind RUN_DIR to a folder"
        try:
            check_no_pattern(self.path)
            if self.path.exists() and not (self.path / CONFIG).exists():
                check_new(self.path)
            self._made = not self.path.exists()
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / LOCK, os.O_CREAT | os.O_RDWR, 0o644)
        except InputError as error:
            return str(error)
        except OSError as error:
            return f"{self.path}: cannot be written to ({error.strerror}); bind RUN_DIR to a folder that can"
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return f"{self.path}: {HELD}; wait for it, or bind another RUN_DIR"
        return None

    def __enter__(self) -> "Run":
        raise_on_all_hosts(self._take() if self.first else None)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.tracker.close("FINISHED" if kind is None else "KILLED" if issubclass(kind, Interrupted) else "FAILED")
        if self.first:
            if self._made and [path.name for path in self.path.iterdir()] == [LOCK]:
                (self.path / LOCK).unlink()
                self.path.rmdir()
            os.close(self._lock)

    def recorded(self, name: str) -> Any:
        """What the run that the folder holds was begun with under a dotted name; None where it will not go on."""
        value: Any = {} if self.settings.overwrite else self._config()
        for key in name.split("."):
            value = (value or {}).get(key)
        return value

    def begin(self, config: Mapping[str, Any]) -> dict[str, Any] | None:
        """Writes the configuration, or compares it with that of the run that the folder holds.

        It is JSON, objects such as `TrainConfig` by name. An InputError names each difference. Returns the results of a
        run that had finished, with whatever MLflow lacked of it sent; None where there is work to do.
        """
        plain = json.loads(json.dumps(config))
        self.identity = identity_of(plain)
        raise_on_all_hosts(self._compare(plain) if self.first else None)
        if self.first:
            self.metrics = MetricsLog(self.path / METRICS)
            self.tracker.start(self.path)
            self.track(artifacts=[self.path / CONFIG, self.path / CONFIG_TEXT])
        if not (self.path / RESULTS).exists():
            return None
        results = read_results(self.path / RESULTS, FINISHED_REMEDY)
        logging.info("%s: the run is finished; RunSettings.overwrite = True starts it afresh", self.path)
        self.track(artifacts=[self.path / RESULTS])
        return results

    def _config(self) -> dict[str, Any] | None:
        """The configuration of the run that the folder holds; None where it holds none."""
        path, remedy = self.path / CONFIG, "bind another RUN_DIR, or RunSettings.overwrite = True to start afresh"
        if not path.exists():
            return None
        config = read_json(path, remedy)
        if not isinstance(config, dict):
            raise InputError(f"{path}: is no configuration of a run; {remedy}")
        return config

    def _compare(self, config: dict[str, Any]) -> str | None:
        """Begins a run, or returns why the one that is there cannot go on."""
        try:
            if not self.settings.overwrite and (before := self._config()) is not None:
                different = ", ".join(differences(before, config))
                return None if not different else (
                    f"{self.path}: holds a run of another configuration, {different}; bind another RUN_DIR, or "
                    "RunSettings.overwrite = True to remove it and start afresh"
                )  # fmt: skip
            remove(self.path, (*WRITTEN, *self._writes, CONFIG))
        except InputError as error:
            return str(error)
        text = json.dumps(config, indent=2) + "\n"
        if self.settings.config_text is not None:
            write_text(self.path / CONFIG_TEXT, self.settings.config_text)
        write_text(self.path / CONFIG, text)
        logging.info("configuration:\n%s", self.settings.config_text or text)
        return None

    def remove(self, *names: str) -> None:
        """Removes files and folders of the run; an InputError where one holds what no run has written."""
        remove(self.path, names)

    def track(self, params: Mapping[str, Any] | None = None, artifacts: Sequence[Path] = ()) -> None:
        """Keeps parameters and copies of files in MLflow."""
        self.tracker.log_params(params or {})
        for path in artifacts:
            self.tracker.log_artifact(path)

    def finish(self, results: Any) -> None:
        """Writes results.json, with which the run is finished."""
        if self.first:
            write_results(self.path / RESULTS, results)
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
