"""A dataset folder from RecBole's atomic files (`.inter` and `.item`)."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gin
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from absl import logging

from etl import dataset_writer, output_folder, tokenizer
from etl.by_user import sequences_by_first_appearance
from etl.catalog import items_table, padding_row
from etl.ids import hash_of, words_of
from etl.raw import atomic_files, files
from etl.running.failures import in_one_line
from etl.time_order import TimeOrder, log_ties
from seqrec_jax.data import format
from seqrec_jax.errors import InputError
from seqrec_jax.items.tokenizer import Tokenizer

TITLES = {"movie_title": "title"}
MAX_TOKENS = {"title": 40, "brand": 8, "keywords": 16}


def read_items(path: Path, max_tokens: Mapping[str, int]) -> tuple[list[str], dict[str, list[str]], dict[str, int]]:
    """Item ids, raw texts of the features that the file has, and what was left out."""
    table = atomic_files.read(path, ["item_id"], [*max_tokens, *TITLES]).table
    names = [TITLES.get(name, name) for name in table.column_names]
    if len(set(names)) < len(names):
        raise InputError(f"{path}, line 1: has both {' and '.join(next(iter(TITLES.items())))}; remove one")
    table = table.rename_columns(names)
    features = [name for name in max_tokens if name in table.column_names]
    if max_tokens and not features:
        raise InputError(
            f"{path}, line 1: has none of the text columns {', '.join([*max_tokens, *TITLES])}; for a dataset without "
            "text, bind MAX_TOKENS = {}"
        )
    ids = table["item_id"].to_pylist()
    first = {item: row for row, item in reversed(list(enumerate(ids)))}
    kept = [row for row, item in enumerate(ids) if first[item] == row]
    texts = {name: table[name].take(kept).to_pylist() for name in features}
    rejected = {"item listed again": len(ids) - len(kept)} if len(kept) < len(ids) else {}
    return [ids[row] for row in kept], texts, rejected


def _bought_items(path: Path) -> list[str]:
    """Ids of the items that occur, in the order of their first appearance."""
    return atomic_files.read(path, ["item_id"]).table["item_id"].unique().to_pylist()


def _items_table(ids: list[str], texts: Mapping[str, list[str]], tokens: Mapping[str, list[list[int]]]) -> pa.Table:
    """`items.arrow`, without the padding row."""
    columns = {format.tokens_column(name): pa.array(column, pa.list_(pa.int32())) for name, column in tokens.items()}
    return items_table(pa.table({"item_id": ids, **texts}), pa.table(columns), list(texts))


def _read_interactions(
    path: Path, item_ids: list[str], time_order: TimeOrder
) -> tuple[pa.Table, TimeOrder, dict[str, int]]:
    """`interactions.arrow`, with the times in a unit that keeps their order, that unit, and what was left out."""
    rows = atomic_files.read(path, ["user_id", "item_id", "timestamp"], ["rating"])
    times, units_per_second = atomic_files.times(rows, "timestamp")
    values = {"timestamps": times}
    if "rating" in rows.table.column_names:
        values["ratings"] = atomic_files.numbers(rows, "rating", pa.float32())
    items = pc.index_in(rows.table["item_id"], pa.array(item_ids, pa.large_string())).combine_chunks()
    known = items.is_valid().to_numpy(zero_copy_only=False)
    rejected = {"item not in the .item file": int((~known).sum())} if not known.all() else {}
    if not known.any():
        raise InputError(f"{path}: none of its items is in the .item file")
    values = {"items": items.fill_null(-1).to_numpy().astype(np.int32) + 1, **values}
    ids = rows.table.filter(pa.array(known)).combine_chunks()
    tie_keys = None
    if time_order.ties == "random":
        tie_keys = time_order.tie_keys(*(hash_of(words_of(ids[name].chunk(0))) for name in ("user_id", "item_id")))
    known_values = {name: column[known] for name, column in values.items()}
    sequences = sequences_by_first_appearance(ids["user_id"], known_values, tie_keys)
    return sequences, replace(time_order, units_per_second=units_per_second), rejected


def _tokenized(
    texts: Mapping[str, list[str]], trained: Tokenizer | None, vocab_size: int, max_tokens: Mapping[str, int]
) -> tuple[Tokenizer | None, dict[str, list[list[int]]]]:
    """The tokenizer, trained on the texts where there is none yet, and the tokens of each feature's texts."""
    normalized = {name: [tokenizer.normalize(text) for text in column] for name, column in texts.items()}
    if trained is None and texts:
        trained = tokenizer.train((text for column in normalized.values() for text in column), vocab_size)
    if trained is None:
        return None, {}
    return trained, {name: trained.encode(column, max_tokens[name]) for name, column in normalized.items()}


