"""The catalog: items and their texts in parts on the disk, the table of their ids, and the tokens of their texts.

A catalog row is an item's place in the parts, taken one after the other. An item that is listed again keeps its first.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from etl import tokenizer
from etl.arrow_files import read_table, write_batches
from etl.ids import hash_of, id_table, words_of
from etl.raw.item_files import ItemFiles, read_items
from etl.raw.table_blocks import Block
from seqrec_jax.data.format import tokens_column

_WORDS_CACHED = 400_000
_SAMPLE_SEED = 0x5EED
_ALL = 1 << 30


class Catalog(NamedTuple):
    """Where a catalog lies.

    Attributes:
        texts: Arrow files of items and raw texts, in order.
        tokens: Arrow files of the tokens of the same items.
        starts: [files + 1] first catalog row of each, and the number of rows.
        features: text features and the most tokens of each.
    """

    texts: Sequence[Path]
    tokens: Sequence[Path]
    starts: Sequence[int]
    features: Mapping[str, int]


def catalog_block(output: Path, block: Block, files: ItemFiles) -> dict[str, Any]:
    """Writes the items of a block that are to be kept; counts `lines`, `rows`, `kept`, `left_out`, `bad`."""
    items, bad, n_lines, left_out = read_items(block, files)
    write_batches(output, items.schema, [items])
    rows = items.num_rows + sum(left_out.values())
    return {"lines": n_lines, "rows": rows, "kept": items.num_rows, "left_out": left_out, "bad": bad}


def index_catalog(parts: Sequence[Path], rows: Sequence[int], folder: Path) -> tuple[list[int], int]:
    """Writes the table of the items' ids: the first row of each.

    Args:
        parts: Arrow files that `catalog_block` made, in order.
        rows: how many items each has.
        folder: to write to.

    Returns:
        First row of each part, and the number of rows; and how many items are listed again.
    """
    starts = [0, *itertools.accumulate(rows)]
    ids = pa.chunked_array([_item_ids(part) for part in parts]).cast(pa.large_string()).combine_chunks()
    table = id_table(ids)
    table.save(folder)
    return starts, starts[-1] - len(table.first_rows)


def _item_ids(part: Path) -> pa.Array:
    """The ids of a part, [n] string, in memory of their own, as what is read of a file holds all of its columns."""
    chunks = read_table(part, ["item_id"])["item_id"].chunks
    return pa.concat_arrays([pa.array([], pa.string()), *chunks])


def sample_texts(parts: Sequence[Path], features: Sequence[str], share: float) -> Iterator[str]:
    """Normalised texts of a share of the items, chosen by the hash of their ids; empty ones are left out."""
    bound = np.uint64(min(2**64 - 1, int(share * 2**64)))
    for part in parts:
        table = read_table(part, ["item_id", *features])
        if not table.num_rows:
            continue
        chosen = hash_of(words_of(table["item_id"].combine_chunks()), _SAMPLE_SEED) <= bound
        for feature in features:
            for text in table[feature].filter(pa.array(chosen)).to_pylist():
                if text:
                    yield tokenizer.normalize(text)


class _Words(dict[str, bytes]):
    """Token ids of single words, as int32 bytes. No piece spans a blank, so a text's tokens are those of its words."""

    def __init__(self, model: Path):
        super().__init__()
        self._tokenizer = tokenizer.load(model)

    def __missing__(self, word: str) -> bytes:
        if len(self) >= _WORDS_CACHED:
            self.clear()
        self[word] = ids = np.array(self._tokenizer.encode([word], _ALL)[0], np.int32).tobytes()
        return ids

    def encode(self, texts: Sequence[str], max_tokens: int) -> pa.ListArray:
        """Token ids of raw texts, cut to max_tokens."""
        most = max_tokens * np.int32().nbytes
        encoded = [b"".join(map(self.__getitem__, tokenizer.words(text)))[:most] for text in texts]
        ids = np.frombuffer(b"".join(encoded), np.int32)
        ends = np.cumsum([0, *map(len, encoded)]) // np.int32().nbytes
        return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(ids))


@lru_cache(maxsize=1)
def _load_words(model: Path, written: int) -> _Words:
    return _Words(model)


def tokenize_part(output: Path, part: Path, model: Path, features: Mapping[str, int]) -> dict[str, Any]:
    """Writes the tokens of a part's texts; counts `rows`, and `empty` texts by feature."""
    words, table = _load_words(model, model.stat().st_mtime_ns), read_table(part)
    columns, empty = {}, {}
    for feature, most in features.items():
        texts = table[feature].to_pylist()
        columns[tokens_column(feature)] = words.encode(texts, most)
        empty[feature] = sum(not text.strip() for text in texts)
    batch = pa.record_batch(list(columns.values()), list(columns))
    write_batches(output, batch.schema, [batch])
    return {"rows": table.num_rows, "empty": empty}


def items_tables(catalog: Catalog, rows: np.ndarray) -> Iterator[pa.Table]:
    """`items.arrow` of the given catalog rows, in ascending order, the padding row first.

    Args:
        catalog: to take them from.
        rows: [n] int64, ascending.
    """
    bounds = np.searchsorted(rows, catalog.starts)
    padding = True
    for part, (first, last) in enumerate(itertools.pairwise(bounds)):
        if first == last and not padding:
            continue
        here = pa.array(rows[first:last] - catalog.starts[part])
        texts, tokens = read_table(catalog.texts[part]).take(here), read_table(catalog.tokens[part]).take(here)
        table = items_table(texts, tokens, list(catalog.features))
        yield pa.concat_tables([padding_row(table.schema), table]) if padding else table
        padding = False


def items_table(texts: pa.Table, tokens: pa.Table, features: Sequence[str]) -> pa.Table:
    """The columns of `items.arrow`: id, tokens, raw texts, categories."""
    names = [tokens_column(name) for name in features]
    categories = [name for name in texts.column_names if name not in ("item_id", *features)]
    columns = {"item_id": texts["item_id"]}
    columns |= {name: tokens[name] for name in names}
    columns |= {name: texts[name] for name in [*features, *categories]}
    return pa.table(columns)


def padding_row(schema: pa.Schema) -> pa.Table:
    """Row 0 of `items.arrow`: no id, no tokens, no texts."""
    columns = []
    for field in schema:
        nothing = None if field.name.startswith("category_") else "" if field.type == pa.string() else []
        columns.append(pa.array([nothing], field.type))
    return pa.table(columns, schema=schema)
