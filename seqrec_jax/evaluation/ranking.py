"""Where targets rank among the catalog, in blocks: never a users x items matrix."""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh

from seqrec_jax import devices
from seqrec_jax.data.batches import prefetch
from seqrec_jax.data.corpus import Corpus
from seqrec_jax.data.split import Targets, items_before
from seqrec_jax.data.store import Dataset
from seqrec_jax.describe import check_types
from seqrec_jax.errors import InputError
from seqrec_jax.evaluation.metrics import summarize
from seqrec_jax.evaluation.ranks import LAST, rank_targets
from seqrec_jax.inference.encoding import (
    REMEDY,
    Features,
    HistoryBatch,
    blocks_by_length,
    encode_catalog,
    not_finite,
    pad_histories,
)  # fmt: skip
from seqrec_jax.losses.proposals.by_count import CatalogProposal, catalog_proposal
from seqrec_jax.model.graph import Graph
from seqrec_jax.model.parameters import Params


@dataclasses.dataclass(frozen=True)
class Ranking:
    """How targets are ranked.

    `mode` is `full` for the whole catalog; `sampled<N>` for N distinct negatives a target, every item alike;
    `popular<N>` for N draws by how often items are in training (plus one), an item that is drawn again counting once.
    `seed` decides both. Where N is not below the number of other items, the whole catalog is ranked.
    """

    mode: str = "full"
    ks: tuple[int, ...] = (5, 10, 20)  # cut-offs of the metrics
    mask_seen: bool = False  # leave the items of the history out of catalog or sample (the target never is)
    batch_size: int = 256  # histories that are encoded at a time
    seed: int = 2020

    def __post_init__(self):
        check_types(self)
        object.__setattr__(self, "ks", tuple(self.ks))
        if not re.fullmatch(r"full|(sampled|popular)[1-9]\d*", self.mode):
            raise InputError(
                f"Ranking.mode = {self.mode!r} is none of 'full', 'popular<N>' and 'sampled<N>', such as 'sampled10000'"
            )
        if not self.ks or any(k < 1 for k in self.ks):
            raise InputError(f"Ranking.ks = {self.ks} must hold numbers from 1")
        if self.batch_size < 1:
            raise InputError(f"Ranking.batch_size = {self.batch_size} is below 1")

    def n_sampled(self, n_items: int) -> int | None:
        """Negatives a target among so many items; None ranks the whole catalog."""
        n = n_items if self.mode == "full" else int(re.sub(r"\D", "", self.mode))
        return n if n < n_items - 1 else None

    @property
    def by_popularity(self) -> bool:
        """Whether negatives are drawn by popularity."""
        return self.mode.startswith("popular")


class _Batch(NamedTuple):
    """Targets to rank, rows of which are divided over the devices."""

    histories: HistoryBatch
    targets: np.ndarray
    ordinals: np.ndarray
    seen: np.ndarray | None
    prepared: Mapping[str, Any]


@functools.lru_cache(maxsize=64)
def _rank_by_model(graph: Graph, mesh: Mesh, n_sampled: int | None, seed: int) -> Callable[..., jax.Array]:
    """The jitted ranks of a batch by a model: params, catalog, popular, batch -> [targets] int32."""

    def rank(params: Params, catalog: jax.Array, popular: CatalogProposal | None, batch: Any) -> jax.Array:
        network, (items, lengths) = graph.merge(params), batch.histories
        outputs = network.encode_histories(catalog, items, lengths)
        adjustments = network.adjustments(items, lengths, batch.prepared)
        return rank_targets(outputs, catalog, batch.targets, batch.ordinals, batch.seen, adjustments, popular,
                            n_sampled=n_sampled, seed=seed)  # fmt: skip

    of_params = devices.specs(mesh, graph.shapes, graph.tables)
    in_specs = (of_params, devices.REPLICATED, devices.REPLICATED, devices.SPLIT)
    return jax.jit(jax.shard_map(rank, mesh=mesh, in_specs=in_specs, out_specs=devices.SPLIT, check_vma=False))


