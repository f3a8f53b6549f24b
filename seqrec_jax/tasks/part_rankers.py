"""Rankings of a run's targets, each within the catalog of its own dataset."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from seqrec_jax.data.joined import Joined
from seqrec_jax.data.split import Targets
from seqrec_jax.evaluation.baselines import popularity_ranks
from seqrec_jax.evaluation.metrics import summarize
from seqrec_jax.evaluation.ranking import Ranking, TargetRanker

Features = Mapping[str, jax.Array | np.ndarray]


class PartRankers:
    """Ranks the targets of one dataset, or of each of several.

    Args:
        graph: of the recommender.
        joined: the datasets.
        targets: of their union.
        ranking: the settings.
        max_length: most items of a history.
        mesh: of devices.
        counts: [n_items + 1] training interactions of each item of the union.
    """

    def __init__(
        self,
        graph: nnx.GraphDef,
        joined: Joined,
        targets: Targets,
        ranking: Ranking,
        max_length: int,
        mesh: Mesh,
        counts: np.ndarray,
    ):
        self._joined, self._ks = joined, ranking.ks
        self._rankers = [
            TargetRanker(
                graph, data, joined.targets_of(part, targets), ranking, max_length, mesh,
                counts=counts[joined.rows_of(part)],
            )
            for part, data in enumerate(joined.parts)
        ]  # fmt: skip

    def _features_of(self, part: int, features: Features) -> Features:
        """What the model reads of one dataset's catalog."""
        if len(self._rankers) == 1:
            return features
        rows = self._joined.rows_of(part)
        return {name: jnp.asarray(values)[rows] for name, values in features.items()}

    def _together(self, metrics_of: Callable[[int, TargetRanker], dict[str, float]]) -> dict[str, float]:
        """Metrics of one dataset; of several their means, and those of each under `<dataset>/<metric>`."""
        of_each = [metrics_of(part, ranker) for part, ranker in enumerate(self._rankers)]
        if len(of_each) == 1:
            return of_each[0]
        together = {name: float(np.mean([metrics[name] for metrics in of_each])) for name in of_each[0]}
        for data, metrics in zip(self._joined.parts, of_each, strict=True):
            together |= {f"{data.name}/{name}": value for name, value in metrics.items()}
        return together

    def metrics(self, params: nnx.State, features: Features) -> dict[str, float]:
        """Metrics of the model.

        Args:
            params: of the recommender.
            features: of the union's catalog, on the devices.
        """
        return self._together(
            lambda part, ranker: summarize(ranker.ranks(params, self._features_of(part, features)), self._ks)
        )

    def popularity(self, counts: np.ndarray) -> dict[str, float]:
        """Metrics of ranking by training counts [n_items + 1] of the union."""
        return self._together(
            lambda part, ranker: summarize(popularity_ranks(ranker, counts[self._joined.rows_of(part)]), self._ks)
        )
