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
from seqrec_jax.errors import InputError


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
        places = [(chunk.values.buffers()[1].address - file.address) // 4 + chunk.values.offset for chunk in chunks]
        for place, length in zip(places, lengths, strict=True):
            if not 0 <= place <= place + length <= file.size // 4:
                raise ValueError("its items do not lie in it as they are, perhaps packed")
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
        """The dataset itself, once all its values have been read and lie where they have to; else an InputError.

        What trains, evaluates or recommends asks for this, as values are used as places in memory. It takes a second
        for a few hundred million interactions.
        """
        try:
            for table in (self.interactions_table, self.items_table):
                table.validate(full=True)
            self._check_values()
        except (pa.ArrowInvalid, ValueError, KeyError) as error:
            raise InputError(f"{self.folder}: is damaged ({error}); {format.REMEDY}") from error
        return self

    def _check_values(self) -> None:
        """Raises a ValueError that names what is out of range, or a KeyError a column that is missing."""
        counts = {"users": self.n_users, "items": self.n_items, "interactions": self.n_interactions}
        if self.manifest["counts"] != counts:
            raise ValueError(f"it holds {counts}, where its manifest has {self.manifest['counts']}")
        interactions, items = self.interactions_table, self.items_table
        _check_range("items", [chunk.values for chunk in interactions["items"].chunks], 1, self.n_items)
        lengths = (pc.list_value_length(interactions[name]) for name in ("items", "timestamps"))
        nulls = sum(interactions[name].null_count for name in format.INTERACTION_FIELDS)
        if nulls or not next(lengths).equals(next(lengths)):
            raise ValueError("users, items and times are not as many")
        if items["item_id"].type != pa.string() or items["item_id"].null_count or items["item_id"][0].as_py():
            raise ValueError("item_id is no column of texts whose first is empty, for padding")
        for name in self.features:
            if items[name].type != pa.string() or items[format.tokens_column(name)].type != pa.list_(pa.int32()):
                raise ValueError(f"{name} and {format.tokens_column(name)} are no texts and tokens")
            chunks = [chunk.values for chunk in items[format.tokens_column(name)].chunks]
            _check_range(format.tokens_column(name), chunks, 1, self.vocab_size - 1)

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
        column = np.arange(padded.shape[1])
        held = column < lengths[:, None]
        padded[held] = values[(offsets[:-1, None] + column)[held]]
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


def _offsets(lists: pa.LargeListArray) -> np.ndarray:
    """A list column's offsets, without `to_numpy`, which imports pandas: a fifth of a second and 50 MB."""
    return np.frombuffer(lists.buffers()[1], np.int64, len(lists) + 1, lists.offset * np.int64().nbytes)


def open_dataset(folder: str | Path, verify: bool = False) -> Dataset:
    """Opens a folder that `etl` made, by memory map: milliseconds, and no more memory than what is touched later.

    `verify` reads every file once and compares checksums and values. An InputError where the folder is missing,
    incomplete, altered or of another schema.
    """
    folder = Path(folder)
    manifest = format.read_manifest(folder)
    if verify:
        format.verify_checksums(folder, manifest)
    try:
        file = pa.memory_map(str(folder / format.INTERACTIONS)).read_buffer()
        interactions = pa.ipc.open_file(file).read_all()
        items_table = pa.ipc.open_file(pa.memory_map(str(folder / format.ITEMS))).read_all()
        for field, kind in format.INTERACTION_FIELDS.items():
            if field not in interactions.schema.names or interactions.schema.field(field).type != kind:
                raise ValueError(f"column {field!r} of type {kind} is missing")
        if items_table.num_rows < 2 or "item_id" not in items_table.schema.names:
            raise ValueError("it has no items")
        interactions.validate()
        items_table.validate()
        lists = [chunk for chunk in interactions["items"].chunks if len(chunk.values)]
        if not lists:
            raise ValueError("it has no interactions")
        items = FlatItems.of(file, lists)
        offsets = _offsets(lists[0])
        if len(lists) > 1:
            parts = [_offsets(chunk)[1:] + start for chunk, start in zip(lists, items.starts, strict=True)]
            offsets = np.concatenate([np.zeros(1, np.int64), *parts])
        if offsets[0] != 0 or (np.diff(offsets) < 0).any() or len(offsets) != interactions.num_rows + 1:
            raise ValueError("the users' lists do not follow one another")
    except (pa.ArrowException, ValueError) as error:
        raise InputError(f"{folder}: is damaged ({error}); {format.REMEDY}") from error
    dataset = Dataset(folder, manifest, offsets, items, interactions, items_table)
    return dataset.checked if verify else dataset
