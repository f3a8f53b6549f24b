"""A dataset folder opened by memory map."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from seqrec_jax.data import format
from seqrec_jax.errors import InputError


@dataclass(frozen=True)
class FlatItems:
    """All users' items, one after the other, in the memory-mapped chunks of the file."""

    chunks: tuple[np.ndarray, ...]
    starts: np.ndarray

    def take(self, indices: np.ndarray) -> np.ndarray:
        """Items at flat positions: [n] int64 -> [n] int32."""
        if len(self.chunks) == 1:
            return self.chunks[0][indices]
        chunk_of = np.searchsorted(self.starts, indices, side="right") - 1
        taken = np.empty(len(indices), np.int32)
        for chunk in np.unique(chunk_of):
            here = chunk_of == chunk
            taken[here] = self.chunks[chunk][indices[here] - self.starts[chunk]]
        return taken


@dataclass(frozen=True)
class Dataset:
    """A dataset folder of DESIGN section 4.

    Attributes:
        folder: where it lies.
        manifest: its parsed manifest.
        offsets: [users + 1] int64; user u's items are the flat positions offsets[u] to offsets[u + 1].
        items: every user's items in time order.
    """

    folder: Path
    manifest: dict[str, Any]
    offsets: np.ndarray
    items: FlatItems
    interactions_table: pa.Table
    items_table: pa.Table

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

    def user_items(self, user: int) -> np.ndarray:
        """Item rows of one user in time order: [n] int32."""
        return self.items.take(np.arange(self.offsets[user], self.offsets[user + 1]))

    def tokens(self, feature: str, max_tokens: int | None = None) -> np.ndarray:
        """Token ids of every item, padded with 0: [n_items + 1, max_tokens] int32; row 0 is padding.

        Args:
            feature: a name of `features`.
            max_tokens: longer texts are cut; None keeps what the dataset holds.
        """
        lists = self.items_table[format.tokens_column(feature)].combine_chunks()
        offsets = lists.offsets.to_numpy().astype(np.int64)
        values = lists.values.to_numpy()
        lengths = np.diff(offsets)
        if max_tokens is not None:
            lengths = np.minimum(lengths, max_tokens)
        padded = np.zeros((len(lists), max(1, int(lengths.max(initial=1)))), np.int32)
        column = np.arange(padded.shape[1])
        held = column[None, :] < lengths[:, None]
        padded[held] = values[(offsets[:-1, None] + column[None, :])[held]]
        return padded

    def text(self, items: np.ndarray, feature: str) -> list[str]:
        """The raw text of a feature for item rows [n]."""
        return [text or "" for text in self.items_table[feature].take(pa.array(items)).to_pylist()]


def open_dataset(folder: str | Path, verify: bool = False) -> Dataset:
    """Opens a dataset folder by memory map: milliseconds, and no more memory than what is touched later.

    Args:
        folder: made by `etl`.
        verify: also read every file once and compare checksums.

    Raises:
        InputError: the folder is missing, incomplete, altered, or of another schema.
    """
    folder = Path(folder)
    manifest = format.read_manifest(folder)
    if verify:
        format.verify_checksums(folder, manifest)
    try:
        interactions = pa.ipc.open_file(pa.memory_map(str(folder / format.INTERACTIONS))).read_all()
        items_table = pa.ipc.open_file(pa.memory_map(str(folder / format.ITEMS))).read_all()
    except pa.ArrowInvalid as error:
        raise InputError(f"{folder}: an Arrow file is damaged ({error}); make the dataset again with etl") from error
    for field, kind in format.INTERACTION_FIELDS.items():
        if field not in interactions.schema.names or interactions.schema.field(field).type != kind:
            raise InputError(f"{folder / format.INTERACTIONS}: column {field!r} of type {kind} is missing")
    lists = interactions["items"].chunks
    chunk_values = tuple(chunk.values.to_numpy() for chunk in lists)
    chunk_starts = np.cumsum([0] + [len(values) for values in chunk_values])[:-1]
    offsets = [np.zeros(1, np.int64)]
    offsets += [chunk.offsets.to_numpy()[1:] + start for chunk, start in zip(lists, chunk_starts, strict=True)]
    return Dataset(
        folder=folder,
        manifest=manifest,
        offsets=lists[0].offsets.to_numpy() if len(lists) == 1 else np.concatenate(offsets),
        items=FlatItems(chunk_values, chunk_starts),
        interactions_table=interactions,
        items_table=items_table,
    )
