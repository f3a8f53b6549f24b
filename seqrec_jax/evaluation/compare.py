"""Whether one recommender is better than another on the same users, or only luckier."""

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa

from seqrec_jax.data.corpus import Corpus
from seqrec_jax.errors import InputError
from seqrec_jax.evaluation.evaluate import dataset_to_rank, ranks_by, target_ranker, warn_of_another_split
from seqrec_jax.evaluation.intervals import Difference, paired_difference
from seqrec_jax.evaluation.ranking import Ranking, check_ranking
from seqrec_jax.evaluation.slices import slices_of
from seqrec_jax.model.recommender import Recommender


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What `compare` found: the difference in each metric on all of test, and in `metric` on each slice of it.

    Only slices that have targets are there; their names hold how many.
    """

    metric: str
    metrics: dict[str, Difference]
    slices: dict[str, Difference]
    dataset: dict[str, Any]  # its sizes, and the order of its ties in time

    def to_json(self) -> dict[str, Any]:
        """The differences as JSON objects, under "metrics" and "slices"; and "dataset"."""
        both = {"metrics": self.metrics, "slices": self.slices}
        of_parts = {part: {name: of._asdict() for name, of in of_part.items()} for part, of_part in both.items()}
        return of_parts | {"dataset": self.dataset}

    def table(self) -> pa.Table:
        """A row per metric of all targets, and per slice: targets, metric, and the fields of Difference."""
        rows = [{"targets": "all", "metric": metric, **of._asdict()} for metric, of in self.metrics.items()]
        rows += [{"targets": name, "metric": self.metric, **of._asdict()} for name, of in self.slices.items()]
        return pa.Table.from_pylist(rows)


def compare(
    first: Recommender, second: Recommender, corpus: Corpus, *, ranking: Ranking = Ranking(),
    metric: str = "ndcg_at_10", category: str | None = None, draws: int = 10_000, seed: int = 2020,
) -> Comparison:  # fmt: skip
    """Compares two models, second less first, on the test targets of a corpus of one dataset, user by user.

    Args:
        metric: `<metric>_at_<k>` to compare in slices too.
        category: Column of the catalog to slice by as well; None for 'category_l1' where there is one.
        draws: Bootstrap samples of users, and permutations; `seed` decides both.

    InputError is raised where the corpus has several datasets or no test target, does not fit, or an argument is wrong.
    """
    metrics = [f"{name}_at_{k}" for k in ranking.ks for name in ("recall", "ndcg", "mrr")]
    if metric not in metrics:
        raise InputError(f"compare.metric = {metric!r} is not one of {', '.join(metrics)}")
    data, test = dataset_to_rank(corpus, "compare", draws), corpus.division.test
    check_ranking(corpus, ranking, ("test",))
    inside = slices_of(data, test, corpus.train.counts, category)
    ranks = []
    for model in (first, second):
        warn_of_another_split(model, corpus)
        index = model.index(data)
        ranks.append(ranks_by(index, target_ranker(index, corpus, test, ranking)))

    def difference(name: str, mask: np.ndarray | slice = slice(None)) -> Difference:
        return paired_difference(ranks[0][mask], ranks[1][mask], name, draws, seed, test.users[mask])

    slices = {f"{name} ({mask.sum()} targets)": difference(metric, mask) for name, mask in inside.items() if mask.any()}
    return Comparison(metric, {name: difference(name) for name in metrics}, slices, corpus.summary())
