"""Task: whether one checkpoint is better than another on the same users, or only luckier."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from seqrec_jax.data.corpus import Corpus
from seqrec_jax.errors import InputError
from seqrec_jax.evaluation.compare import compare as compare_models
from seqrec_jax.evaluation.intervals import Difference
from seqrec_jax.evaluation.ranking import Ranking
from seqrec_jax.files import write_text
from seqrec_jax.model.storage import load
from seqrec_jax.runs.folder import report_folder
from seqrec_jax.runs.settings import RunSettings
from seqrec_jax.runs.tracking import Tracker
from seqrec_jax.tasks.tables import new_table, on_test, plain, print_tables

SUMMARY = "comparison.json"


def _comparison_table(rows: Mapping[str, Difference], title: str) -> Table:
    """A row per metric or slice of two models."""
    table = new_table(title, ("", "first", "second", "difference", "95 % interval", "p", "users better", "users worse"))
    for name, of in rows.items():
        table.add_row(
            plain(name), f"{of.first:.4f}", f"{of.second:.4f}", f"{of.difference:+.4f}",
            f"{of.low:+.4f} to {of.high:+.4f}",
            f"{of.p:.4f}", str(of.better), str(of.worse),
        )  # fmt: skip
    return table


def compare(
    checkpoints: Sequence[str], corpus: Corpus, run_dir: str | None = None, ranking: Ranking = Ranking(),
    metric: str = "ndcg_at_10", category: str | None = None, draws: int = 10_000, seed: int = 2020,
    settings: RunSettings = RunSettings(),
) -> dict[str, Any]:  # fmt: skip
    """Compares two checkpoints on the test targets of a dataset, user by user, and prints tables.

    Returns what comparison.json holds: of each metric and slice the means, their difference, its 95 % interval, and p
    of a permutation test. InputError where there are not two checkpoints, or one does not fit the dataset.

    `checkpoints` are the RUN_DIRs of two training runs; `run_dir` receives comparison.json, None writes nothing. See
    evaluation.compare for the others.
    """
    if len(checkpoints) != 2:
        raise InputError(f"CHECKPOINTS = {list(checkpoints)} must name two")
    folder = None if run_dir is None else report_folder(run_dir, SUMMARY)
    first, second = map(load, checkpoints)
    comparison = compare_models(
        first, second, corpus, ranking=ranking, metric=metric, category=category, draws=draws, seed=seed
    )
    results = {"checkpoints": list(checkpoints), **comparison.to_json()}
    if folder is not None:
        path, tracker = folder / SUMMARY, Tracker(settings.tracker)
        write_text(path, json.dumps(results, indent=2) + "\n")
        tracker.start(folder)
        tracker.log_params({"checkpoints": list(checkpoints), "dataset": corpus.name})
        tracker.log_artifact(path)
        tracker.close("FINISHED")
    title = on_test(comparison.dataset["ties"])
    print_tables(
        _comparison_table(comparison.metrics, f"{title}: first {checkpoints[0]}, second {checkpoints[1]}"),
        _comparison_table(comparison.slices, f"Slices, {metric}"),
        width=120,
    )
    return results
