"""Task: rank a dataset's validation and test targets by a checkpoint, with popularity beside it."""

import json
from pathlib import Path
from typing import Any

import gin
from rich.console import Console

from seqrec_jax.data.split import leave_one_out, train_counts
from seqrec_jax.devices import device_mesh, replicate
from seqrec_jax.evaluation.baselines import popularity_ranks
from seqrec_jax.evaluation.metrics import summarize
from seqrec_jax.evaluation.ranking import Ranking, TargetRanker
from seqrec_jax.files import write_text
from seqrec_jax.model import parameters
from seqrec_jax.tasks.restored import open_checkpoint
from seqrec_jax.tasks.tables import results_table


@gin.configurable
def evaluate(checkpoint: str = gin.REQUIRED, dataset: str = gin.REQUIRED, run_dir: str | None = None) -> dict[str, Any]:
    """Evaluates a checkpoint and prints a table.

    Args:
        checkpoint: the RUN_DIR of a training run.
        dataset: dataset folder.
        run_dir: where results.json goes; None writes nothing.

    Returns:
        Metrics of `valid` and `test`, of the popularity baseline on test, and the parameters' digest.
    """
    restored, data, tokens, transitions = open_checkpoint(checkpoint, dataset)
    mesh, ranking, split = device_mesh(), Ranking(), leave_one_out(data)
    params, tokens = replicate(mesh, restored.params), replicate(mesh, tokens)
    max_length = restored.record.architecture.max_length
    results: dict[str, Any] = {}
    for name, targets in (("valid", split.valid), ("test", split.test)):
        ranker = TargetRanker(restored.graph, data, targets, ranking, max_length, mesh, transitions)
        results[name] = summarize(ranker.ranks(params, tokens), ranking.ks)
    popular = summarize(popularity_ranks(ranker, train_counts(data, split)), ranking.ks)
    results |= {"baselines": {"popularity": popular}, "params_sha256": parameters.sha256(params)}
    if run_dir is not None:
        Path(run_dir).mkdir(parents=True, exist_ok=True)
        write_text(Path(run_dir) / "results.json", json.dumps(results, indent=2) + "\n")
    rows = {"popularity, test": popular, "model, valid": results["valid"], "model, test": results["test"]}
    Console().print(results_table(rows, ranking.ks))
    return results