@functools.lru_cache(maxsize=64)
def _rank_by_item(mesh: Mesh, n_sampled: int | None, seed: int) -> Callable[..., jax.Array]:
    """The jitted ranks of a batch by one score an item: scores [n_items + 1], popular, batch -> [targets] int32."""

    def rank(scores: jax.Array, popular: CatalogProposal | None, batch: Any) -> jax.Array:
        ones = jnp.ones((len(batch.targets), 1), scores.dtype)
        return rank_targets(ones, scores[:, None], batch.targets, batch.ordinals, batch.seen, None, popular,
                            n_sampled=n_sampled, seed=seed)  # fmt: skip

    in_specs = (devices.REPLICATED, devices.REPLICATED, devices.SPLIT)
    return jax.jit(jax.shard_map(rank, mesh=mesh, in_specs=in_specs, out_specs=devices.SPLIT, check_vma=False))


def check_ranking(corpus: Corpus, ranking: Ranking, parts: Sequence[str] = ("valid", "test")) -> None:
    """Refuses a corpus without targets in a part, by an InputError; says where a sample would be the whole catalog."""
    corpus.check_targets(parts)
    for data in corpus.datasets:
        if ranking.mode != "full" and ranking.n_sampled(data.n_items) is None:
            logging.warning("Ranking.mode = %r: %s has %d items, so targets are ranked among the whole catalog",
                            ranking.mode, data.name, data.n_items)  # fmt: skip


