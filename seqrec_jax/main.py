"""Runs the task that a Gin file names: `python -m seqrec_jax.main --gin_file=gin/quickstart.gin`."""

from collections.abc import Callable

import gin

from seqrec_jax.host_memory import keep_freed_memory
from seqrec_jax.launcher import launch
from seqrec_jax.tasks import evaluate, pretrain, quickstart, recommend  # noqa: F401  (they register with Gin)


@gin.configurable
def run(task: Callable[[], object] = gin.REQUIRED) -> None:
    """Calls the task bound to `run.task`."""
    task()


def main() -> None:
    """Entry point."""
    keep_freed_memory()
    launch(run)


if __name__ == "__main__":
    main()
