"""`metrics.jsonl`: every record of a run, one JSON object a line, once."""

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path

METRICS = "metrics.jsonl"


class MetricsLog:
    """Appends records to the file `path` and never writes one twice; None keeps nothing.

    A run that goes on from a checkpoint repeats what it had recorded since; those records are there already and are
    left as they are. A line that was cut off by a crash is removed.
    """

    def __init__(self, path: Path | None):
        self._path, self._known = path, set()
        self._steps_before = self._epochs_before = 0
        if path is not None and path.exists():
            content = path.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]
            if len(whole) < len(content):
                os.truncate(path, len(whole))
            self._known = {(record["kind"], record["step"]) for record in map(json.loads, whole.splitlines())}

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
