"""Writes a dataset folder: under a temporary name beside the target, then renamed, so it is whole or absent."""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from etl import output_folder
from etl.time_order import TimeOrder
from seqrec_jax.data.format import (
    DATA_FILES,
    INTERACTIONS,
    ITEMS,
    MANIFEST,
    SCHEMA_VERSION,
    TOKENIZER,
    digest_of,
    sha256_of,
)

INTERACTIONS_PER_BATCH = 1 << 21
ITEMS_PER_BATCH = 1 << 17
"""Most of a record batch in the files, so that neither a writer nor a reader needs to hold a whole file."""


def input_record(path: Path) -> dict[str, Any]:
    """A raw file in the manifest: name, size and SHA-256."""
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256_of(path)}


def _cut(
    tables: Iterable[pa.Table], weights: Callable[[pa.Table], np.ndarray], most: int
) -> Iterator[tuple[pa.Table, int]]:
    """The same rows in pieces of at most `most` weight (of one row, at least), and each piece's weight.

    Where the cuts lie depends on the rows alone, not on how they came.
    """
    held: list[pa.Table] = []
    total = 0
    for table in tables:
        held.append(table)
        total += int(weights(table).sum())
        while total > most:
            together = pa.concat_tables(held)
            ends = np.cumsum(weights(together))
            rows = max(1, int(np.searchsorted(ends, most, side="right")))
            if rows == len(ends):
                break
            yield together.slice(0, rows), int(ends[rows - 1])
            held, total = [together.slice(rows)], total - int(ends[rows - 1])
    yield pa.concat_tables(held), total


def _write_arrow(
    path: Path, tables: Iterable[pa.Table], weights: Callable[[pa.Table], np.ndarray], most: int
) -> tuple[int, int]:
    """Writes an Arrow IPC file in record batches of at most `most` weight; returns its rows and its weight."""
    rows, weight, writer = 0, 0, None
    with pa.OSFile(str(path), "wb") as sink:
        for table, its_weight in _cut(tables, weights, most):
            writer = writer or pa.ipc.new_file(sink, table.schema)
            # An empty table beside it makes this a copy, and so the buffers' sizes those of the rows.
            writer.write_table(pa.concat_tables([table, table.schema.empty_table()]).combine_chunks())
            rows, weight = rows + table.num_rows, weight + its_weight
        if writer is not None:
            writer.close()
    return rows, weight


def _lengths(interactions: pa.Table) -> np.ndarray:
    return pc.list_value_length(interactions["items"]).to_numpy()


def _ones(items: pa.Table) -> np.ndarray:
    return np.ones(items.num_rows, np.int64)


@contextmanager
def _whole_or_absent(output: Path) -> Iterator[Path]:
    """A folder to write to, which takes the place of `output` at the end, and is removed where an error comes first."""
    final = output_folder.prepare(output)
    final.parent.mkdir(parents=True, exist_ok=True)
    partial = output_folder.partial_folder(final)
    try:
        yield partial
        output_folder.replace(partial, final)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _in_seconds(interactions: Iterable[pa.Table], time_order: TimeOrder, ties: Counter[str]) -> Iterator[pa.Table]:
    """The interactions with times in seconds; adds the neighbours of one time, and all, to `ties`."""
    for table in interactions:
        table, tied, neighbours = time_order.in_seconds(table)
        ties.update(neighbours=tied, of=neighbours)
        yield table


def write_dataset(
    output: Path,
    interactions: Iterable[pa.Table],
    items: Iterable[pa.Table],
    tokenizer: bytes,
    *,
    features: Mapping[str, int],
    vocab_size: int,
    parameters: Mapping[str, Any],
    inputs: Sequence[Mapping[str, Any]],
    rejected: Mapping[str, int],
    items_without_text: int | None = None,
    time_order: TimeOrder = TimeOrder(),
) -> dict[str, Any]:
    """Writes a dataset folder, whole or not at all; the same inputs give the same bytes.

    Args:
        output: the folder to make; an existing dataset there is replaced.
        interactions: a row per user, columns `user_id`, `items`, `timestamps`, optional `ratings`; in one table or,
            so that it need not be held in memory, in several, at least one.
        items: a row per item, row 0 padding; `item_id`, `<feature>_tokens` and `<feature>` per feature; likewise.
        tokenizer: the serialized SentencePiece model.
        features: text features and the most tokens that each may have.
        vocab_size: token ids lie in [0, vocab_size), 0 being padding.
        parameters: of the pipeline that made it, for the manifest.
        inputs: the raw files, as `input_record` gives them.
        rejected: rows left out, by reason.
        items_without_text: items kept as `unknown` because nothing is known of them, where that was counted.
        time_order: how the interactions are ordered, and the unit of their `timestamps`, which become seconds.

    Returns:
        The manifest.
    """
    ties: Counter[str] = Counter()
    with _whole_or_absent(output) as partial:
        seconds = _in_seconds(interactions, time_order, ties)
        n_users, n_interactions = _write_arrow(partial / INTERACTIONS, seconds, _lengths, INTERACTIONS_PER_BATCH)
        n_items, _ = _write_arrow(partial / ITEMS, items, _ones, ITEMS_PER_BATCH)
        (partial / TOKENIZER).write_bytes(tokenizer)
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "counts": {"users": n_users, "items": n_items - 1, "interactions": n_interactions},
            "features": [{"name": name, "max_tokens": most} for name, most in features.items()],
            "tokenizer": {"sha256": hashlib.sha256(tokenizer).hexdigest(), "vocab_size": vocab_size},
            "parameters": dict(parameters),
            "inputs": [dict(record) for record in inputs],
            "rejected": dict(rejected),
            "ties": time_order.rule | ties,
            "sizes": {name: (partial / name).stat().st_size for name in DATA_FILES},
            "checksums": {name: sha256_of(partial / name) for name in DATA_FILES},
        }
        if items_without_text is not None:
            manifest["items_without_text"] = items_without_text
        manifest["sha256"] = digest_of(json.loads(json.dumps(manifest)))
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")
    return manifest
