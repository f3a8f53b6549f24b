"""Parts of the targets that users of a figure ask about."""

import itertools
from collections.abc import Mapping

import numpy as np
import pyarrow.compute as pc

from seqrec_jax.data.split import Targets
from seqrec_jax.data.store import Dataset
from seqrec_jax.errors import InputError

HISTORY_LENGTHS = (5, 10, 20, 50)
"""Most items of a history in each slice but the last, which holds the longer ones."""
SHORT = f"history_1_to_{HISTORY_LENGTHS[0]}"
"""The slice of the shortest histories."""
CATEGORY = "category_l1"
"""Column of a catalog that has categories, as etl makes it of Amazon's."""
MOST_CATEGORIES = 8
HEAD, TAIL = 1 / 3, 2 / 3
"""Shares of the training interactions at which the middle begins and ends, the most popular items first."""


def by_history(targets: Targets) -> dict[str, np.ndarray]:
    """Targets by the number of items before them: per slice [n] bool; each target is in one."""
    edges = (0, *HISTORY_LENGTHS)
    slices = {
        f"history_{low + 1}_to_{high}": (targets.positions > low) & (targets.positions <= high)
        for low, high in itertools.pairwise(edges)
    }
    slices[f"history_above_{edges[-1]}"] = targets.positions > edges[-1]
    return slices


def by_popularity(items: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
    """Targets by how popular their items are in training: per slice [n] bool; each target is in one.

    Head, middle and tail make a third of the training interactions each; `cold_items` none.

    Args:
        items: [n] int32, of the targets.
        counts: [n_items + 1] training interactions of each item.
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


def by_category(data: Dataset, items: np.ndarray, column: str) -> dict[str, np.ndarray]:
    """Targets by a column of the catalog: per slice [n] bool; each target is in one.

    The MOST_CATEGORIES values that most targets have; the rest together; and those without a value.

    Args:
        data: of the items.
        items: [n] int32, of the targets.
        column: of text, such as CATEGORY or `brand`.

    Raises:
        InputError: the catalog has no such column of text.
    """
    columns = data.items_table.column_names
    texts = [name for name in columns if str(data.items_table[name].type) in ("string", "large_string")]
    known = [name for name in texts if name != "item_id"]
    if column not in known:
        raise InputError(f"evaluate.category = {column!r}: {data.folder} has no such column, only {', '.join(known)}")
    values = pc.fill_null(data.items_table[column].take(items), "").combine_chunks().dictionary_encode()
    codes, names = values.indices.to_numpy(), values.dictionary.to_pylist()
    order = np.argsort(-np.bincount(codes, minlength=len(names)), kind="stable")
    shown = [code for code in order if names[code]][:MOST_CATEGORIES]
    slices = {f"{column}: {names[code]}": codes == code for code in shown}
    rest, empty = ~np.isin(codes, shown), np.isin(codes, [code for code in order if not names[code]])
    return slices | {f"{column}: others": rest & ~empty, f"{column}: none": empty}


def slices_of(
    data: Dataset, targets: Targets, counts: np.ndarray, category: str | None = None
) -> Mapping[str, np.ndarray]:
    """Targets by history, by popularity and, where the catalog has one, by category: per slice [n] bool.

    Args:
        data: of the targets.
        targets: to predict.
        counts: [n_items + 1] training interactions of each item.
        category: column of the catalog; None for CATEGORY where there is one.

    Raises:
        InputError: see by_category.
    """
    items = data.items.take(data.offsets[targets.users] + targets.positions)
    if category is None and CATEGORY in data.items_table.column_names:
        category = CATEGORY
    slices = by_history(targets) | by_popularity(items, counts)
    return slices if category is None else slices | by_category(data, items, category)


def gini(counts: np.ndarray) -> float:
    """How unevenly recommendations fall on items: 0 where all have as many, near 1 where one has all.

    Args:
        counts: [n_items] times that each was recommended.
    """
    ordered = np.sort(counts).astype(np.float64)
    total = ordered.sum()
    if not total:
        return 0.0
    places = np.arange(1, len(ordered) + 1)
    return float((2 * places - len(ordered) - 1) @ ordered / (len(ordered) * total))
