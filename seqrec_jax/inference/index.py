"""A recommender laid over a catalog: what it recommends for histories, and which items are alike."""

import copy
import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from seqrec_jax.data.store import Dataset
from seqrec_jax.errors import InputError
from seqrec_jax.inference.encoding import REMEDY, HistoryBatch, encode_catalog, not_finite, pad_histories
from seqrec_jax.items.features import ReadFeatures
from seqrec_jax.items.tokenizer import Tokenizer
from seqrec_jax.model.graph import Graph
from seqrec_jax.model.recommender import Recommender

BATCH_SIZES = (1, 8, 64)  # of calls to the device; a batch is filled up to the next of them
LEAST_SHOWN = 16
NEW_ITEMS_PER_BLOCK = 256


def _power_of_two(n: int) -> int:
    """The smallest power of two that is not below n."""
    return 1 << max(0, n - 1).bit_length()


def _listed(ids: Any, argument: str) -> list[str]:
    """Ids as texts, of a list, an array or anything else that yields them."""
    if isinstance(ids, str | bytes) or not isinstance(ids, Iterable):
        raise InputError(f"{argument}: {ids!r} is no list of ids")
    return [str(one) for one in ids]


def _count(k: Any, argument: str) -> int:
    if not isinstance(k, Integral) or isinstance(k, bool) or k < 1:
        raise InputError(f"{argument}: k = {k!r} is no number from 1")
    return int(k)


@functools.lru_cache(maxsize=64)
def _top(graph: Graph) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """The jitted k best items of a batch of histories; compiled once for each size of its inputs."""

    @functools.partial(jax.jit, static_argnames="k")
    def top(params, catalog, allowed, batch, hidden, prepared, k):
        network, rows = graph.merge(params), jnp.arange(len(batch.lengths))[:, None]
        scores = network.encode_histories(catalog, *batch) @ catalog.T
        adjustments = network.adjustments(batch.items, batch.lengths, prepared)
        if adjustments is not None:
            scores = scores.at[rows, adjustments.items].add(adjustments.amounts)
        scores = jnp.where(allowed, scores, -jnp.inf).at[rows, hidden].set(-jnp.inf)
        values, items = jax.lax.top_k(scores, k)
        return jnp.where(jnp.isfinite(values), items, 0), values

    return top


