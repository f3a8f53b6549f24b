"""Makes dataset folders from raw logs: `python -m etl.main --gin_file=gin/etl_amazon.gin`."""

import dataclasses
import inspect
from collections.abc import Callable

import gin
from absl import flags

from etl import build_datasets, joint_tokenizer, recbole  # noqa: F401  (they register with Gin)
from etl.plan import Plan
from etl.running.workers import Workers
from seqrec_jax.errors import InputError
from seqrec_jax.host_memory import keep_freed_memory
from seqrec_jax.launcher import launch

_STEP = flags.DEFINE_string("step", "all", "One step of the pipeline, by name; all runs what is not finished yet.")


MOVED = {
    f"build_datasets.{field.name}": f"{settings.__name__}.{field.name}"
    for settings in (Plan, Workers)
    for field in dataclasses.fields(settings)
}
"""Bindings of version 0.1 that have another name now, by their old ones."""


@gin.configurable("etl")
def run(pipeline: Callable[..., object] = gin.REQUIRED) -> None:
    """Calls the pipeline bound to `etl.pipeline`."""
    if _STEP.value == "all":
        pipeline()
    elif "step" in inspect.signature(pipeline).parameters:
        pipeline(step=_STEP.value)
    else:
        raise InputError(f"--step={_STEP.value}: this pipeline has no steps; leave the flag out")


def main() -> None:
    """Entry point."""
    keep_freed_memory()
    launch(run, MOVED)


if __name__ == "__main__":
    main()
