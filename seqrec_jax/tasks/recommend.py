"""Task: the best next items for given users, or for a history typed in."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from seqrec_jax.data.store import Dataset, open_dataset
from seqrec_jax.errors import InputError
from seqrec_jax.model.storage import load
from seqrec_jax.tasks.tables import print_tables, recommendations_table

HISTORY_SHOWN = 8


def _described(data: Dataset, ids: Sequence[str]) -> list[dict[str, str]]:
    """Id and texts of items."""
    rows = pc.index_in(pa.array(ids, pa.string()), data.items_table["item_id"].combine_chunks()).to_numpy()
    texts = {name: data.text(rows, name) for name in data.features}
    return [{"item": item, **{name: text[place] for name, text in texts.items()}} for place, item in enumerate(ids)]


def _history(data: Dataset, user: str) -> list[str]:
    """Item ids of the last interactions of a user, in time order."""
    row = pc.index(data.interactions_table["user_id"], pa.scalar(user)).as_py()
    return data.items_table["item_id"].take(pa.array(data.user_items(row)[-HISTORY_SHOWN:])).to_pylist()


def recommend(
    checkpoint: str, dataset: str, users: Sequence[str] = (), history: Sequence[str] = (), k: int = 10,
    exclude_seen: bool = True,
) -> Mapping[str | None, list[str]]:  # fmt: skip
    """Prints the best next items, with titles, and returns their ids, best first, by user; None for the typed history.

    InputError for neither users nor a history, or where the dataset lacks an id.

    `checkpoint` is the RUN_DIR of a training run, `dataset` a folder made with its tokenizer; `history` are item ids in
    time order, served as one more user.
    """
    if not users and not history:
        raise InputError("bind USERS = ['user id', ...] or HISTORY = ['item id', ...]")
    data = open_dataset(dataset, verify=True)
    index = load(checkpoint).index(data)
    names, typed = list(map(str, users)), list(map(str, history))
    lists: dict[str | None, list[dict[str, Any]]] = {user: [] for user in names}
    if names:
        for row in index.recommend(users=list(dict.fromkeys(names)), k=k, exclude_seen=exclude_seen).to_pylist():
            lists[row["user"]].append(row)
    if typed:
        lists[None] = index.recommend(histories=[typed], k=k, exclude_seen=exclude_seen).to_pylist()
    for user, rows in lists.items():
        had = typed[-HISTORY_SHOWN:] if user is None else _history(data, user)
        best = _described(data, [row["item"] for row in rows])
        scored = [item | {"score": f"{row['score']:.2f}"} for item, row in zip(best, rows, strict=True)]
        title = "typed history" if user is None else f"user {user}"
        print_tables(recommendations_table(title, _described(data, had), scored))
        if len(rows) < k:
            print_tables(f"{len(rows)} of the {k} asked for: no other item is left")
    return {user: [row["item"] for row in rows] for user, rows in lists.items()}
