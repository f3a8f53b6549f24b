"""Task: rank a dataset's targets by a checkpoint, with what it has to beat beside it, and how sure the figures are."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gin
import numpy as np
from absl import logging
from rich.console import Console
from rich.table import Table

from seqrec_jax.data.lexical import lexical_vectors
from seqrec_jax.data.split import Split, Targets, TrainingLog, leave_one_out, training_log
from seqrec_jax.data.store import Dataset
from seqrec_jax.data.transitions import count_transitions
from seqrec_jax.errors import InputError
from seqrec_jax.evaluation import baselines
from seqrec_jax.evaluation.intervals import intervals
from seqrec_jax.evaluation.metrics import summarize
from seqrec_jax.evaluation.ranking import Ranking
from seqrec_jax.evaluation.slices import gini, slices_of
from seqrec_jax.evaluation.top_items import top_items
from seqrec_jax.files import write_text
from seqrec_jax.model import parameters
from seqrec_jax.tasks.restored import Opened, open_checkpoint, target_ranker, target_ranks, warn_of_another_split
from seqrec_jax.tasks.tables import results_table
from seqrec_jax.tasks.trained_baseline import trained_baseline

MOST_SCORES = 1_000_000_000
"""Users times items above which the baselines that score each user apart are left out."""
SASREC = "SASRec, trained"
TEXT_SIZE = 512
"""Numbers that stand for an item's words in the baselines of texts."""
USERS_SHOWN = 10_000
"""Users, at most, whose recommendations tell how much of the catalog is shown."""


def baseline_ranks(opened: Opened, split: Split, log: TrainingLog, ranking: Ranking) -> dict[str, np.ndarray]:
    """Ranks of the test targets by each baseline: [n] int64 each.

    Args:
        opened: the checkpoint and the dataset.
        split: of the dataset.
        log: of training.
        ranking: how; a sample of the catalog leaves popularity alone.
    """
    data = opened.data
    scored = len(split.test.users) * data.n_items
    if ranking.n_sampled is not None:
        logging.warning(
            "Ranking.mode = %r orders models differently than the whole catalog does (Krichene and Rendle, KDD 2020)",
            ranking.mode,
        )
    elif scored > MOST_SCORES:
        logging.warning("%.2g users times items: all baselines but popularity are left out", scored)
    if ranking.n_sampled is not None or scored > MOST_SCORES:
        ranker = target_ranker(opened, split.test, ranking, log.counts)
        return {"popularity": baselines.popularity_ranks(ranker, log.counts)}
    texts = [data.tokens(name) for name in data.features]
    vectors = lexical_vectors(texts, data.vocab_size, TEXT_SIZE) if texts else None
    transitions = count_transitions(log, data.catalog_sha256())
    return {
        name: baselines.ranks(scores, data, split.test, log.counts, ranking.mask_seen)
        for name, scores in baselines.baselines_of(data, split, log, transitions, vectors).items()
    }


def shown(opened: Opened, targets: Targets, k: int, exclude_seen: bool, seed: int) -> dict[str, float]:
    """How much of the catalog the best k items of up to USERS_SHOWN users hold, and how evenly.

    Args:
        opened: the checkpoint and the dataset.
        targets: whose users are served, from what they did before.
        k: items shown to each.
        exclude_seen: leave out the items of their histories.
        seed: of the choice of users.
    """
    some = np.random.default_rng(seed).permutation(len(targets.users))[:USERS_SHOWN]
    data = opened.data
    histories = [
        data.user_items(user)[:position]
        for user, position in zip(targets.users[some], targets.positions[some], strict=True)
    ]
    items, _ = top_items(
        opened.restored.graph, opened.restored.params, opened.features, histories, k=k,
        max_length=opened.restored.record.architecture.max_length, exclude_seen=exclude_seen,
        transitions=opened.transitions,
    )  # fmt: skip
    counts = np.bincount(items.ravel(), minlength=data.n_items + 1)[1:]
    return {
        "users": len(histories), f"coverage_at_{k}": float((counts > 0).mean()), f"gini_at_{k}": gini(counts),
    }  # fmt: skip


