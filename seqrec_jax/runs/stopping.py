"""Stopping in good order: on a signal, or when the time is up."""

import signal
import threading
import time
from types import FrameType
from typing import Any

from absl import logging

from seqrec_jax.errors import Interrupted


class StopRequests:
    """Context manager; remembers signals to end (a second one ends at once) and when `max_hours` since entry are up."""

    def __init__(self, max_hours: float | None = None):
        self._max_hours, self._until, self._signal = max_hours, float("inf"), 0
        self._before: dict[int, Any] = {}

    def _remember(self, number: int, _: FrameType | None) -> None:
        if self._signal:
            raise KeyboardInterrupt
        self._signal = number
        logging.info("%s: stopping after this step; the same again stops at once", signal.Signals(number).name)

    def __enter__(self) -> "StopRequests":
        if self._max_hours is not None:
            self._until = min(self._until, time.monotonic() + 3600 * self._max_hours)
        if threading.current_thread() is threading.main_thread():
            self._before = {n: signal.signal(n, self._remember) for n in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def asked(self) -> bool:
        """Whether the run is to stop."""
        return bool(self._signal) or time.monotonic() > self._until

    def reason(self, number: int, what: str = "step") -> Interrupted:
        """What to raise once the checkpoint of the step `number`, or of another unit of work, is written."""
        after = f"after {what} {number:,}; its checkpoint is written, and the same command goes on from there"
        if self._signal:
            return Interrupted(f"stopped by {signal.Signals(self._signal).name} {after}", 128 + self._signal)
        if self._max_hours is not None:
            return Interrupted(f"stopped by MAX_HOURS = {self._max_hours} {after}", 0)
        return Interrupted(f"stopped by another host {after}", 128 + signal.SIGTERM)
