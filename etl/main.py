"""Makes dataset folders from raw logs: `python -m etl.main --gin_file=gin/etl_recbole.gin`."""

from collections.abc import Callable

import gin

from etl import recbole  # noqa: F401  (registers with Gin)
from seqrec_jax.launcher import launch


@gin.configurable("etl")
def run(pipeline: Callable[[], object] = gin.REQUIRED) -> None:
    """Calls the pipeline bound to `etl.pipeline`."""
    pipeline()


def main() -> None:
    """Entry point."""
    launch(run)


if __name__ == "__main__":
    main()
