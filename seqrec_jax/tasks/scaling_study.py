"""Task: runs of many sizes, the largest forecast before they are made, and the law of scaling that they follow."""

from typing import Any

from seqrec_jax.runs.settings import RunSettings
from seqrec_jax.studies import scaling_study as library
from seqrec_jax.studies.tables import forecast_table
from seqrec_jax.tasks.tables import print_tables


def scaling_study(study: library.ScalingStudy, run_dir: str, settings: RunSettings = RunSettings()) -> dict[str, Any]:
    """Trains models of every width and depth, on every share of the data, and prints the forecasts and what came.

    Interrupted when asked to stop, the same command goes on. Returns what scaling_study.json in run_dir holds: the
    estimate, and the forecasts with what came. InputError where a setting is wrong, the study would take too long, or
    the first run was refused.
    """
    results = library.scaling_study(study, run_dir, settings)
    if results["forecast"] is not None and results["forecast"]["forecasts"]:
        print_tables(forecast_table(results["forecast"]), width=140)
    return results
