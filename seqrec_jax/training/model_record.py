"""What a checkpoint says of the model that it holds."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from seqrec_jax.errors import InputError
from seqrec_jax.model.item_encoder import ITEM_ID
from seqrec_jax.model.recommender import Architecture

VERSION = 1


class ModelRecord(NamedTuple):
    """What a checkpoint says of its model.

    Attributes:
        architecture: the recommender's shape.
        vocab_sizes: rows of each feature's token table, in the order of concatenation, and of the items' under
            `item_id`.
        max_tokens: most tokens that the model reads of each text feature.
        tokenizer_sha256: of the SentencePiece model whose tokens it knows.
        catalog_sha256: of the catalog whose items it has rows for; None where it has none.
        appended: text features that have no token table of their own, and the most tokens of each: they are read as
            more tokens of the first feature.
    """

    architecture: Architecture
    vocab_sizes: dict[str, int]
    max_tokens: dict[str, int]
    tokenizer_sha256: str
    catalog_sha256: str | None = None
    appended: Mapping[str, int] = {}

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; the features are a list, as their order matters."""
        return {
            "version": VERSION,
            "architecture": dataclasses.asdict(self.architecture),
            "features": [
                {"name": name, "vocab_size": self.vocab_sizes[name], "max_tokens": most}
                for name, most in self.max_tokens.items()
            ],
            "tokenizer_sha256": self.tokenizer_sha256,
            "item_rows": self.vocab_sizes.get(ITEM_ID),
            "catalog_sha256": self.catalog_sha256,
            "appended": dict(self.appended),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "ModelRecord":
        """The inverse of to_json.

        Raises:
            InputError: a newer version wrote it.
        """
        known = {field.name for field in dataclasses.fields(Architecture)}
        if record.get("version", 1) > VERSION or not record["architecture"].keys() <= known:
            raise InputError("the checkpoint was written by a newer version of seqrec_jax; install that to read it")
        features, item_rows = record["features"], record.get("item_rows")
        return cls(
            Architecture(**record["architecture"]),
            {feature["name"]: feature["vocab_size"] for feature in features}
            | ({} if item_rows is None else {ITEM_ID: item_rows}),
            {feature["name"]: feature["max_tokens"] for feature in features},
            record["tokenizer_sha256"],
            record.get("catalog_sha256"),
            record.get("appended", {}),
        )
