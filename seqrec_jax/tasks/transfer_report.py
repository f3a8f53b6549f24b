"""What fine-tuning changed: on the domain, on its cold items and short histories, and where the model comes from."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from flax import nnx
from jax.sharding import Mesh
from rich.table import Table

from seqrec_jax.data.split import Targets, leave_one_out
from seqrec_jax.data.store import Dataset
from seqrec_jax.devices import replicate
from seqrec_jax.evaluation.metrics import summarize
from seqrec_jax.evaluation.ranking import Ranking, TargetRanker
from seqrec_jax.model.recommender import Architecture, graph_of
from seqrec_jax.tasks.training_data import features_of_record
from seqrec_jax.training.carry import carry
from seqrec_jax.training.model_record import ModelRecord

SHORT_HISTORY = 5


def slices_of(targets: Targets, items: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
    """Which targets are of what users ask about first.

    Args:
        targets: to predict.
        items: [n] int32, the targets' items.
        counts: [n_items + 1], training interactions of each item.

    Returns:
        Per slice [n] bool: `cold_items`, never in training; `short_histories`, of at most SHORT_HISTORY items.
    """
    return {"cold_items": counts[items] == 0, "short_histories": targets.positions <= SHORT_HISTORY}


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
        items = data.items.take(data.offsets[targets.users] + targets.positions)
        self._slices = slices_of(targets, items, counts)
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


class Origin(NamedTuple):
    """The pre-training domain, to see there what fine-tuning made the model forget.

    Attributes:
        data: the pre-training dataset.
        record: of the pre-trained model.
        mesh: of devices.
        ranking: how its test targets are ranked.
    """

    data: Dataset
    record: ModelRecord
    mesh: Mesh
    ranking: Ranking

    def test(self, params: nnx.State, architecture: Architecture) -> dict[str, float]:
        """Metrics of a model, whose item rows are left out if they are of another catalog's items.

        Args:
            params: of the model.
            architecture: its own.
        """
        original = self.record.architecture
        carried = carry(params, architecture, original, self.record.vocab_sizes, seed=0, same_catalog=False)
        ranker = TargetRanker(
            graph_of(original, self.record.vocab_sizes), self.data, leave_one_out(self.data).test, self.ranking,
            original.max_length, self.mesh,
        )  # fmt: skip
        features = replicate(self.mesh, features_of_record(self.data, self.record))
        return summarize(ranker.ranks(replicate(self.mesh, carried), features), self.ranking.ks)


def log_report(results: Mapping[str, Any], metric: str) -> None:
    """Says in a line each what came of fine-tuning."""
    for name, before, after in rows_of(results):
        logging.info("%s: %s %.4f before, %.4f after", name, metric, before[metric], after[metric])


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
