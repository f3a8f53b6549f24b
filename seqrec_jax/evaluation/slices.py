"""Slices of the targets that readers of a metric ask about."""

import itertools

import numpy as np
import pyarrow.compute as pc

from seqrec_jax.data.split import Targets
from seqrec_jax.data.store import Dataset
from seqrec_jax.errors import InputError

HISTORY_LENGTHS = (5, 10, 20, 50)  # longest history of each slice but the last, which has the longer ones
SHORT = f"history_1_to_{HISTORY_LENGTHS[0]}"  # the slice of the shortest histories
CATEGORY = "category_l1"  # column of a catalog that has categories, as etl makes it of Amazon's
MOST_CATEGORIES = 8
HEAD, TAIL = 1 / 3, 2 / 3  # shares of the training interactions, by popularity, at which the middle begins and ends

Slices = dict[str, np.ndarray]  # by name, a mask over the n targets: [n] bool


def by_history(targets: Targets) -> Slices:
    """Slices by the number of items before the target; each target is in one."""
    length, edges = targets.positions, itertools.pairwise((0, *HISTORY_LENGTHS))
    slices = {f"history_{low + 1}_to_{high}": (length > low) & (length <= high) for low, high in edges}
    return slices | {f"history_above_{HISTORY_LENGTHS[-1]}": length > HISTORY_LENGTHS[-1]}


def by_popularity(items: np.ndarray, counts: np.ndarray) -> Slices:
    """Slices of targets, [n] items, by the training interactions of each item, [n_items + 1]; each target is in one.

    Head, middle and tail have a third of the training interactions each; `cold_items` have none.
    """
    order = np.argsort(-counts, kind="stable")
    before = np.empty(len(counts))
    before[order] = (np.cumsum(counts[order]) - counts[order]) / max(1, counts.sum())
    place, cold = before[items], counts[items] == 0
    return {
        "head_items": ~cold & (place < HEAD),
        "middle_items": ~cold & (place >= HEAD) & (place < TAIL),
        "tail_items": ~cold & (place >= TAIL),
        "cold_items": cold,
    }


def by_category(data: Dataset, items: np.ndarray, column: str) -> Slices:
    """Slices of targets, [n] items, by a text column of the catalog, such as `brand`: frequent values, others, none.

    The MOST_CATEGORIES values that are most frequent among the targets have a slice each. Raises InputError where the
    catalog has no such column of text.
    """
    table = data.items_table
    known = [of.name for of in table.schema if str(of.type) in ("string", "large_string") and of.name != "item_id"]
    if column not in known:
        raise InputError(f"evaluate.category = {column!r}: {data.folder} has no such column, only {', '.join(known)}")
    values = pc.fill_null(table[column].take(items), "").combine_chunks().dictionary_encode()
    codes, names = values.indices.to_numpy(), values.dictionary.to_pylist()
    order = np.argsort(-np.bincount(codes, minlength=len(names)), kind="stable")
    shown = [code for code in order if names[code]][:MOST_CATEGORIES]
    empty = np.isin(codes, [code for code in order if not names[code]])
    slices = {f"{column}: {names[code]}": codes == code for code in shown}
    return slices | {f"{column}: others": ~np.isin(codes, shown) & ~empty, f"{column}: none": empty}


def slices_of(data: Dataset, targets: Targets, counts: np.ndarray, category: str | None = None) -> Slices:
    """Slices of n targets of a dataset by history, by popularity and perhaps by category: name -> [n] bool.

    `counts` are the training interactions of each item, [n_items + 1]; `category` is a column of the catalog, None for
    CATEGORY where there is one, and InputError is raised where the catalog has no such column of text.
    """
    items = data.items.take(data.offsets[targets.users] + targets.positions)
    if category is None and CATEGORY in data.items_table.column_names:
        category = CATEGORY
    slices = by_history(targets) | by_popularity(items, counts)
    return slices if category is None else slices | by_category(data, items, category)


def gini(counts: np.ndarray) -> float:
    """How unevenly recommendations, [n_items] counts, fall on items: 0 where all have as many, near 1 for one alone."""
    ordered, n = np.sort(counts).astype(np.float64), len(counts)
    total = ordered.sum()
    return float((2 * np.arange(1, n + 1) - n - 1) @ ordered / (n * total)) if total else 0.0
