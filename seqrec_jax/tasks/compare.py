"""Task: whether one checkpoint is better than another on the same users, or only luckier."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gin
from rich.console import Console
from rich.table import Table

from seqrec_jax.data.split import Split, leave_one_out, train_counts
from seqrec_jax.data.store import Dataset
from seqrec_jax.errors import InputError
from seqrec_jax.evaluation.intervals import Difference
from seqrec_jax.evaluation.intervals import compare as compared
from seqrec_jax.evaluation.ranking import Ranking
from seqrec_jax.evaluation.slices import slices_of
from seqrec_jax.files import write_text
from seqrec_jax.tasks.restored import open_checkpoint, target_ranks, warn_of_another_split
from seqrec_jax.training.tracking import Tracker

SUMMARY = "comparison.json"


def comparison_table(rows: dict[str, Difference], title: str) -> Table:
    """A row per figure or slice, for the terminal."""
    table = Table(title=title)
    for column in ("", "first", "second", "difference", "95 % interval", "p", "users better", "users worse"):
        table.add_column(column, justify="right" if column else "left")
    for name, of in rows.items():
        table.add_row(
            name, f"{of.first:.4f}", f"{of.second:.4f}", f"{of.difference:+.4f}", f"{of.low:+.4f} to {of.high:+.4f}",
            f"{of.p:.4f}", str(of.better), str(of.worse),
        )  # fmt: skip
    return table


@gin.configurable
def compare(
    checkpoints: Sequence[str] = gin.REQUIRED,
    dataset: str = gin.REQUIRED,
    run_dir: str | None = None,
    split: Callable[[Dataset], Split] = leave_one_out,
    category: str | None = None,
    metric: str = "ndcg_at_10",
    draws: int = 10_000,
    seed: int = 2020,
) -> dict[str, Any]:
    """Compares two checkpoints on the test targets of a dataset, user by user.

    Args:
        checkpoints: the RUN_DIRs of two training runs.
        dataset: dataset folder.
        run_dir: where comparison.json goes, and the folder of a run in MLflow; None writes nothing.
        split: of the dataset; see pretrain.
        category: see evaluate.
        metric: `<metric>_at_<k>` to compare in slices too.
        draws: bootstrap draws of users, and permutations.
        seed: of both.

    Returns:
        Of each metric and each slice the means, their difference, its 95 % interval, and p of a permutation test.

    Raises:
        InputError: there are not two checkpoints, or a metric that the ranking does not have.
    """
    ranking = Ranking()
    metrics = [f"{name}_at_{k}" for k in ranking.ks for name in ("recall", "ndcg", "mrr")]
    if len(checkpoints) != 2:
        raise InputError(f"CHECKPOINTS = {list(checkpoints)} must name two")
    if metric not in metrics:
        raise InputError(f"compare.metric = {metric!r} is not one of {', '.join(metrics)}")
    if draws < 100:
        raise InputError(f"compare.draws = {draws} is below 100, too few for an interval")
    opened = [open_checkpoint(checkpoint, dataset) for checkpoint in checkpoints]
    data = opened[0].data
    divided = split(data)
    for checkpoint in checkpoints:
        warn_of_another_split(checkpoint)
    test, counts = divided.test, train_counts(data, divided)
    first, second = (target_ranks(of, test, ranking, counts) for of in opened)
    of_metrics = {name: compared(first, second, name, draws, seed, test.users) for name in metrics}
    of_slices = {
        f"{name} ({inside.sum()} targets)": compared(
            first[inside], second[inside], metric, draws, seed, test.users[inside]
        )
        for name, inside in slices_of(data, test, counts, category).items()
        if inside.any()
    }
    results = {
        "checkpoints": list(checkpoints),
        "metrics": {name: of._asdict() for name, of in of_metrics.items()},
        "slices": {name: of._asdict() for name, of in of_slices.items()},
    }
    if run_dir is not None:
        folder, tracker = Path(run_dir), Tracker()
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / SUMMARY, json.dumps(results, indent=2) + "\n")
        tracker.start(folder)
        with tracker.until_closed():
            tracker.log_params({"checkpoints": list(checkpoints), "dataset": dataset})
            tracker.log_artifact(folder / SUMMARY)
    console = Console(width=120)
    console.print(comparison_table(of_metrics, f"Test: first {checkpoints[0]}, second {checkpoints[1]}"))
    console.print(comparison_table(of_slices, f"Slices, {metric}"))
    return results