@functools.partial(jax.jit, static_argnames="k")
def _alike(catalog: jax.Array, allowed: jax.Array, queries: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The k items of greatest cosine with each of the queries [n] int32, themselves left out."""
    unit = catalog / jnp.maximum(jnp.linalg.norm(catalog, axis=1, keepdims=True), 1e-12)
    scores = jnp.where(allowed, unit[queries] @ unit.T, -jnp.inf).at[jnp.arange(len(queries)), queries].set(-jnp.inf)
    values, items = jax.lax.top_k(scores, k)
    return items, values


class Index:
    """A recommender laid over a catalog, which is encoded once.

    What it computes is compiled once for a few sizes: histories are padded to a few widths, batches to 1, 8 or 64, and
    the catalog to a power of two, so that new items compile nothing.

    An InputError where the dataset was not made with the model's tokenizer, the model has rows for another catalog, or
    parameters or embeddings are not finite.

    Attributes:
        model: The recommender.
        data: The dataset whose catalog it recommends from, and whose users it knows.
        catalog: [n_items + 1, output_size], the embeddings of the items; row 0 is padding.
        statistics: By score term what the model has counted on this catalog.
    """

    def __init__(self, model: Recommender, data: Dataset):
        model.check(data)
        self.model, self.data = model, data.checked
        self._features = model.features(data)
        self._params = jax.device_put(model.params, jax.local_devices()[0])
        self.catalog = encode_catalog(model.graph)(self._params, self._features)
        self.statistics = model.statistics_for(data)
        self._items = data.items_table
        self._lay_out(self.catalog)

    def _lay_out(self, catalog: jax.Array) -> None:
        """Pads the embeddings to a power of two; rows beyond the catalog, and padding, are never shown."""
        n_rows, capacity = len(catalog), _power_of_two(len(catalog))
        self.catalog = catalog
        self._padded = jax.device_put(np.pad(catalog, ((0, capacity - n_rows), (0, 0))))
        if n := int(not_finite(self._padded)):
            raise InputError(f"Index: the embeddings of {n:,} of {n_rows - 1:,} items are not finite; {REMEDY}")
        self._live = np.arange(capacity) < n_rows
        self._live[0] = False
        self._allowed = jax.device_put(self._live)

    @functools.cached_property
    def _row_of(self) -> dict[str, int]:
        return {item: row for row, item in enumerate(self._items["item_id"].to_pylist()) if row}

    def _rows(self, ids: Collection[str], argument: str) -> np.ndarray:
        """Rows of items by their ids: [n] int32."""
        listed, row_of = _listed(ids, argument), self._row_of
        for item in listed:
            if item not in row_of:
                raise InputError(f"{argument}: item {item!r} is not in {self.data.folder}")
        return np.array([row_of[item] for item in listed], np.int32)

    def _histories_of(self, users: Sequence[str]) -> list[np.ndarray]:
        """Item rows of users by their ids, from the whole of their histories."""
        ids = pa.array(users, pa.string())
        rows = pc.index_in(ids, self.data.interactions_table["user_id"].combine_chunks()).to_pylist()
        for user, row in zip(users, rows, strict=True):
            if row is None:
                raise InputError(f"users: {user!r} is not in {self.data.folder}")
        return [self.data.user_items(row) for row in rows]

    def _filter(
        self, allow: Collection[str] | None, deny: Collection[str] | None, where: Mapping[str, Any] | None
    ) -> jax.Array:
        """Which items may be shown: [capacity] bool."""
        if allow is None and deny is None and where is None:
            return self._allowed
        allowed = self._live.copy()
        if allow is not None:
            listed = np.zeros_like(allowed)
            listed[self._rows(allow, "allow")] = True
            allowed &= listed
        if deny is not None:
            allowed[self._rows(deny, "deny")] = False
        if where is not None and not isinstance(where, Mapping):
            raise InputError(f"where: {where!r} is no mapping of a column to the values that may be shown")
        for column, values in (where or {}).items():
            if column not in self._items.column_names:
                raise InputError(f"where: {column!r} is no column of the items: {', '.join(self._items.column_names)}")
            values, kind = values if isinstance(values, list | tuple | set) else [values], self._items[column].type
            try:
                inside = pc.is_in(self._items[column], value_set=pa.array(list(values), kind))
            except pa.ArrowException as error:
                raise InputError(f"where: {column!r} = {values!r} holds something that is no {kind}") from error
            allowed[: len(inside)] &= inside.combine_chunks().to_numpy(zero_copy_only=False)
        return jax.device_put(allowed)

    def top(
        self, histories: Sequence[np.ndarray], k: int, exclude_seen: bool = True, allowed: jax.Array | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k items of highest score for each history of item rows, by rows of the catalog.

        Of a history in time order, at least one item long, the latest that the model reads are read, and all are left
        out where `exclude_seen`. Item rows [histories, k] int32, best first, and their scores float32; where fewer than
        k items are left, item 0 with score -inf. `allowed` [capacity] bool says what may be shown; None all.
        """
        k = min(k, len(self.catalog) - 1)
        shown = min(max(LEAST_SHOWN, _power_of_two(k)), len(self._padded))
        allowed = self._allowed if allowed is None else allowed
        parts = []
        for first in range(0, len(histories), BATCH_SIZES[-1]):
            block = [np.asarray(history, np.int32) for history in histories[first : first + BATCH_SIZES[-1]]]
            batch, hidden, prepared = self._batch(block, exclude_seen)
            found = _top(self.model.graph)(self._params, self._padded, allowed, batch, hidden, prepared, k=shown)
            parts.append([np.asarray(of)[: len(block), :k] for of in found])
        best, values = (np.concatenate(part) for part in zip(*parts, strict=True))
        if not (values < np.inf).all():
            raise InputError(f"Index: scores are not finite; {REMEDY}")
        return best, values

    def _batch(
        self, histories: Sequence[np.ndarray], exclude_seen: bool
    ) -> tuple[HistoryBatch, np.ndarray, dict[str, Any]]:
        """Histories as the model reads them, the items that are not to be shown, and what statistics say of them."""
        size, max_length = next(n for n in BATCH_SIZES if n >= len(histories)), self.model.architecture.max_length
        lengths = np.array([len(history) for history in histories], np.int64)
        flat = np.concatenate(histories)
        batch = pad_histories(flat.take, np.cumsum(lengths) - lengths, lengths, max_length, size)
        most = _power_of_two(max(LEAST_SHOWN, int(lengths.max()) if exclude_seen else 1))
        hidden = np.zeros((size, most), np.int32)
        if exclude_seen:
            for row, history in enumerate(histories):
                hidden[row, : len(history)] = history
        prepared = {}
        if self.statistics:
            read = np.minimum(np.pad(lengths, (0, size - len(lengths))), max_length)
            items = batch.items[np.arange(batch.items.shape[1]) < read[:, None]]
            items = np.where(items <= self.data.n_items, items, 0)  # new items have been counted nowhere
            prepared = {name: statistic.prepare(items, read) for name, statistic in self.statistics.items()}
        return batch, hidden, prepared

    def recommend(
        self,
        users: Sequence[str] | None = None,
        histories: Sequence[Sequence[str]] | None = None,
        k: int = 10,
        exclude_seen: bool = True,
        allow: Collection[str] | None = None,
        deny: Collection[str] | None = None,
        where: Mapping[str, Any] | None = None,
    ) -> pa.Table:
        """The k best next items for users of the dataset, or for histories.

        Args:
            users: Their ids; each is served from the whole of its history.
            histories: Item ids in time order, each at least one.
            k: Items for each, where so many are left.
            exclude_seen: Leave out what is in the history.
            allow, deny: Ids of the items that may be shown, None for all, and of those that may not.
            where: By column of the items the value, or values, that may be shown, such as {"brand": ["Borhol"]}.

        Returns:
            user, rank (from 1), item, score; the user of a history is its place in the list, as text. An InputError for
            an unknown id or column, an empty history, or a k below 1.
        """
        if (users is None) == (histories is None):
            raise InputError("Index.recommend takes users or histories, one of the two")
        k = _count(k, "Index.recommend")
        if users is not None:
            names = _listed(users, "users")
            rows = self._histories_of(names)
        else:
            if isinstance(histories, str) or not isinstance(histories, Iterable):
                raise InputError(f"histories: {histories!r} is no list of lists of ids")
            rows = [self._rows(history, f"histories[{place}]") for place, history in enumerate(histories)]
            names = [str(place) for place in range(len(rows))]
        for name, history in zip(names, rows, strict=True):
            if not len(history):
                raise InputError(f"histories[{name}] is empty; give at least one item id")
        if not rows:
            return self._table("user", [], np.zeros((0, 1), np.int32), np.zeros((0, 1), np.float32))
        items, scores = self.top(rows, k, exclude_seen, self._filter(allow, deny, where))
        return self._table("user", names, items, scores)

    def similar(self, items: Sequence[str], k: int = 10) -> pa.Table:
        """The k items that the model takes for most alike each of some items, by the cosine of their embeddings.

        Columns query, rank (from 1), item, score. An InputError for an unknown id or a k below 1.
        """
        k, names = _count(k, "Index.similar"), _listed(items, "Index.similar")
        queries = self._rows(names, "Index.similar")
        k = min(k, len(self.catalog) - 2)
        shown = min(max(LEAST_SHOWN, _power_of_two(k)), len(self._padded))
        padded = np.pad(queries, (0, _power_of_two(max(1, len(queries))) - len(queries)))
        found, scores = _alike(self._padded, self._allowed, padded, shown)
        n = len(queries)
        return self._table("query", names, np.asarray(found)[:n, :k], np.asarray(scores)[:n, :k])

    def _table(self, of: str, names: Sequence[str], items: np.ndarray, scores: np.ndarray) -> pa.Table:
        """Rows for what is left of each list: names [n], items and scores [n, k]."""
        kept = np.isfinite(scores)
        rank = np.broadcast_to(np.arange(1, items.shape[1] + 1, dtype=np.int32), items.shape)
        return pa.table({
            of: pa.array(np.repeat(np.array(names, object), kept.sum(1)), pa.string()),
            "rank": rank[kept],
            "item": self._items["item_id"].take(pa.array(items[kept])).combine_chunks(),
            "score": scores[kept],
        })  # fmt: skip

    def with_items(self, items: pa.Table) -> "Index":
        """The index with more items, known by their content alone: nothing is trained, and nothing compiled.

        Args:
            items: `item_id`, and the text columns that the model reads; of others, those of the catalog are kept, to
                filter by.

        Returns:
            A new index; this one stays as it is. An InputError where an id is there twice, null or
            empty, or the model reads no text.
        """
        if not self.model.spec.texts:
            raise InputError("Index.with_items: the model has a row for each item and reads no text")
        if not isinstance(items, pa.Table) or items.column_names.count("item_id") != 1:
            raise InputError("Index.with_items takes a pyarrow.Table with one column item_id")
        ids = ["" if item is None else str(item) for item in items["item_id"].to_pylist()]
        known = set(self._row_of)
        for row, item in enumerate(ids):
            if not item:
                raise InputError(f"Index.with_items: row {row} of item_id is null or empty")
            if item in known:
                raise InputError(f"Index.with_items: item {item!r} is there already, or twice")
            known.add(item)
        tokenizer, read = Tokenizer(self.model.tokenizer), ReadFeatures()
        for feature in self.model.spec.features:
            read[feature.name] = feature.read_new(items, read, tokenizer, self._features)
        parts = [np.asarray(self.catalog)]
        for first in range(0, len(ids), NEW_ITEMS_PER_BLOCK):
            block = {name: values[first : first + NEW_ITEMS_PER_BLOCK] for name, values in read.items()}
            n = len(next(iter(block.values())))
            padded = {
                name: np.pad(values, ((0, NEW_ITEMS_PER_BLOCK - n), *((0, 0),) * (values.ndim - 1)))
                for name, values in block.items()
            }
            parts.append(np.asarray(encode_catalog(self.model.graph)(self._params, padded))[:n])
        index = copy.copy(self)
        index.__dict__.pop("_row_of", None)
        columns = items.set_column(items.column_names.index("item_id"), "item_id", pa.array(ids, pa.string()))
        kept = [name for name in columns.column_names if name in self._items.column_names]
        typed = columns.select(kept).cast(pa.schema([self._items.schema.field(name) for name in kept]))
        index._items = pa.concat_tables([self._items, typed], promote_options="default")
        index._lay_out(jax.device_put(np.concatenate(parts)))
        return index
