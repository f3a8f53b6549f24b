"""What fine-tuning changed: on the target, on its cold items and short histories, and where the model comes from."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh

from seqrec_jax.data.corpus import Corpus
from seqrec_jax.devices import place, replicate
from seqrec_jax.evaluation.metrics import summarize
from seqrec_jax.evaluation.ranking import CorpusRanker, Ranking
from seqrec_jax.evaluation.slices import SHORT, slices_of
from seqrec_jax.model.recommender import Recommender


def report_on(target: Corpus, ks: tuple[int, ...]) -> Callable[[np.ndarray], dict[str, Any]]:
    """Makes f(ranks of the target's test [n] int64) -> {"test": metrics, "slices": {name: {"users": n, **metrics}}}."""
    slices = slices_of(target.data, target.division.test, target.train.counts)
    shown = {"cold_items": slices["cold_items"], "short_histories": slices[SHORT]}

    def report(ranks: np.ndarray) -> dict[str, Any]:
        of_slices = {name: {"users": int(of.sum())} | summarize(ranks[of], ks) for name, of in shown.items()}
        return {"test": summarize(ranks, ks), "slices": of_slices}

    return report


def metrics_on_pretraining(
    model: Recommender, pretraining: Corpus | None, ranking: Ranking, mesh: Mesh
) -> Callable[[Recommender, Recommender], dict[str, Any]]:
    """Makes f(model before, after) -> {"pretraining": {"before": metrics, "after": metrics}}, to see what is forgotten.

    Metrics are on test of the pre-training datasets, by the text features of `model`, as it was pre-trained. Rows of
    items are left out, as they are another catalog's. Without `pretraining` nothing is reported.
    """
    if pretraining is None:
        return lambda before, after: {}
    features = replicate(mesh, model.features(pretraining.data, pretraining.item_starts))
    ranker = CorpusRanker(model.graph, pretraining, pretraining.division.test, ranking, mesh)

    def metrics(tuned: Recommender) -> dict[str, float]:
        return ranker.metrics(place(mesh, tuned.restored_in(model.spec), model.graph.tables), features)

    return lambda before, after: {"pretraining": {"before": metrics(before), "after": metrics(after)}}


def logged_metrics(results: Mapping[str, Any]) -> dict[str, float]:
    """Metrics of test, of all users and of the slices, as metrics.jsonl and MLflow name them."""
    shown = {"test": results["test"], **results["slices"]}
    return {f"{of}/{metric}": value for of, metrics in shown.items() for metric, value in metrics.items()}
