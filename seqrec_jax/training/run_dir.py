"""The folder of a run: whose it is, and with which configuration it was begun."""

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from seqrec_jax.errors import InputError
from seqrec_jax.files import write_text
from seqrec_jax.training.checkpoint import CHECKPOINTS, DAMAGED
from seqrec_jax.training.loop import TRACE
from seqrec_jax.training.metrics_log import METRICS
from seqrec_jax.training.tracking import TRACKING

RESULTS = "results.json"
CONFIG = "config.gin"
LOCK = ".lock"
TRANSITIONS = "transitions.npz"
DATA = "#: "
"""Begins a line of config.gin that is no binding, but what the run depends on all the same."""

FREE = re.compile(
    r"\w+\.(run_dir|dataset|pretraining_dataset|checkpoint|overwrite|trials|max_hours|processes)"
    r"|pretrain\.model_axis|Guards\.(max_hours|memory_limit)"
    r"|(Checkpoints|Reports|Tracker)\..*"
    r"|transfer_study\.(shares|seeds)|scaling_study\.(budgets|most_hours)|(run|quickstart|convert|make_shop|scaling_law)\..*"
)
"""Bindings that may change when a run goes on: where things lie, how much it tells and keeps, how long it may take. The
dataset is compared by its checksums."""


def is_first_host() -> bool:
    """Whether this process is the one that writes; finds out without starting any device."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def agree(error: str | None) -> None:
    """Ends every host with the first one's error, if it has one.

    Raises:
        InputError: the first host's message.
    """
    if jax.distributed.is_initialized():
        text = np.zeros(1000, np.uint8)
        encoded = (error or "").encode()[:1000]
        text[: len(encoded)] = np.frombuffer(encoded, np.uint8)
        error = bytes(multihost_utils.broadcast_one_to_all(text)).rstrip(b"\0").decode(errors="replace") or None
    if error is not None:
        raise InputError(error)


def _bindings(config: str) -> dict[str, str]:
    """Values of an operative configuration, macros put in their place, without what may change."""
    values: dict[str, str] = {}
    name = None
    for line in config.splitlines():
        line = line.removeprefix(DATA)
        if not line.strip() or line.startswith("#"):
            continue
        if match := re.match(r"([\w./@]+) = ?(.*)", line):
            name, values[match[1]] = match[1], match[2]
        elif name is not None:
            values[name] += " " + line.strip()
    values = {name: " ".join(value.removeprefix("\\").split()) for name, value in values.items()}
    resolved = {name: values.get(value.removeprefix("%"), value) for name, value in values.items() if "." in name}
    return {name: value for name, value in resolved.items() if not FREE.fullmatch(name)}


def split_bound(config: str) -> dict[str, str]:
    """The split that a configuration names and its settings, as they are bound."""
    values = _bindings(config)
    name = next((value for name, value in values.items() if name.endswith(".split")), "@leave_one_out")
    return {"SPLIT": name} | {key: value for key, value in values.items() if key.startswith(f"{name[1:]}.")}


def _differences(before: str, now: str) -> str | None:
    """What two configurations say differently, in a line; None where they agree."""
    old, new = _bindings(before), _bindings(now)
    different = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    told = [f"{name} = {old.get(name, 'unset')} (now {new.get(name, 'unset')})" for name in different]
    return ", ".join(told) or None


class RunDir:
    """The folder of a run, held by one process at a time (on several hosts, by the first).

    Args:
        path: the folder.
        writes: names of what the task writes there beside what every run does.
    """

    def __init__(self, path: str, writes: Sequence[str] = ()):
        self.path, self._writes = Path(path), tuple(writes)
        self._first, self._lock = is_first_host(), -1

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

    @contextlib.contextmanager
    def held(self) -> Iterator[Path]:
        """Holds the folder; one that nothing was written to is removed in the end.

        Raises:
            InputError: it cannot be written to, or another process holds it.
        """
        agree(self._take() if self._first else None)
        try:
            yield self.path
        finally:
            if self._first:
                if [path.name for path in self.path.iterdir()] == [LOCK]:
                    shutil.rmtree(self.path)
                os.close(self._lock)

    def recorded(self, name: str) -> str | None:
        """What the run that is there was begun with, of what is no binding; None where it says nothing."""
        path = self.path / CONFIG
        return _bindings(path.read_text()).get(name) if path.exists() else None

    def begin(self, config: str, overwrite: bool) -> bool:
        """Writes the configuration, or compares it with that of the run that is there.

        Args:
            config: the operative one, and what else the run depends on, a binding a line.
            overwrite: remove the run that is there.

        Returns:
            Whether the run had finished.

        Raises:
            InputError: the run that is there has another configuration.
        """
        error = None
        if self._first:
            if overwrite:
                self._remove()
            before = self.path / CONFIG
            if not before.exists():
                self._remove()
                write_text(before, config)
            elif differences := _differences(before.read_text(), config):
                task = re.search(r"^(\w+)\.overwrite = ", config, re.MULTILINE)
                error = (
                    f"{self.path}: holds a run of another configuration, {differences}; bind another RUN_DIR, or "
                    f"{task[1] if task else 'pretrain'}.overwrite = True to remove it and start afresh"
                )
        agree(error)
        return (self.path / RESULTS).exists()

    def _remove(self) -> None:
        for name in (CHECKPOINTS, DAMAGED, TRACE, RESULTS, CONFIG, METRICS, TRACKING, *self._writes):
            path = self.path / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def check_disk(self, checkpoint_bytes: int, n_checkpoints: int) -> None:
        """Refuses to start where the checkpoints of a run will not fit on the disk.

        Args:
            checkpoint_bytes: of one.
            n_checkpoints: at most at one time.

        Raises:
            InputError: saying how much is missing.
        """
        error = None
        if self._first:
            there = sum(path.stat().st_size for path in (self.path / CHECKPOINTS).rglob("*") if path.is_file())
            need, free = checkpoint_bytes * n_checkpoints - there, shutil.disk_usage(self.path).free
            if need > free:
                error = (
                    f"{self.path}: {n_checkpoints} checkpoints need {need / 1e9:.2f} GB of disk, but {free / 1e9:.2f} "
                    "GB are free"
                )
        agree(error)
