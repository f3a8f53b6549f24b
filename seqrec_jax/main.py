"""Runs the task that a Gin file names: `python -m seqrec_jax.main --gin_file=gin/quickstart.gin`."""

import sys
from functools import partial

from seqrec_jax import fsck
from seqrec_jax.host_memory import keep_freed_memory
from seqrec_jax.hosts import run_distributed
from seqrec_jax.launcher import launch
from seqrec_jax.tasks.registry import MOVED, run


def main() -> None:
    """Entry point."""
    if sys.argv[1:2] == ["check"]:
        sys.exit(fsck.main(sys.argv[2:]))
    keep_freed_memory()
    launch(partial(run_distributed, run), MOVED)


if __name__ == "__main__":
    main()
