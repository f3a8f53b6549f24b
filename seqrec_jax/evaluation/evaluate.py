"""How well a recommender predicts what users did next, beside what it has to beat, and how sure the numbers are."""

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
from absl import logging

from seqrec_jax.data.corpus import Corpus
from seqrec_jax.data.split import Targets
from seqrec_jax.data.store import Dataset
from seqrec_jax.devices import device_mesh, replicate
from seqrec_jax.errors import InputError
from seqrec_jax.evaluation.baselines import baseline_ranks
from seqrec_jax.evaluation.intervals import intervals
from seqrec_jax.evaluation.metrics import summarize
from seqrec_jax.evaluation.ranking import Ranking, TargetRanker, check_ranking
from seqrec_jax.evaluation.slices import gini, slices_of
from seqrec_jax.inference.index import BATCH_SIZES, Index
from seqrec_jax.model import parameters
from seqrec_jax.model.recommender import Recommender

LEAST_DRAWS = 100
SASREC = "SASRec, trained"
HISTORIES_SHOWN = 10_000  # at most, whose recommendations tell how much of the catalog is shown


@dataclasses.dataclass(frozen=True)
class Report:
    """What `evaluate` found. A metric is named `<metric>_at_<k>`; an interval is [low, high] of 95 %.

    `catalog` is how much of it is recommended: `coverage_at_<k>` and `gini_at_<k>`, after "histories" of "users".
    What has no targets has no metrics.
    """

    ks: tuple[int, ...]  # cut-offs of the metrics
    targets: dict[str, int]  # number of targets of "valid", of "test" and, by name, of each baseline
    valid: dict[str, float]
    test: dict[str, float]
    baselines: dict[str, dict[str, float]]  # metrics on test of each baseline, by its name
    intervals: dict[str, Any]  # of the metrics: under "valid", "test" and, by name, "baselines"
    slices: dict[str, dict[str, Any]]  # of each slice of test its number of "targets", its metrics, their "intervals"
    catalog: dict[str, float]
    params_sha256: str
    dataset: dict[str, Any]  # its sizes, and the order of its ties in time

    def to_json(self) -> dict[str, Any]:
        """The content of results.json: every attribute but `ks`."""
        return {name: value for name, value in vars(self).items() if name != "ks"}

    def table(self) -> pa.Table:
        """A row per model, baseline or slice, and metric: kind, name, targets, metric, value, low, high."""
        n = self.targets
        of_each = [("model", part, n[part], getattr(self, part), self.intervals[part]) for part in ("test", "valid")]
        bounds = self.intervals["baselines"]
        of_each += [("baseline", name, n[name], of, bounds[name]) for name, of in self.baselines.items()]
        of_each += [("slice", name, of["targets"], of, of["intervals"]) for name, of in self.slices.items()]
        columns = ("kind", "name", "targets", "metric", "value", "low", "high")
        return pa.Table.from_pylist([
            dict(zip(columns, (kind, name, targets, metric, metrics[metric], low, high), strict=True))
            for kind, name, targets, metrics, bounds in of_each
            for metric, (low, high) in bounds.items()
        ])  # fmt: skip