def slices_table(slices: Mapping[str, Mapping[str, Any]], k: int) -> Table:
    """A row per slice, for the terminal."""
    table = Table(title="Slices of test")
    for column in ("", "targets", f"Recall@{k}", f"NDCG@{k}", "95 % interval"):
        table.add_column(column, justify="right" if column else "left")
    for name, of in slices.items():
        low, high = of["intervals"][f"ndcg_at_{k}"]
        told = (f"{of[f'recall_at_{k}']:.4f}", f"{of[f'ndcg_at_{k}']:.4f}", f"{low:.4f} to {high:.4f}")
        table.add_row(name.replace("_", " "), str(of["targets"]), *(told if of["targets"] else ("", "", "")))
    return table


@gin.configurable
def evaluate(
    checkpoint: str = gin.REQUIRED,
    dataset: str = gin.REQUIRED,
    run_dir: str | None = None,
    sasrec: str | None = None,
    split: Callable[[Dataset], Split] = leave_one_out,
    category: str | None = None,
    draws: int = 1000,
    seed: int = 2020,
) -> dict[str, Any]:
    """Evaluates a checkpoint and prints tables.

    Args:
        checkpoint: the RUN_DIR of a training run.
        dataset: dataset folder.
        run_dir: where results.json goes; None writes nothing.
        sasrec: folder of a SASRec to stand beside, which is trained there where it is not yet; see trained_baseline.
            None leaves it out.
        split: of the dataset; see pretrain.
        category: column of the catalog to slice by as well, such as 'brand'; None for 'category_l1' where there is one.
        draws: bootstrap draws of users, for the intervals.
        seed: of the draws.

    Returns:
        Metrics of `valid` and `test`, of the `baselines` on test, their `intervals`, the `slices` of test, how much of
        the `catalog` is shown, and the parameters' digest.
    """
    if draws < 100:
        raise InputError(f"evaluate.draws = {draws} is below 100, too few for an interval")
    opened = open_checkpoint(checkpoint, dataset)
    data, ranking, divided = opened.data, Ranking(), split(opened.data)
    warn_of_another_split(checkpoint)
    log, test = training_log(data, divided), divided.test

    def told(ranks: np.ndarray, users: np.ndarray) -> dict[str, Any]:
        of = summarize(ranks, ranking.ks)
        return {"targets": len(ranks), **of, "intervals": intervals(ranks, of, draws, seed, users)}

    parts = {"valid": divided.valid, "test": test}
    ranks = {name: target_ranks(opened, targets, ranking, log.counts) for name, targets in parts.items()}
    ranks_of = baseline_ranks(opened, divided, log, ranking)
    if sasrec is not None:
        ranks_of[SASREC] = target_ranks(trained_baseline(sasrec, dataset), test, ranking, log.counts)
    inside = slices_of(data, test, log.counts, category)
    results: dict[str, Any] = {name: summarize(of, ranking.ks) for name, of in ranks.items()}
    results["baselines"] = {name: summarize(of, ranking.ks) for name, of in ranks_of.items()}
    results |= {
        "intervals": {
            **{name: intervals(of, results[name], draws, seed, parts[name].users) for name, of in ranks.items()},
            "baselines": {
                name: intervals(of, results["baselines"][name], draws, seed, test.users)
                for name, of in ranks_of.items()
            },
        },
        "slices": {name: told(ranks["test"][of], test.users[of]) for name, of in inside.items()},
        "catalog": shown(opened, test, ranking.ks[-1], ranking.mask_seen, seed),
        "params_sha256": parameters.sha256(opened.restored.params),
    }
    if run_dir is not None:
        Path(run_dir).mkdir(parents=True, exist_ok=True)
        write_text(Path(run_dir) / "results.json", json.dumps(results, indent=2) + "\n")
    _print(results, ranking.ks)
    return results


def _print(results: Mapping[str, Any], ks: Sequence[int]) -> None:
    rows, errors = dict(results["baselines"]), dict(results["intervals"]["baselines"])
    for name, part in {"this model": "test", "this model, on valid": "valid"}.items():
        rows[name], errors[name] = results[part], results["intervals"][part]
    console, catalog, k = Console(width=120), results["catalog"], ks[-1]
    console.print(results_table(rows, ks, errors, "Results on test"))
    console.print(slices_table(results["slices"], k))
    console.print(
        f"The best {k} items of {catalog['users']:,} users are {100 * catalog[f'coverage_at_{k}']:.1f} % of the "
        f"catalog, Gini {catalog[f'gini_at_{k}']:.3f}."
    )
