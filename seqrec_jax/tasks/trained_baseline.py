"""A baseline that is trained: SASRec, by our own trainer, kept in a folder of its own."""

from pathlib import Path

import gin

from seqrec_jax.tasks.child import Job, bound, command, run_jobs, tracked_under
from seqrec_jax.tasks.restored import Opened, open_checkpoint
from seqrec_jax.training.run_dir import split_bound
from seqrec_jax.training.stopping import StopRequests
from seqrec_jax.training.tracking import Tracker

RECIPE, NAME = "gin/sasrec.gin", "SASRec"


def trained_baseline(run_dir: str, dataset: str) -> Opened:
    """The baseline of a dataset, with the split that is bound; trained where it is not yet, in a process of its own.

    Args:
        run_dir: folder of its run.
        dataset: dataset folder.

    Raises:
        InputError: the recipe does not fit the dataset.
        Interrupted: it was asked to stop; called again, it goes on.
    """
    places = {"DATASET": repr(dataset), "RUN_DIR": repr(run_dir)}
    split = split_bound(gin.operative_config_str())
    tracked = tracked_under(Tracker(), None, NAME)
    job = Job(NAME, command(RECIPE, bound(places | split | tracked)), Path(run_dir))
    with StopRequests() as stop:
        run_jobs([job], 1, stop)
    return open_checkpoint(run_dir, dataset)
