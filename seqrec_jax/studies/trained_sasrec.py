"""A baseline that is trained: SASRec, by our own trainer, kept in a folder of its own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from seqrec_jax.model import storage
from seqrec_jax.model.recommender import Recommender
from seqrec_jax.runs.settings import Tracking
from seqrec_jax.runs.stopping import StopRequests
from seqrec_jax.studies.engine import Job, gin_bindings, run_jobs, split_bindings

RECIPE = "gin/sasrec.gin"


def trained_sasrec(
    run_dir: str | Path, dataset: str | Path, split: Callable[..., Any], tracker: Tracking | None = None
) -> Recommender:
    """SASRec of a dataset folder, by `gin/sasrec.gin`; trained where it is not yet, in a process of its own.

    InputError where the recipe does not fit the dataset; Interrupted where it was asked to stop: called again, it goes
    on. `tracker` says where the run is tracked; None for nowhere.
    """
    places = gin_bindings({"DATASET": str(dataset), "RUN_DIR": str(run_dir)})
    job = Job("SASRec", Path(run_dir), RECIPE, [*places, *split_bindings(split)]).tracked(tracker)
    with StopRequests() as stop:
        run_jobs([job], 1, stop)
    return storage.load(run_dir)
