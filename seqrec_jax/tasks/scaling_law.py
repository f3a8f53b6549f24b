"""Task: from the runs of an MLflow database to a law of scaling, its forecasts, and what to train for a budget."""

from typing import Any

from seqrec_jax.runs.settings import RunSettings
from seqrec_jax.studies import scaling_law as library
from seqrec_jax.studies.tables import scaling_law_tables
from seqrec_jax.tasks.tables import print_tables


def scaling_law(
    runs: str, run_dir: str, law: library.LawSettings = library.LawSettings(), settings: RunSettings = RunSettings()
) -> dict[str, Any]:
    """Fits laws of scaling to runs, chooses among them by their forecasts of larger runs, and prints them.

    `runs` is a folder of runs, an MLflow database's file, which is never written to, or a store's URI. Returns what
    scaling_law.json in run_dir holds. InputError where the runs cannot be read, or are too few for a law.
    """
    results = library.scaling_law(runs, run_dir, law, settings)
    print_tables(*scaling_law_tables(results), width=120)
    return results
