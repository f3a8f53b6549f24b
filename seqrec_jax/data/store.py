"""A dataset folder opened by memory map."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from seqrec_jax.data import format
from seqrec_jax.data.arrow import read_table
from seqrec_jax.errors import InputError, in_short

PADDED_AT_MOST, PADDED_TIMES = 1 << 30, 32  # bytes of a catalog's tokens padded to the longest: so many, or of its file


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Concatenated ranges starts[i] .. starts[i] + lengths[i]: [sum of lengths] int64."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)


class Items(Protocol):
    """Items of all users, one user's after the other's."""

    def take(self, indices: np.ndarray) -> np.ndarray:
        """Items at flat positions: [n] int64 -> [n] int32."""


@dataclass(frozen=True)
class FlatItems:
    """All users' items, one after the other, in the memory-mapped record batches of the file."""

    file: np.ndarray  # [bytes / 4] int32, the whole file
    starts: np.ndarray  # [batches] int64, flat position of each batch's first item
    shifts: np.ndarray  # [batches] int64, what to add to a flat position for its place in `file`

    @staticmethod
    def of(file: pa.Buffer, chunks: list[pa.LargeListArray]) -> "FlatItems":
        """The items of a list column whose buffers lie in a memory-mapped file."""
        lengths = [len(chunk.values) for chunk in chunks]
        starts = np.concatenate([[0], np.cumsum(lengths[:-1])]).astype(np.int64)
        places = [chunk.values.buffers()[1].address - file.address + 4 * chunk.values.offset for chunk in chunks]
        for place, length in zip(places, lengths, strict=True):
            if place % 4 or not 0 <= place <= place + 4 * length <= file.size:
                raise ValueError("its items do not lie in it as they are")
        places = [place // 4 for place in places]
        return FlatItems(np.frombuffer(file, np.int32, file.size // 4), starts, np.array(places, np.int64) - starts)

    def take(self, indices: np.ndarray) -> np.ndarray:
        """Items at flat positions: [n] int64 -> [n] int32."""
        batch = np.searchsorted(self.starts, indices, side="right") - 1 if len(self.starts) > 1 else 0
        return self.file[indices + self.shifts[batch]]


@dataclass(frozen=True)
class Dataset:
    """A dataset folder, memory-mapped: who chose what and when, and the catalog."""

    folder: Path
    manifest: dict[str, Any]
    offsets: np.ndarray  # [users + 1] int64; user u's items are the flat positions offsets[u] to offsets[u + 1]
    items: Items  # every user's items in time order
    interactions_table: pa.Table  # a row per user: user_id, items, timestamps
    items_table: pa.Table  # a row per item, row 0 being padding: item_id, texts, tokens

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @property
    def n_users(self) -> int:
        """Users with at least one interaction."""
        return len(self.offsets) - 1

    @property
    def n_items(self) -> int:
        """Items of the catalog, without the padding row; item rows run from 1 to n_items."""
        return self.items_table.num_rows - 1

    @property
    def n_interactions(self) -> int:
        """Interactions of all users."""
        return int(self.offsets[-1])

    @property
    def features(self) -> tuple[str, ...]:
        """Text features, in the order in which the model concatenates them."""
        return tuple(feature["name"] for feature in self.manifest["features"])

    @property
    def vocab_size(self) -> int:
        """Token ids lie in [0, vocab_size); 0 is padding."""
        return self.manifest["tokenizer"]["vocab_size"]

    @property
    def tokenizer_sha256(self) -> str:
        """SHA-256 of the SentencePiece model that made the tokens."""
        return self.manifest["tokenizer"]["sha256"]

    @property
    def ties(self) -> dict[str, Any]:
        """The "order" of a user's interactions at one time, and how many "neighbours", "of" all, have the same.

        A union's order is 'file', 'random' or, where its datasets differ, both joined by +.
        """
        return self.manifest["ties"]

    def catalog_sha256(self) -> str:
        """SHA-256 of the item ids in the order of their rows: equal for the same catalog, whatever its texts."""
        digest = hashlib.sha256()
        for chunk in self.items_table["item_id"].chunks:
            digest.update("\0".join(chunk.to_pylist()).encode() + b"\0")
        return digest.hexdigest()

    def digest(self) -> str:
        """SHA-256 over the checksums of all its files: equal for datasets of the same bytes."""
        return hashlib.sha256(json.dumps(self.manifest["checksums"], sort_keys=True).encode()).hexdigest()

    @cached_property
    def checked(self) -> Self:
        """The dataset itself, once its files have their checksums and all values lie where they have to.

        Else an InputError. What trains, evaluates or recommends asks for this, as values are used as places in memory.
        It reads the files once, and whole.
        """
        try:
            format.verify_checksums(self.folder, self.manifest)
            self.check_values()
        except OSError as error:
            raise InputError(f"{self.folder}: cannot be read ({in_short(error)})") from error
        return self

    def check_values(self) -> None:
        """Refuses, by an InputError, values that are out of range or do not fit one another, whatever the checksums."""
        try:
            for table in (self.interactions_table, self.items_table):
                table.validate(full=True)
            self._check_counts()
            self._check_interactions()
            self._check_items()
            for feature in self.manifest["features"]:
                self._check_feature(feature["name"], feature["max_tokens"])
        except (pa.ArrowException, ValueError, KeyError) as error:
            raise InputError(f"{self.folder}: is damaged ({in_short(error)}); {format.REMEDY}") from error

    def _check_counts(self) -> None:
        """Raises a ValueError where the manifest says of the files what is not so."""
        counts = {"users": self.n_users, "items": self.n_items, "interactions": self.n_interactions}
        if self.manifest["counts"] != counts:
            raise ValueError(f"it holds {counts}, where its manifest has {self.manifest['counts']}")
        if self.tokenizer_sha256 != self.manifest["checksums"][format.TOKENIZER]:
            raise ValueError("its manifest has two checksums of the tokenizer")
        if self.vocab_size > self.manifest["sizes"][format.TOKENIZER] + 1:
            raise ValueError(f"a vocabulary of {self.vocab_size:,} is more than its tokenizer can hold")

    def _check_interactions(self) -> None:
        """Raises a ValueError unless each user has items that exist, and as many times, in their order."""
        interactions = self.interactions_table
        _check_ids(interactions["user_id"], "user_id")
        _check_range("items", [chunk.values for chunk in interactions["items"].chunks], 1, self.n_items)
        for items, times in zip(interactions["items"].chunks, interactions["timestamps"].chunks, strict=True):
            if not len(items):
                continue
            offsets = _offsets(items)
            if items.null_count or times.null_count or times.values.null_count:
                raise ValueError("a user has no items, or no times")
            if not np.array_equal(offsets, _offsets(times)):
                raise ValueError("users have not as many times as items")
            moments = _numbers(times.values, np.int64)[: offsets[-1]]
            falls = moments[1:] < moments[:-1]
            falls[offsets[1:-1] - 1] = False  # From one user to the next.
            if falls.any():
                raise ValueError("a user's timestamps are not ascending")

    def _check_items(self) -> None:
        """Raises a ValueError unless the ids of items are texts, each once, that a digest can tell apart."""
        ids = self.items_table["item_id"]
        if ids.type != pa.string() or ids[0].as_py() != "":
            raise ValueError("item_id is no column of texts whose first is empty, for padding")
        _check_ids(ids, "item_id")
        if pc.any(pc.match_substring(ids, "\0")).as_py():
            raise ValueError("item_id holds a NUL character")
        known = {format.tokens_column(name) for name in self.features}
        for name in self.items_table.column_names:
            if name.endswith(format.tokens_column("")) and name not in known:
                raise ValueError(f"its manifest knows no feature of column {name!r}")

    def _check_feature(self, name: str, max_tokens: int) -> None:
        """Raises a ValueError unless a feature has texts and, of each item but padding, tokens of the vocabulary."""
        column = format.tokens_column(name)
        texts, tokens = self.items_table[name], self.items_table[column]
        if texts.type != pa.string() or tokens.type != pa.list_(pa.int32()) or tokens.null_count:
            raise ValueError(f"{name} and {column} are no texts and tokens")
        _check_range(column, [chunk.values for chunk in tokens.chunks], 1, self.vocab_size - 1)
        longest = pc.max(pc.list_value_length(tokens)).as_py()
        if longest > max_tokens or tokens[0].as_py():
            raise ValueError(f"{column} has more tokens than the manifest says, or padding has some")
        most = max(PADDED_AT_MOST, PADDED_TIMES * self.manifest["sizes"][format.ITEMS])
        if len(tokens) * longest * np.int32().nbytes > most:
            raise ValueError(f"{column} of {len(tokens):,} items, padded to {longest:,}, are above {most:,} bytes")

    def user_items(self, user: int) -> np.ndarray:
        """Item rows of one user in time order: [n] int32."""
        return self.items.take(np.arange(self.offsets[user], self.offsets[user + 1]))

    def tokens(self, feature: str, max_tokens: int | None = None) -> np.ndarray:
        """Token ids of every item, padded with 0: [n_items + 1, max_tokens] int32; row 0 is padding.

        Texts of more than `max_tokens` are cut; None keeps what the dataset holds.
        """
        lists = self.items_table[format.tokens_column(feature)].combine_chunks()
        offsets, values = lists.offsets.to_numpy().astype(np.int64), lists.values.to_numpy()
        lengths = np.diff(offsets)
        if max_tokens is not None:
            lengths = np.minimum(lengths, max_tokens)
        padded = np.zeros((len(lists), max(1, int(lengths.max(initial=1)))), np.int32)
        cells = np.repeat(np.arange(len(lists)) * padded.shape[1], lengths) + ranges(np.zeros_like(lengths), lengths)
        padded.reshape(-1)[cells] = values[ranges(offsets[:-1], lengths)]
        return padded

    def text(self, items: np.ndarray, feature: str) -> list[str]:
        """The raw text of a feature for item rows [n]."""
        return [text or "" for text in self.items_table[feature].take(pa.array(items)).to_pylist()]


def _check_range(name: str, chunks: Sequence[pa.Array], least: int, most: int) -> None:
    """Raises a ValueError unless all numbers lie from `least` to `most`."""
    for chunk in chunks:
        found = pc.min_max(chunk).as_py()
        if chunk.null_count or (len(chunk) and not least <= found["min"] <= found["max"] <= most):
            raise ValueError(f"{name} are not all of {least} to {most}")


def _check_ids(ids: pa.ChunkedArray, name: str) -> None:
    """Raises a ValueError where an id is missing, or there twice."""
    if ids.null_count or pc.count_distinct(ids).as_py() < len(ids):
        raise ValueError(f"a {name} is missing, or is there twice")


def _numbers(array: pa.Array, kind: type[np.int64]) -> np.ndarray:
    """An array of numbers, without `to_numpy`, which imports pandas: a fifth of a second and 50 MB."""
    if not len(array):
        return np.zeros(0, kind)
    return np.frombuffer(array.buffers()[1], kind, len(array), array.offset * kind().nbytes)


def _offsets(lists: pa.LargeListArray) -> np.ndarray:
    """A list column's offsets: [lists + 1] int64; a ValueError unless its lists hold all values, one after another."""
    offsets = np.frombuffer(lists.buffers()[1], np.int64, len(lists) + 1, lists.offset * np.int64().nbytes)
    if offsets[0] != 0 or offsets[-1] != len(lists.values) or (offsets[1:] < offsets[:-1]).any():
        raise ValueError("lists do not follow one another")
    return offsets


def open_dataset(folder: str | Path, verify: bool = False) -> Dataset:
    """Opens a folder that `etl` made, by memory map: milliseconds, and no more memory than what is touched later.

    `verify` reads every file once and compares checksums and values. An InputError where the folder is missing,
    incomplete, altered or of another schema.
    """
    folder = Path(folder)
    try:
        manifest = format.read_manifest(folder)
        file = pa.memory_map(str(folder / format.INTERACTIONS)).read_buffer()
        interactions = read_table(file)
        items_table = read_table(pa.memory_map(str(folder / format.ITEMS)).read_buffer())
        for field, kind in format.INTERACTION_FIELDS.items():
            if field not in interactions.schema.names or interactions.schema.field(field).type != kind:
                raise ValueError(f"column {field!r} of type {kind} is missing")
        if items_table.num_rows < 2 or "item_id" not in items_table.schema.names:
            raise ValueError("it has no items")
        interactions.validate()
        items_table.validate()
        lists = [chunk for chunk in interactions["items"].chunks if len(chunk)]
        parts = [_offsets(chunk) for chunk in lists]
        if not lists or any((part[1:] <= part[:-1]).any() for part in parts):
            raise ValueError("a user has no interactions")
        items = FlatItems.of(file, lists)
        offsets = parts[0]
        if len(parts) > 1:
            shifted = [part[1:] + start for part, start in zip(parts, items.starts, strict=True)]
            offsets = np.concatenate([np.zeros(1, np.int64), *shifted])
    except (pa.ArrowException, ValueError) as error:
        raise InputError(f"{folder}: is damaged ({in_short(error)}); {format.REMEDY}") from error
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({in_short(error)})") from error
    dataset = Dataset(folder, manifest, offsets, items, interactions, items_table)
    return dataset.checked if verify else dataset
