"""Runs the task that a Gin file names: `python -m seqrec_jax.main --gin_file=gin/quickstart.gin`."""

import os
import threading
import time

from absl import flags

from seqrec_jax.host_memory import keep_freed_memory
from seqrec_jax.hosts import run_distributed
from seqrec_jax.launcher import launch
from seqrec_jax.tasks.registry import MOVED, run

SECONDS_BETWEEN_LOOKS = 0.2

_ENDS_WITH_PARENT = flags.DEFINE_bool(
    "ends_with_parent", False, "End when the process that started this one does, as the trials of a sweep."
)


def _end_with_parent() -> None:
    """Ends the process soon after the one that started it, however that one died."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(SECONDS_BETWEEN_LOOKS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _start() -> None:
    if _ENDS_WITH_PARENT.value:
        _end_with_parent()
    run_distributed(run)


def main() -> None:
    """Entry point."""
    keep_freed_memory()
    launch(_start, MOVED)


if __name__ == "__main__":
    main()
