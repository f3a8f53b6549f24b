"""The k-core of a log: users and items that have enough interactions with each other."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from etl.arrow_files import read_table, write_batches


def items_of_core(users: Sequence[Path], n_rows: int, user_core: int, item_core: int) -> tuple[np.ndarray, int]:
    """The items of the largest set in which every user and every item has enough interactions.

    Drops users, then items, until nothing changes; one file of users is in memory at a time.

    Args:
        users: Arrow files that `by_user.group_partition` made.
        n_rows: catalog rows.
        user_core: fewest interactions of a user.
        item_core: fewest interactions of an item.

    Returns:
        Which catalog rows stay, [n_rows] bool; and how many rounds it took.
    """
    stays = np.ones(n_rows, bool)
    rounds = 0
    while True:
        rounds += 1
        counts = np.zeros(n_rows, np.int64)
        for path in users:
            for lists in read_table(path, ["items"])["items"].chunks:
                items, kept = _kept(lists, stays, user_core)
                np.add.at(counts, items[kept], 1)
        enough = counts >= item_core
        if not (stays & ~enough).any():
            return stays, rounds
        stays &= enough


def _kept(lists: pa.LargeListArray, stays: np.ndarray, user_core: int) -> tuple[np.ndarray, np.ndarray]:
    """A file's items one user after the other, and which of its interactions stay."""
    items = lists.flatten().to_numpy()
    lengths = np.diff(lists.offsets.to_numpy())
    kept = stays[items]
    user = np.repeat(np.arange(len(lengths)), lengths)
    per_user = np.bincount(user[kept], minlength=len(lengths))
    return items, kept & (per_user[user] >= user_core)


def keep_core(output: Path, path: Path, stays: Path, user_core: int) -> dict[str, int]:
    """Writes a file of users with only the interactions of the core; counts `users` and `rows`."""
    table = read_table(path).combine_chunks()
    if not table.num_rows:
        write_batches(output, table.schema, [])
        return {"users": 0, "rows": 0}
    lists = table["items"].chunk(0)
    _, kept = _kept(lists, np.load(stays), user_core)
    offsets = pa.array(np.concatenate([[0], np.cumsum(kept)])[lists.offsets.to_numpy()])
    columns = [table[name].chunk(0) for name in table.column_names]
    columns = [
        pa.LargeListArray.from_arrays(offsets, column.flatten().filter(pa.array(kept)))
        if pa.types.is_large_list(column.type)
        else column
        for column in columns
    ]
    nonempty = pa.array(np.diff(offsets.to_numpy()) > 0)
    left = pa.table(columns, names=table.column_names).filter(nonempty).combine_chunks()
    write_batches(output, left.schema, left.to_batches())
    return {"users": left.num_rows, "rows": int(kept.sum())}