def evaluate(
    model: Recommender, corpus: Corpus, *, ranking: Ranking = Ranking(), sasrec: Recommender | None = None,
    category: str | None = None, draws: int = 1000, seed: int = 2020, index: Index | None = None,
) -> Report:  # fmt: skip
    """Ranks the targets of validation and test of a corpus of one dataset by a model, and those of test by baselines.

    Args:
        sasrec: Trained SASRec to stand among the baselines; None leaves it out.
        category: Column of the catalog to slice by as well, such as 'brand'; None for 'category_l1' where there is one.
        draws: Bootstrap samples of users, for the intervals; `seed` decides them.
        index: Index of the model and the dataset, where there is one already; None makes it.

    InputError is raised where the corpus has several datasets or no targets, does not fit, or an argument is wrong.
    """
    data = dataset_to_rank(corpus, "evaluate", draws)
    check_ranking(corpus, ranking)
    inside = slices_of(data, corpus.division.test, corpus.train.counts, category)
    warn_of_another_split(model, corpus)
    index = model.index(data) if index is None else index
    same = index.data.catalog_sha256() == data.catalog_sha256() and len(index.catalog) == data.n_items + 1
    if index.model is not model or not same:
        raise InputError("evaluate.index is of another model or catalog; leave it out, or make it of these")
    parts = {"test": corpus.division.test, "valid": corpus.division.valid}
    rankers = {name: target_ranker(index, corpus, targets, ranking) for name, targets in parts.items()}
    ranks = {name: ranks_by(index, ranker) for name, ranker in rankers.items()}
    by_baseline = baseline_ranks(corpus, ranking, rankers["test"], seed)
    if sasrec is not None:
        other = sasrec.index(data)
        by_baseline[SASREC] = ranks_by(other, target_ranker(other, corpus, parts["test"], ranking)), parts["test"].users

    def measure(ranks: np.ndarray, users: np.ndarray) -> tuple[dict[str, float], dict[str, list[float]]]:
        metrics = summarize(ranks, ranking.ks)
        return metrics, intervals(ranks, metrics, draws, seed, users)

    users = parts["test"].users
    test, valid = (measure(ranks[name], parts[name].users) for name in parts)
    baselines = {name: measure(*of_baseline) for name, of_baseline in by_baseline.items()}
    sizes = {name: len(of_part) for name, of_part in (ranks | {n: of for n, (of, _) in by_baseline.items()}).items()}
    slices = {name: (mask.sum(), *measure(ranks["test"][mask], users[mask])) for name, mask in inside.items()}
    return Report(
        ranking.ks, sizes, valid[0], test[0],
        {name: metrics for name, (metrics, _) in baselines.items()},
        {"valid": valid[1], "test": test[1], "baselines": {name: bounds for name, (_, bounds) in baselines.items()}},
        {name: {"targets": int(n), **metrics, "intervals": bounds} for name, (n, metrics, bounds) in slices.items()},
        _shown(index, parts["test"], ranking, seed), parameters.sha256(model.params), corpus.summary(),
    )  # fmt: skip


def target_ranker(index: Index, corpus: Corpus, targets: Targets, ranking: Ranking) -> TargetRanker:
    """A ranker of targets of a corpus of one by the index's model."""
    mesh, counts = device_mesh(), corpus.train.counts
    return TargetRanker(index.model.graph, corpus.data, targets, ranking, mesh, index.statistics, counts)


def ranks_by(index: Index, ranker: TargetRanker) -> np.ndarray:
    """Ranks of the ranker's targets by the index's model and catalog: [n] int64, 0 for the top."""
    return ranker.ranks(*replicate(device_mesh(), (index.model.params, index.catalog)))


def _shown(index: Index, targets: Targets, ranking: Ranking, seed: int) -> dict[str, float]:
    """How much of the catalog the best items of up to HISTORIES_SHOWN of the targets' histories hold, how evenly."""
    k, data = ranking.ks[-1], index.data
    some = np.random.default_rng(seed).permutation(len(targets.users))[:HISTORIES_SHOWN]
    counts = np.zeros(data.n_items + 1, np.int64)
    for first in range(0, len(some), BATCH_SIZES[-1]):  # A long user's histories are not held all at once.
        users, positions = (of[some[first : first + BATCH_SIZES[-1]]] for of in targets)
        histories = [data.user_items(user)[:position] for user, position in zip(users, positions, strict=True)]
        counts += np.bincount(index.top(histories, k, ranking.mask_seen)[0].ravel(), minlength=len(counts))
    shown, n_users = counts[1:], len(np.unique(targets.users[some]))
    found = {f"coverage_at_{k}": float((shown > 0).mean()), f"gini_at_{k}": gini(shown)}
    return {"histories": len(some), "users": n_users} | found


def dataset_to_rank(corpus: Corpus, function: str, draws: int) -> Dataset:
    """The dataset of a corpus of one; InputError for several, for none in test, or for too few bootstrap samples."""
    if draws < LEAST_DRAWS:
        raise InputError(f"{function}.draws = {draws} is below {LEAST_DRAWS}, too few for an interval")
    if len(corpus.datasets) > 1:
        names = ", ".join(data.name for data in corpus.datasets)
        raise InputError(f"Corpus.datasets = {names}: {function} takes one dataset at a time")
    return corpus.data


def warn_of_another_split(model: Recommender, corpus: Corpus) -> None:
    """Says so where the model was trained with another split than the corpus has."""
    trained, now = model.trained_with.get("split"), corpus.settings()["split"]
    if trained is not None and trained != now:
        first, second = (
            f"{split['name']}({', '.join(f'{name}={value}' for name, value in split.items() if name != 'name')})"
            for split in (trained, now)
        )
        logging.warning("the model was trained with Corpus.split = %s, and is now evaluated with %s: it may know the "
                        "targets", first, second)  # fmt: skip