def _inputs(source: Path, max_tokens: Mapping[str, int]) -> list[Path]:
    """The `.inter` file, then the `.item` file, which a dataset without text can do without."""
    inputs = [atomic_files.find(source, ".inter")]
    if max_tokens or list(source.glob("*.item")):
        inputs.append(atomic_files.find(source, ".item"))
    return inputs


@gin.configurable
def convert(
    source: str = gin.REQUIRED,
    output: str = gin.REQUIRED,
    tokenizer_from: str | None = None,
    vocab_size: int = 30_000,
    max_tokens: Mapping[str, int] = MAX_TOKENS,
    ties: str = "file",
    seed: int = 42,
) -> dict[str, Any]:
    """Makes a dataset folder from a folder with one `.inter` and one `.item` file.

    `.inter` needs the columns user_id, item_id and timestamp; `.item` needs item_id and a text column. Every item of
    the `.item` file is in the catalog, an empty text as `unknown`. Repeated interactions stay.

    Args:
        source: folder of the atomic files.
        output: folder to make; a dataset there before is replaced.
        tokenizer_from: SentencePiece model, or a dataset or run that holds one; None trains one on this catalog.
        vocab_size: pieces of a tokenizer trained here.
        max_tokens: most tokens of each text feature, in the order in which the model concatenates them; features that
            the file lacks are passed over. RecBole's `movie_title` counts as `title`. Empty makes a dataset without
            text, for models of item ids; it needs no `.item` file, its catalog then being the items that occur.
        ties: order of a user's interactions at the same time: 'file' or 'random', see `TimeOrder`.
        seed: of the random order.

    Returns:
        The dataset's manifest.

    Raises:
        InputError: a file is missing or malformed; the message names file, line and column. Nothing is written.
    """
    time_order = TimeOrder(ties, seed)
    with in_one_line(output, "nothing was written"):
        target = output_folder.prepare(Path(output))
        inputs = _inputs(Path(source), max_tokens)
        text_tokenizer = None if tokenizer_from is None else tokenizer.load(Path(tokenizer_from))
        identities = {path: files.identity_of(path) for path in inputs}
        records = [dataset_writer.input_record(path) for path in inputs]
        if len(inputs) > 1:
            item_ids, texts, rejected_items = read_items(inputs[1], max_tokens)
        else:
            item_ids, texts, rejected_items = _bought_items(inputs[0]), {}, {}
        interactions, time_order, rejected = _read_interactions(inputs[0], item_ids, time_order)
        files.check_unchanged(identities)
        text_tokenizer, tokens = _tokenized(texts, text_tokenizer, vocab_size, max_tokens)
        items = _items_table(item_ids, texts, tokens)
        manifest = dataset_writer.write_dataset(
            target,
            [interactions],
            [padding_row(items.schema), items],
            b"" if text_tokenizer is None else text_tokenizer.model,
            features={name: max_tokens[name] for name in texts},
            vocab_size=0 if text_tokenizer is None else text_tokenizer.vocab_size,
            parameters={"pipeline": "recbole", "vocab_size": vocab_size, "trained_tokenizer": tokenizer_from is None},
            inputs=records,
            rejected=rejected | rejected_items,
            time_order=time_order,
        )
    _log(output, manifest, texts)
    return manifest


def _log(output: str, manifest: Mapping[str, Any], texts: Mapping[str, list[str]]) -> None:
    """Says what the dataset holds, and what it lacks."""
    counts = manifest["counts"]
    logging.info(
        "%s: %d users, %d items, %d interactions", output, *(counts[n] for n in ("users", "items", "interactions"))
    )
    for name, column in texts.items():
        if unknown := sum(not text.strip() for text in column):
            logging.info("%s: %d items without %s, kept as %r", output, unknown, name, tokenizer.UNKNOWN)
    for reason, number in manifest["rejected"].items():
        logging.warning("%s: %d rows left out: %s", output, number, reason)
    log_ties(output, manifest["ties"])
