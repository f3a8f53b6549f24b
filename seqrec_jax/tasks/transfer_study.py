"""Task: methods of fine-tuning against training from scratch, over shares of the target's users and seeds."""

from typing import Any

from seqrec_jax.runs.settings import RunSettings
from seqrec_jax.studies import transfer_study as library
from seqrec_jax.studies.tables import transfer_table
from seqrec_jax.tasks.tables import print_tables


def transfer_study(study: library.TransferStudy, run_dir: str, settings: RunSettings = RunSettings()) -> dict[str, Any]:
    """Fine-tunes a checkpoint by each method, on each share of the users, with each seed, and prints a table.

    Interrupted when asked to stop, the same command goes on. Returns what transfer_study.json in run_dir holds.
    InputError where a setting is wrong, or the first run was refused.
    """
    results = library.transfer_study(study, run_dir, settings)
    print_tables(transfer_table(results), width=120)
    return results
