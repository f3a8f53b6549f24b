"""From a log in any order to a row per user: partitions by hash of the user, each then sorted on its own.

Users come out in the order of their hashes, whatever the number of partitions, so the outcome does not depend on it.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from etl.arrow_files import write_batches
from etl.ids import IdTable, Words, changes, hash_of, run_starts, strings_of, words_of
from etl.raw.interaction_files import InteractionFiles, read_rows
from etl.raw.table_blocks import Block
from etl.time_order import TimeOrder

ROWS_PER_PARTITION = 1 << 19
MOST_PARTITIONS = 1 << 10
_ORDINAL_BITS = 24


@lru_cache(maxsize=4)
def _load_table(folder: Path, written: int) -> IdTable:
    return IdTable.load(folder)


def _table(folder: Path) -> IdTable:
    """A table of ids, opened once by each worker; a worker that outlives a run sees that another was written."""
    return _load_table(folder, (folder / "hashes.npy").stat().st_mtime_ns)


class UserRows(NamedTuple):
    """Interactions of some users, a column each: words of the user's id, catalog row, time, rating, key of ties."""

    users: Words
    items: np.ndarray
    times: np.ndarray
    ratings: np.ndarray | None
    tie_keys: np.ndarray | None


def partition_bits(rows: int) -> int:
    """log2 of the number of partitions, so that on average none has more than `ROWS_PER_PARTITION`."""
    return min(MOST_PARTITIONS - 1, rows // ROWS_PER_PARTITION).bit_length()


def partition_block(
    output: Path, block: Block, files: InteractionFiles, items: Path, bits: int, time_order: TimeOrder
) -> dict[str, Any]:
    """Reads a block of a log, leaves out what is not in the catalog, and writes the rest ordered by partition.

    Args:
        output: Arrow file to write, a record batch for each of the 2^bits partitions.
        block: of one of the files.
        files: what its columns mean.
        items: folder of the catalog's table of ids.
        bits: log2 of the number of partitions.
        time_order: what decides between equal times.

    Returns:
        Counts: `lines`, `rows` (good ones), `without_item`, `bad`.
    """
    rows, bad, n_lines = read_rows(block, files)
    item_words, users = words_of(rows.items), words_of(rows.users)
    item_hashes, user_hashes = hash_of(item_words), hash_of(users)
    catalog_rows = _table(items).find_runs(item_words, item_hashes, rows.items)
    known = np.flatnonzero(catalog_rows >= 0)
    partition = _top_bits(user_hashes, bits)[known]
    order = known[np.argsort(partition, kind="stable")]
    counts = np.bincount(partition, minlength=1 << bits)
    columns = {f"user_{i}": word[order] for i, word in enumerate(users)}
    columns |= {"item": catalog_rows[order], "time": rows.times[order]}
    if rows.ratings is not None:
        columns["rating"] = rows.ratings[order]
    if (tie_keys := time_order.tie_keys(user_hashes, item_hashes)) is not None:
        columns["tie_key"] = tie_keys[order]
    batch = pa.record_batch([pa.array(column) for column in columns.values()], list(columns))
    ends = np.cumsum(counts)
    write_batches(output, batch.schema, (batch.slice(end - n, n) for end, n in zip(ends, counts, strict=True)))
    return {
        "lines": n_lines,
        "rows": len(rows.times),
        "without_item": len(rows.times) - len(known),
        "bad": bad,
    }


def _top_bits(hashes: np.ndarray, bits: int) -> np.ndarray:
    kind = np.uint8 if bits <= 8 else np.uint16
    return (hashes >> np.uint64(64 - bits)).astype(kind) if bits else np.zeros(len(hashes), kind)


def _read_partition(blocks: Sequence[Path], partition: int) -> UserRows:
    """A partition's rows from every block, in the order of the log."""
    pieces = []
    for block in blocks:
        with pa.OSFile(str(block)) as file:
            pieces.append(pa.ipc.open_file(file).get_batch(partition))
    names = max((piece.schema.names for piece in pieces), key=len)
    columns = {
        name: np.concatenate(
            [
                piece[name].to_numpy() if name in piece.schema.names else np.zeros(piece.num_rows, np.uint64)
                for piece in pieces
            ]
        )
        for name in names
    }
    users = [columns[name] for name in names if name.startswith("user_")]
    return UserRows(users, columns["item"], columns["time"], columns.get("rating"), columns.get("tie_key"))


def in_coarsest_unit(times: np.ndarray) -> np.ndarray:
    """Nanoseconds counted in seconds, milli- or microseconds where they are whole ones: small numbers sort faster."""
    for unit in (1_000_000_000, 1_000_000, 1_000):
        if not (times[:1_000] % unit).any() and not (times % unit).any():
            return times // unit
    return times


def order_by_user_and_time(users: Words, hashes: np.ndarray, times: np.ndarray) -> np.ndarray:
    """The order by hash of the user, then by user, then by time; ties keep their order: [n] int64.

    Two sorts of plain integers, each holding part of a key and the row's ordinal, where these fit into 64 bits and
    the parts of the hashes tell all users apart; the general way otherwise.
    """
    n = len(times)
    if not n:
        return np.zeros(0, np.int64)
    earliest = times.min()
    span = int(times.max()) - int(earliest)
    ordinal_mask = np.uint64((1 << _ORDINAL_BITS) - 1)
    shift = np.uint64(_ORDINAL_BITS)
    if n < 1 << _ORDINAL_BITS and span < 1 << (64 - _ORDINAL_BITS):
        by_time = np.sort(((times - earliest).astype(np.uint64) << shift) | np.arange(n, dtype=np.uint64))
        by_time &= ordinal_mask
        # A partition's hashes have their top bits in common, so the bits below tell users apart.
        common = 64 - int(hashes.max() ^ hashes.min()).bit_length()
        part = (hashes[by_time] << np.uint64(common)) & ~ordinal_mask
        keys = np.sort(part | np.arange(n, dtype=np.uint64))
        order = by_time[keys & ordinal_mask]
        keys >>= shift
        same_part = keys[1:] == keys[:-1]
        same_user = ~changes([word[order] for word in users])
        if not (same_part & ~same_user).any():
            return order.astype(np.int64)
    return np.lexsort((times, *reversed(users), hashes))


def group_partition(
    output: Path, blocks: Sequence[Path], partition: int, held_out: Path, min_interactions: int
) -> dict[str, Any]:
    """Writes a partition's users, a row each, without the held-out ones and those of too few interactions.

    Args:
        output: Arrow file to write: `user_id`, `user_hash`, `items` (catalog rows), `timestamps` (in
            nanoseconds), and `ratings` where there are some.
        blocks: what `partition_block` wrote, in the order of the log.
        partition: which.
        held_out: folder of the table of held-out users' ids.
        min_interactions: fewest of a user to keep.

    Returns:
        Counts: `users`, `rows`, and `rejected` rows by reason.
    """
    rows = _read_partition(blocks, partition)
    hashes = hash_of(rows.users)
    times = in_coarsest_unit(rows.times)
    if rows.tie_keys is None:
        order = order_by_user_and_time(rows.users, hashes, times)
    else:
        by_tie = np.argsort(rows.tie_keys, kind="stable")
        users = [word[by_tie] for word in rows.users]
        order = by_tie[order_by_user_and_time(users, hashes[by_tie], times[by_tie])]
    users = [word[order] for word in rows.users]
    first = run_starts(users)
    lengths = np.diff(np.append(first, len(order)))
    users, hashes = [word[first] for word in users], hashes[order[first]]
    is_held_out = _table(held_out).find(hashes, lambda places: strings_of([word[places] for word in users])) >= 0
    keep = ~is_held_out & (lengths >= min_interactions)
    order = order[np.repeat(keep, lengths)]
    values = {"items": rows.items[order], "timestamps": rows.times[order]}
    if rows.ratings is not None:
        values["ratings"] = rows.ratings[order]
    batch = sequences([word[keep] for word in users], hashes[keep], lengths[keep], values)
    write_batches(output, batch.schema, [batch])
    return {
        "users": int(keep.sum()),
        "rows": len(order),
        "rejected": {
            "user is held out": int(lengths[is_held_out].sum()),
            f"user has fewer than {min_interactions} interactions": int(
                lengths[~is_held_out & (lengths < min_interactions)].sum()
            ),
        },
    }


def sequences(
    users: Words, hashes: np.ndarray, lengths: np.ndarray, values: Mapping[str, np.ndarray]
) -> pa.RecordBatch:
    """A row per user: ids, hashes, and lists of the values, which lie user after user."""
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int64())
    columns = {"user_id": strings_of(users), "user_hash": pa.array(hashes)}
    columns |= {name: pa.LargeListArray.from_arrays(offsets, pa.array(column)) for name, column in values.items()}
    return pa.record_batch(list(columns.values()), list(columns))


def sequences_by_first_appearance(
    users: pa.Array | pa.ChunkedArray, values: Mapping[str, np.ndarray], tie_keys: np.ndarray | None
) -> pa.Table:
    """A row per user in order of first appearance, the values, `timestamps` among them, in time order.

    Ties are in the order of their keys, then of the input.
    """
    encoded = (users.combine_chunks() if isinstance(users, pa.ChunkedArray) else users).dictionary_encode()
    codes = encoded.indices.to_numpy()
    order = np.lexsort((*(() if tie_keys is None else (tie_keys,)), values["timestamps"], codes))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(codes, minlength=len(encoded.dictionary)))])
    lists = {
        name: pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(column[order]))
        for name, column in values.items()
    }
    return pa.table({"user_id": encoded.dictionary.cast(pa.string()), **lists})
