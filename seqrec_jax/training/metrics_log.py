"""`metrics.jsonl`: every record of a run, one JSON object a line, once."""

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path

METRICS = "metrics.jsonl"


class MetricsLog:
    """Appends records to a file and never writes one twice.

    A run that goes on from a checkpoint makes again what it had recorded since; those records are there already and are
    left as they are. A line that was cut off by a crash is removed.

    Args:
        path: the file; None keeps nothing.
    """

    def __init__(self, path: Path | None):
        self._path, self._known = path, set()
        self._steps_before = self._epochs_before = 0
        if path is None or not path.exists():
            return
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(path, len(whole))
        self._known = {(record["kind"], record["step"]) for record in map(json.loads, whole.splitlines())}

    def begin_stage(self, steps_before: int, epochs_before: int) -> None:
        """Counts steps and epochs on from those of earlier stages."""
        self._steps_before, self._epochs_before = steps_before, epochs_before

    def add(self, kind: str, step: int, epoch: int, metrics: Mapping[str, float]) -> None:
        """Appends a record, unless there is one of the same kind and step.

        Args:
            kind: `step`, `epoch`, `zero_shot` or `test`.
            step: optimizer steps taken in this stage.
            epoch: the epoch, from 1.
            metrics: by name; null is written for what is not finite.
        """
        step, epoch = step + self._steps_before, epoch + self._epochs_before
        if self._path is None or (kind, step) in self._known:
            return
        self._known.add((kind, step))
        record = {"kind": kind, "step": step, "epoch": epoch, "time": time.time()}
        record["metrics"] = {name: float(value) if math.isfinite(value) else None for name, value in metrics.items()}
        with self._path.open("ab") as file:
            file.write(json.dumps(record).encode() + b"\n")
