"""What fine-tuning changed: on the domain, on its cold items and short histories, and where the model comes from."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from rich.table import Table

from seqrec_jax.data.split import Targets, train_counts
from seqrec_jax.data.store import Dataset
from seqrec_jax.devices import replicate
from seqrec_jax.evaluation.metrics import summarize
from seqrec_jax.evaluation.ranking import Ranking, TargetRanker
from seqrec_jax.evaluation.slices import SHORT, slices_of
from seqrec_jax.model.recommender import Architecture, graph_of
from seqrec_jax.tasks.domain import Pretraining
from seqrec_jax.tasks.part_rankers import PartRankers
from seqrec_jax.tasks.training_data import features_of_record
from seqrec_jax.training.carry import carry
from seqrec_jax.training.model_record import ModelRecord


class DomainReport:
    """Test figures on the small domain, whole and in slices.

    Args:
        data: the domain.
        targets: of test.
        counts: [n_items + 1], training interactions of each item.
        ranker: of the targets.
        ranking: its settings.
    """

    def __init__(self, data: Dataset, targets: Targets, counts: np.ndarray, ranker: TargetRanker, ranking: Ranking):
        slices = slices_of(data, targets, counts)
        self._slices = {"cold_items": slices["cold_items"], "short_histories": slices[SHORT]}
        self._ranker, self._ks = ranker, ranking.ks

    def of(self, params: nnx.State, features: Mapping[str, jax.Array | np.ndarray]) -> dict[str, Any]:
        """`test`: metrics; `slices`: of each the number of users and metrics."""
        ranks = self._ranker.ranks(params, features)
        return {
            "test": summarize(ranks, self._ks),
            "slices": {
                name: {"users": int(inside.sum())} | summarize(ranks[inside], self._ks)
                for name, inside in self._slices.items()
            },
        }


class Origin:
    """What a model was pre-trained on, to see there what fine-tuning made it forget.

    Args:
        pretraining: the datasets, and their split.
        record: of the pre-trained model.
        ranking: how their test targets are ranked.
        mesh: of devices.
    """

    def __init__(self, pretraining: Pretraining, record: ModelRecord, ranking: Ranking, mesh: Mesh):
        self._record, self._mesh = record, mesh
        joined, split = pretraining
        self._features = features_of_record(joined.whole, record, joined.item_starts)
        graph = graph_of(record.architecture, record.vocab_sizes)
        self._rankers = PartRankers(
            graph, joined, split.test, ranking, record.architecture.max_length, mesh, train_counts(joined.whole, split)
        )

    def test(self, params: nnx.State, architecture: Architecture) -> dict[str, float]:
        """Metrics of a fine-tuned model there; rows of another catalog's items are left out.

        Args:
            params: of the model.
            architecture: its own.
        """
        record = self._record
        carried = carry(params, architecture, record.architecture, record.vocab_sizes, seed=0)
        return self._rankers.metrics(replicate(self._mesh, carried), replicate(self._mesh, self._features))


def rows_of(results: Mapping[str, Any]) -> list[tuple[str, Mapping[str, float], Mapping[str, float]]]:
    """What is compared: name, metrics before, metrics after."""
    zero_shot = results["zero_shot"]
    rows = [("test", zero_shot["test"], results["test"])]
    for name, after in results["slices"].items():
        rows.append((f"{name.replace('_', ' ')} ({after['users']} users)", zero_shot["slices"][name], after))
    if "pretraining" in results:
        rows.append(("pre-training domain", results["pretraining"]["before"], results["pretraining"]["after"]))
    return rows


def report_table(results: Mapping[str, Any], ks: tuple[int, ...]) -> Table:
    """Before and after, for the terminal."""
    table, k = Table(title="Transfer"), ks[-1]
    table.add_column("")
    for figure in (f"Recall@{k}", f"NDCG@{k}"):
        for when in ("zero-shot", "after"):
            table.add_column(f"{figure}\n{when}", justify="right")
    for name, before, after in rows_of(results):
        cells = [f"{of[f'{metric}_at_{k}']:.4f}" for metric in ("recall", "ndcg") for of in (before, after)]
        table.add_row(name, *cells)
    return table
