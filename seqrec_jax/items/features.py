"""The features of an item: how each is read of a dataset, recorded, and made into an embedding.

A feature is a frozen dataclass in a file of its own, named in FEATURES. Its `role` says what becomes of its embedding:
those that are `projected` are concatenated and mapped to the model's width together, those that are `added` have that
width and are summed up, and those that are `appended` are columns after it, scored as they are.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

import jax
import numpy as np
import pyarrow as pa

from seqrec_jax.data.store import Dataset
from seqrec_jax.describe import check_types
from seqrec_jax.errors import InputError
from seqrec_jax.items.item_id import ItemId
from seqrec_jax.items.lexical import Lexical
from seqrec_jax.items.text import TextTokens
from seqrec_jax.items.tokenizer import Tokenizer

PROJECTED, ADDED, APPENDED = "projected", "added", "appended"

ReadFeatures = dict[str, np.ndarray]
"""Per feature an array [n_items + 1, ...]; row 0 is padding."""


class ItemFeature(Protocol):
    """A feature of items, by its kind in FEATURES, its role, and its name among what is read and among the tables.

    `architecture` is the model's, whose fields say how wide an embedding is and how much of it is dropped in training.
    """

    kind: ClassVar[str]
    role: ClassVar[str]

    @property
    def name(self) -> str:
        """Of its array among those that are read, and of its table among the parameters."""

    def width(self, architecture: Any) -> int:
        """Columns of its embedding."""

    def table_rows(self) -> int:
        """Rows of its trained table, whose columns are `width`; 0 where it has none."""

    def read(self, data: Dataset, read: ReadFeatures, starts: np.ndarray | None) -> np.ndarray:
        """The feature of every item of a dataset: [n_items + 1, ...], given those before it.

        `starts` [catalogs + 1] int64 says where `data` joins several catalogs: items starts[i] + 1 to starts[i + 1] are
        those of catalog i.
        """

    def read_new(self, items: pa.Table, read: ReadFeatures, tokenizer: Tokenizer, known: ReadFeatures) -> np.ndarray:
        """The feature of items of a table of ids and texts: [n, ...], to join a catalog whose features are known."""

    def embed(self, table: Any, values: jax.Array, architecture: Any, key: Any, axis: Any) -> jax.Array:
        """Embeds items, of which the feature was read: [items, ...] -> [items, width].

        `key` is of the dropout, None for none; `axis` of the mesh, over which the table's columns are divided, as
        tables.look_up has it.
        """


FEATURES: dict[str, type] = {feature.kind: feature for feature in (TextTokens, ItemId, Lexical)}


def read_features(features: Sequence[ItemFeature], data: Dataset, starts: np.ndarray | None = None) -> ReadFeatures:
    """What a model reads of a catalog: per feature [n_items + 1, ...]; see ItemFeature.read for the arguments.

    Raises:
        InputError: The dataset has none of the model's text features.
    """
    texts = [feature for feature in features if isinstance(feature, TextTokens)]
    if texts and not any(feature.is_in(data) for feature in texts):
        names = ", ".join(feature.name for feature in texts)
        raise InputError(f"{data.folder}: has none of the text features that the model reads, {names}")
    read: ReadFeatures = {}
    for feature in features:
        read[feature.name] = feature.read(data, read, starts)
    return read


def to_json(features: Sequence[ItemFeature]) -> list[dict[str, Any]]:
    """The features as JSON objects, in their order."""
    return [{"kind": feature.kind} | dataclasses.asdict(feature) for feature in features]  # type: ignore[call-overload]


def from_json(records: Sequence[Mapping[str, Any]]) -> tuple[ItemFeature, ...]:
    """The inverse of to_json; of what is none an InputError, LookupError, TypeError, ValueError or AttributeError."""
    features = tuple(FEATURES[record["kind"]](**{k: v for k, v in record.items() if k != "kind"}) for record in records)
    for feature in features:
        check_types(feature)
    return features