class TargetRanker:
    """Ranks targets of a dataset from their histories, over the devices of one host or several, each target once.

    Args:
        statistics: What the model has counted, by term, as Recommender.statistics_for gives it.
        counts: [n_items + 1] training interactions of each item, for negatives by popularity.
    """

    def __init__(
        self, graph: Graph, data: Dataset, targets: Targets, ranking: Ranking, mesh: Mesh,
        statistics: Mapping[str, Any] | None = None, counts: np.ndarray | None = None,
    ):  # fmt: skip
        assert counts is not None or not ranking.by_popularity, "popularity has no counts"
        self._graph, self._data, self._targets, self._ranking, self._mesh = graph, data, targets, ranking, mesh
        self._statistics, self._n_sampled = statistics or {}, ranking.n_sampled(data.n_items)
        popular = catalog_proposal(counts + 1.0) if ranking.by_popularity and counts is not None else None
        self._popular = devices.replicate(mesh, popular)
        size = min(ranking.batch_size, max(1, len(targets.users)))
        self._size = -(-size // mesh.size) * mesh.size
        self._blocks = list(blocks_by_length(targets.positions, self._size))
        local = devices.local_shards(mesh, self._size)
        self._local = slice(local.start, local.stop)

    def _seen(self, block: np.ndarray) -> np.ndarray | None:
        """The distinct items that each target's user had before: [block, most] int32, ascending, 0 before them."""
        if not self._ranking.mask_seen:
            return None
        of_each = items_before(self._data, Targets(self._targets.users[block], self._targets.positions[block]))
        most = 1 << (max(map(len, of_each)) - 1).bit_length()  # a few widths, so that few programs are compiled
        seen = np.zeros((self._size, most), np.int32)
        for row, items in enumerate(of_each):
            seen[row, most - len(items) :] = items
        return seen

    def _batch(self, step: int) -> tuple[np.ndarray, _Batch]:
        """The places of a step's targets, and this host's share of its batch on its devices."""
        block, data = self._blocks[step], self._data
        starts, lengths = data.offsets[self._targets.users[block]], self._targets.positions[block]
        most, padding = self._graph.architecture.max_length, (0, self._size - len(block))
        histories = pad_histories(data.items.take, starts, lengths, most, self._size)
        read = np.pad(np.minimum(lengths, most), padding)
        items = histories.items[np.arange(histories.items.shape[1]) < read[:, None]]
        prepared = {name: statistic.prepare(items, read) for name, statistic in self._statistics.items()}
        targets = np.pad(data.items.take(starts + lengths), padding)
        ordinals = np.pad(block, padding).astype(np.int32)
        batch = _Batch(histories, targets, ordinals, self._seen(block), prepared)
        return block, devices.split_rows(self._mesh, jax.tree.map(lambda array: array[self._local], batch))

    def _collect(self, rank: Callable[[_Batch], jax.Array]) -> np.ndarray:
        """Ranks of all targets; an InputError where the score of one is not finite."""
        ranks = np.full(len(self._targets.users), -1, np.int64)
        if not len(ranks):
            return ranks
        for block, batch in prefetch(self._batch, range(len(self._blocks))):
            mine = block[self._local]
            ranks[mine] = devices.local_rows(rank(batch))[: len(mine)]
        ranks = devices.greatest_of_hosts(ranks)
        assert (ranks >= 0).all(), "a target was left out of the ranking"
        if n := int((ranks == LAST).sum()):
            raise InputError(
                f"{self._data.name}: the scores of {n:,} of {len(ranks):,} targets are not finite; {REMEDY}"
            )
        return ranks

    def ranks(self, params: Params, catalog: jax.Array) -> np.ndarray:
        """Ranks of all targets by the model: [n] int64, in the order of the targets, 0 for the top.

        Both arguments are on the mesh; the catalog holds the embeddings of the items, [n_items + 1, output_size]. An
        InputError where they, or scores, are not finite.
        """
        if n := int(not_finite(catalog)):
            raise InputError(f"{self._data.name}: the embeddings of {n:,} items are not finite; {REMEDY}")
        rank = _rank_by_model(self._graph, self._mesh, self._n_sampled, self._ranking.seed)
        return self._collect(functools.partial(rank, params, catalog, self._popular))

    def ranks_by_item(self, scores: np.ndarray) -> np.ndarray:
        """Ranks of all targets by one score an item, the same for every user: [n_items + 1] -> [n] int64."""
        rank = _rank_by_item(self._mesh, self._n_sampled, self._ranking.seed)
        on_mesh = devices.replicate(self._mesh, scores.astype(np.float32))
        return self._collect(functools.partial(rank, on_mesh, self._popular))


def popularity_ranks(ranker: TargetRanker, counts: np.ndarray) -> np.ndarray:
    """Ranks of targets by [n_items + 1] counts in training: [n] int64, 0 the top; equal counts rank before targets."""
    return ranker.ranks_by_item(np.unique(counts, return_inverse=True)[1])


class CorpusRanker:
    """Ranks targets of a corpus's union, those of each dataset within its own catalog.

    The arguments are TargetRanker's; only a corpus of one has `statistics`.
    """

    def __init__(
        self, graph: Graph, corpus: Corpus, targets: Targets, ranking: Ranking, mesh: Mesh,
        statistics: Mapping[str, Any] | None = None,
    ):  # fmt: skip
        self._graph, self._corpus, self._ks = graph, corpus, ranking.ks
        self._rankers = [
            TargetRanker(graph, data, corpus.part_targets(part, targets), ranking, mesh, statistics,
                         corpus.train.counts[corpus.part_rows(part)] if ranking.by_popularity else None)
            for part, data in enumerate(corpus.datasets)
        ]  # fmt: skip

    def _mean(self, metrics_of: Callable[[int, TargetRanker], np.ndarray]) -> dict[str, float]:
        """Metrics of one dataset; of several their means, and those of each under `<dataset>/<metric>`.

        A dataset without targets has none, and does not count.
        """
        of_each = [summarize(metrics_of(part, ranker), self._ks) for part, ranker in enumerate(self._rankers)]
        if len(of_each) == 1:
            return of_each[0]
        names = next((metrics for metrics in of_each if metrics), {})
        means = {name: float(np.mean([metrics[name] for metrics in of_each if metrics])) for name in names}
        parts = zip(self._corpus.datasets, of_each, strict=True)
        return means | {f"{data.name}/{name}": value for data, of_part in parts for name, value in of_part.items()}

    def _ranks_of(self, part: int, params: Params, features: Features) -> np.ndarray:
        if len(self._rankers) > 1:
            rows = self._corpus.part_rows(part)
            features = {name: jnp.asarray(values)[rows] for name, values in features.items()}
        return self._rankers[part].ranks(params, encode_catalog(self._graph)(params, features))

    def metrics(self, params: Params, features: Features) -> dict[str, float]:
        """Metrics of the model, from its parameters and the features of the union's catalog, both on the mesh."""
        return self._mean(lambda part, _: self._ranks_of(part, params, features))

    def ranks(self, params: Params, features: Features) -> np.ndarray:
        """Ranks of all targets of a corpus of one dataset: [n] int64; the arguments are those of `metrics`."""
        assert len(self._rankers) == 1, "ranks are within one catalog"
        return self._ranks_of(0, params, features)

    def popularity(self) -> dict[str, float]:
        """Metrics of ranking by how often items are in training."""
        counts = self._corpus.train.counts
        return self._mean(lambda part, ranker: popularity_ranks(ranker, counts[self._corpus.part_rows(part)]))
