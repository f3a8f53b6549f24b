"""Task: the best next items for given users, or for a history typed in."""

from collections.abc import Sequence

import gin
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console

from seqrec_jax.data.store import Dataset
from seqrec_jax.errors import InputError
from seqrec_jax.evaluation.top_items import top_items
from seqrec_jax.tasks.restored import open_checkpoint
from seqrec_jax.tasks.tables import recommendations_table

HISTORY_SHOWN = 8


def _rows_of(ids: Sequence[str], column: pa.ChunkedArray, what: str, data: Dataset) -> list[int]:
    rows = pc.index_in(pa.array([str(name) for name in ids], pa.string()), column.combine_chunks()).to_pylist()
    for name, row in zip(ids, rows, strict=True):
        if row is None or name == "":
            raise InputError(f"recommend.{what}: {name!r} is not in {data.folder}")
    return rows


def describe(data: Dataset, items: np.ndarray) -> list[dict[str, str]]:
    """Id and raw texts of item rows [n]."""
    ids = data.items_table["item_id"].take(pa.array(items)).to_pylist()
    texts = {name: data.text(items, name) for name in data.features}
    return [{"item": ids[row], **{name: texts[name][row] for name in texts}} for row in range(len(items))]


@gin.configurable
def recommend(
    checkpoint: str = gin.REQUIRED,
    dataset: str = gin.REQUIRED,
    users: Sequence[str] = (),
    history: Sequence[str] = (),
    k: int = 10,
    exclude_seen: bool = True,
) -> dict[str, list[str]]:
    """Prints the top k items, with titles.

    Args:
        checkpoint: the RUN_DIR of a training run.
        dataset: dataset folder.
        users: user ids; each is served from the whole of its history.
        history: item ids in time order, served as one more user.
        k: items for each.
        exclude_seen: leave out what is in the history.

    Returns:
        Item ids, best first, by user id; the typed history under `history`.

    Raises:
        InputError: neither users nor history, or an id that the dataset lacks.
    """
    if not users and not history:
        raise InputError("bind USERS = ['user id', ...] or HISTORY = ['item id', ...]")
    if k < 1:
        raise InputError(f"recommend.k = {k} is below 1")
    restored, data, tokens, transitions = open_checkpoint(checkpoint, dataset)
    rows = _rows_of(users, data.interactions_table["user_id"], "users", data)
    histories = {str(name): data.user_items(row) for name, row in zip(users, rows, strict=True)}
    if history:
        histories["history"] = np.array(_rows_of(history, data.items_table["item_id"], "history", data), np.int32)
    items, scores = top_items(
        restored.graph,
        restored.params,
        {name: jnp.asarray(ids) for name, ids in tokens.items()},
        list(histories.values()),
        k=k,
        max_length=restored.record.architecture.max_length,
        exclude_seen=exclude_seen,
        transitions=transitions,
    )
    best = {}
    for (name, had), items_, scores_ in zip(histories.items(), items, scores, strict=True):
        left = items_ > 0
        described = [
            {**item, "score": f"{score:.2f}"}
            for item, score in zip(describe(data, items_[left]), scores_[left], strict=True)
        ]
        best[name] = [item["item"] for item in described]
        title = "typed history" if name == "history" and history else f"user {name}"
        Console().print(recommendations_table(title, describe(data, had[-HISTORY_SHOWN:]), described))
    return best
