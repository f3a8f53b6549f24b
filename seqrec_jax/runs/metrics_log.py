"""`metrics.jsonl`: every record of a run, one JSON object a line, once."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import logging

from seqrec_jax.files import write_bytes


def _record(line: bytes) -> dict[str, Any] | None:
    """The record of a line; None where it is damaged."""
    try:
        record = json.loads(line)
        return record if {"kind", "step", "epoch", "time"} <= record.keys() and record["metrics"].items() else None
    except (ValueError, AttributeError, TypeError, KeyError, RecursionError):
        return None


def _lines(path: Path) -> list[bytes]:
    """The lines of a log, but one that is being written; none where there is no log."""
    return path.read_bytes().split(b"\n")[:-1] if path.is_file() else []


def read_records(path: Path) -> list[dict[str, Any]]:
    """The whole records of a log, which may be growing."""
    return [record for record in map(_record, _lines(path)) if record is not None]


def damaged_lines(path: Path) -> list[int]:
    """Numbers, from 1, of the lines of a log that are damaged."""
    return [number for number, line in enumerate(_lines(path), 1) if _record(line) is None]


class MetricsLog:
    """Appends records to the file `path` and never writes one twice; None keeps nothing.

    A run that goes on from a checkpoint repeats what it had recorded since; those records are there already and are
    left as they are. A line that was cut off by a crash, or is damaged, is removed.
    """

    def __init__(self, path: Path | None):
        self._path, self._known = path, set()
        self._steps_before = self._epochs_before = 0
        if path is not None and path.exists():
            lines = path.read_bytes().splitlines(keepends=True)
            whole = [line for line in lines if line.endswith(b"\n") and _record(line) is not None]
            if len(whole) < len(lines):
                logging.warning("%s: %d lines are cut off or damaged, and are removed", path, len(lines) - len(whole))
                write_bytes(path, b"".join(whole))
            self._known = {(record["kind"], record["step"]) for record in map(json.loads, whole)}

    def begin_phase(self, steps_before: int, epochs_before: int) -> None:
        """Counts steps and epochs on from those of earlier phases."""
        self._steps_before, self._epochs_before = steps_before, epochs_before

    def add(self, kind: str, step: int, epoch: int, metrics: Mapping[str, float]) -> None:
        """Appends a record, unless there is one of the same kind and step; null stands for a value that is not finite.

        `kind` is `step`, `epoch`, `zero_shot` or `test`; `step` and `epoch` (from 1) are those of this phase.
        """
        step, epoch = step + self._steps_before, epoch + self._epochs_before
        if self._path is None or (kind, step) in self._known:
            return
        self._known.add((kind, step))
        record = {"kind": kind, "step": step, "epoch": epoch, "time": time.time()}
        record["metrics"] = {name: float(value) if math.isfinite(value) else None for name, value in metrics.items()}
        with self._path.open("ab") as file:
            file.write(json.dumps(record).encode() + b"\n")
