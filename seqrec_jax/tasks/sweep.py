"""Task: search over the bindings of a training run, each trial a run of its own."""

from typing import Any

from seqrec_jax.runs.settings import RunSettings
from seqrec_jax.studies import sweep as library
from seqrec_jax.studies.tables import trials_table
from seqrec_jax.tasks.tables import print_tables


def sweep(search: library.Sweep, run_dir: str, settings: RunSettings = RunSettings()) -> list[dict[str, Any]]:
    """Searches for the bindings that are best on validation, and prints the trials; run_dir is the sweep's folder.

    Interrupted when asked to stop, the same command goes on with the trial that was under way. Returns what sweep.json
    holds: the trials, the best first. InputError where a setting is wrong, or the first trial was refused.
    """
    trials = library.sweep(search, run_dir, settings)
    print_tables(trials_table(trials))
    return trials
