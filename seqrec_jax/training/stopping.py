"""Stopping in good order: on a signal, or when the time is up."""

import signal
import threading
import time
from types import FrameType, TracebackType

from absl import logging

from seqrec_jax.errors import Interrupted


class StopRequests:
    """Remembers SIGTERM and SIGINT while it is entered, and when the time is up; a second signal ends at once.

    Args:
        max_hours: that the run may take from now on; None for no limit.
    """

    def __init__(self, max_hours: float | None = None):
        self._until = None if max_hours is None else time.monotonic() + 3600 * max_hours
        self._max_hours, self._signal = max_hours, 0
        self._before: dict[int, object] = {}

    def _remember(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self._signal:
            raise KeyboardInterrupt
        self._signal = number
        logging.info("%s: stopping after this step; the same again stops at once", signal.Signals(number).name)

    def __enter__(self) -> "StopRequests":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    @property
    def asked(self) -> bool:
        """Whether the run is to stop."""
        return bool(self._signal) or (self._until is not None and time.monotonic() > self._until)

    def reason(self, number: int, what: str = "step") -> Interrupted:
        """What to raise once the checkpoint is written.

        Args:
            number: of the step, or of what else was under way.
            what: it is.
        """
        after = f"after {what} {number:,}; its checkpoint is written, and the same command goes on from there"
        if self._signal:
            return Interrupted(f"stopped by {signal.Signals(self._signal).name} {after}", 128 + self._signal)
        if self._until is not None:
            return Interrupted(f"stopped by MAX_HOURS = {self._max_hours} {after}", 0)
        return Interrupted(f"stopped by another host {after}", 128 + signal.SIGTERM)
