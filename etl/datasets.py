"""Dataset folders: samples of all users, nested in one another, and single domains."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from etl import dataset_writer, tokenizer
from etl.arrow_files import read_table
from etl.by_user import sequences_by_first_appearance
from etl.catalog import Catalog, items_table, items_tables
from etl.ids import IdTable, hash_of, words_of
from etl.raw.interaction_files import InteractionFiles, read_rows
from etl.raw.text_blocks import BLOCK_BYTES
from etl.time_order import TimeOrder
from seqrec_jax.data import format
from seqrec_jax.host_memory import release_freed_memory


@dataclass(frozen=True)
class Provenance:
    """What a dataset's manifest says of its making.

    Attributes:
        tokenizer: the SentencePiece model's file.
        parameters: of the pipeline.
        inputs: the raw files, as `dataset_writer.input_record` gives them.
        rejected: interactions left out before, by reason.
        time_order: how the interactions are ordered.
    """

    tokenizer: Path
    parameters: Mapping[str, Any]
    inputs: Sequence[Mapping[str, Any]]
    rejected: Mapping[str, int]
    time_order: TimeOrder


def _write(
    output: Path,
    interactions: Iterator[pa.Table],
    items: Iterator[pa.Table],
    features: Mapping[str, int],
    provenance: Provenance,
    rejected: Mapping[str, int],
    items_without_text: int | None = None,
) -> dict[str, Any]:
    model = tokenizer.load(provenance.tokenizer)
    return dataset_writer.write_dataset(
        output,
        interactions,
        items,
        model.model,
        features=features,
        vocab_size=model.vocab_size,
        parameters=provenance.parameters,
        inputs=provenance.inputs,
        rejected=rejected,
        items_without_text=items_without_text,
        time_order=provenance.time_order,
    )


def _sample(users: pa.Table, share: float, seed: int) -> pa.Table:
    """A sample of the users: each has one fixed place in [0, 1), so a larger share has all that a smaller has."""
    if share >= 1:
        return users
    return users.filter(pa.array(hash_of([users["user_hash"].to_numpy()], seed) < np.uint64(int(share * 2**64))))


def sampled_dataset(
    output: Path,
    users: Sequence[Path],
    catalog: Catalog,
    every_item: np.ndarray | None,
    share: float,
    seed: int,
    provenance: Provenance,
) -> dict[str, Any]:
    """Makes a dataset of a share of the users, and the items that occur in it.

    Args:
        output: the dataset's folder.
        users: Arrow files that `by_user.group_partition` made, in order.
        catalog: whose rows the users' items are.
        every_item: ascending catalog rows of the whole catalog, to have it all; None for the items that occur.
        share: of the users, in (0, 1].
        seed: of the sample.
        provenance: for the manifest.

    Returns:
        The manifest.
    """
    release_freed_memory()  # What this worker kept from reading and sorting the log.
    occurs = np.zeros(catalog.starts[-1], bool)
    left_out = 0
    for path in users:
        table = read_table(path, ["user_hash", "items"])
        kept = _sample(table, share, seed)
        left_out += _count(table) - _count(kept)
        for chunk in kept["items"].chunks:
            occurs[chunk.flatten().to_numpy()] = True
    rows = np.flatnonzero(occurs) if every_item is None else every_item
    new_row = np.zeros(catalog.starts[-1], np.int32)
    new_row[rows] = np.arange(1, len(rows) + 1, dtype=np.int32)

    def interactions() -> Iterator[pa.Table]:
        for path in users:
            kept = _sample(read_table(path), share, seed).combine_chunks()
            lists = kept["items"].chunk(0) if kept.num_rows else pa.array([], pa.large_list(pa.int32()))
            items = pa.LargeListArray.from_arrays(lists.offsets, pa.array(new_row[lists.values.to_numpy()]))
            place = kept.schema.get_field_index("items")
            yield kept.set_column(place, "items", items).drop_columns("user_hash")

    rejected = dict(provenance.rejected) | ({"user is not in the sample": left_out} if share < 1 else {})
    return _write(output, interactions(), items_tables(catalog, rows), catalog.features, provenance, rejected)


def _count(table: pa.Table) -> int:
    return sum(len(chunk.flatten()) for chunk in table["items"].chunks)


def domain_dataset(
    output: Path,
    files: InteractionFiles,
    paths: Sequence[Path],
    catalog: Catalog,
    items: Path,
    drop_without_metadata: bool,
    provenance: Provenance,
) -> dict[str, Any]:
    """Makes a dataset of one domain's log, whose catalog is the items that occur in it.

    Users come in the order of the log. Items that the metadata lacks, or that have no text there, are kept as
    `unknown` after all others, unless they are dropped.

    Args:
        output: the dataset's folder.
        files: what the log's columns mean.
        paths: its files.
        catalog: where the items' texts are.
        items: folder of the catalog's table of ids.
        drop_without_metadata: leave interactions with items out that the catalog does not know.
        provenance: for the manifest; its `rejected` are the log's bad rows.

    Returns:
        The manifest.
    """
    blocks = [read_rows(block, files)[0] for path in paths for block in files.blocks(path, BLOCK_BYTES)]
    users, ids = (pa.concat_arrays([getattr(rows, name) for rows in blocks]) for name in ("users", "items"))
    values = {"timestamps": np.concatenate([rows.times for rows in blocks])}
    if files.rating:
        values["ratings"] = np.concatenate([rows.ratings for rows in blocks if rows.ratings is not None])
    distinct = ids.dictionary_encode()
    hashes, codes = hash_of(words_of(distinct.dictionary)), distinct.indices.to_numpy()
    catalog_rows = IdTable.load(items).find(hashes, lambda places: distinct.dictionary.take(pa.array(places)))
    unknown = np.flatnonzero(catalog_rows < 0)
    rejected = dict(provenance.rejected)
    if drop_without_metadata:
        known = catalog_rows[codes] >= 0
        rejected["item has no metadata or title"] = int((~known).sum())
        users, codes = users.filter(pa.array(known)), codes[known]
        values = {name: column[known] for name, column in values.items()}
        unknown = unknown[:0]
    rows = np.unique(catalog_rows[catalog_rows >= 0]).astype(np.int64)
    new_row = np.searchsorted(rows, catalog_rows).astype(np.int32) + 1
    new_row[unknown] = len(rows) + 1 + np.arange(len(unknown), dtype=np.int32)
    order, tie_keys = provenance.time_order, None
    if order.ties == "random":
        tie_keys = order.tie_keys(hash_of(words_of(users)), hashes[codes])
    table = sequences_by_first_appearance(users, {"items": new_row[codes], **values}, tie_keys)

    def all_items() -> Iterator[pa.Table]:
        schema = None
        for table in items_tables(catalog, rows):
            schema = table.schema
            yield table
        if len(unknown) and schema is not None:
            yield _unknown_items(schema, distinct.dictionary.take(pa.array(unknown)), catalog, provenance.tokenizer)

    return _write(output, iter([table]), all_items(), catalog.features, provenance, rejected, len(unknown))


def _unknown_items(schema: pa.Schema, ids: pa.Array, catalog: Catalog, model: Path) -> pa.Table:
    """Rows of `items.arrow` for items of which nothing but the id is known."""
    tokens = tokenizer.load(model).encode([tokenizer.UNKNOWN], max(catalog.features.values()))[0]
    features = list(catalog.features)
    texts = {name: pa.array([""] * len(ids), pa.string()) for name in features}
    categories = {f.name: pa.nulls(len(ids), pa.string()) for f in schema if f.name.startswith("category_")}
    columns = {
        format.tokens_column(name): pa.array([tokens[:most]] * len(ids), pa.list_(pa.int32()))
        for name, most in catalog.features.items()
    }
    both = pa.table({"item_id": ids.cast(pa.string()), **texts, **categories})
    return items_table(both, pa.table(columns), features)
