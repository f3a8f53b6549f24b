"""Parameters under the names and in the layouts of the reference's PyTorch model (SRT's SASRecF2), and back."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from seqrec_jax.model.item_encoder import ITEM_ID

TOKEN_TABLE = "feature_embed_layer.token_seq_embedding_table.item"
BLOCK_PARTS = {
    "multi_head_attention.query": "attention/query",
    "multi_head_attention.key": "attention/key",
    "multi_head_attention.value": "attention/value",
    "multi_head_attention.dense": "attention/output",
    "multi_head_attention.LayerNorm": "attention/norm",
    "feed_forward.dense_1": "feed_forward/inner",
    "feed_forward.dense_2": "feed_forward/output",
    "feed_forward.LayerNorm": "feed_forward/norm",
}
PARTS = {
    "adapter_layer": "item_encoder/projection",
    "LayerNorm": "norm",
    "lexical.query": "lexical/query",
    "lexical.key": "lexical/key",
}
WHOLE = {
    "position_embedding.weight": "position_table",
    "item_embedding.weight": f"item_encoder/tables/{ITEM_ID}",
    "repeat_offset": "repeat",
    "lexical.recency": "lexical/recency",
    "lexical.gate": "lexical/gate",
    "lexical.scale": "lexical/scale",
    "lexical.trust": "lexical/trust",
}
"""Arrays under a name of their own: RecBole's for a table of items. The repeat offset and the lexical head have no
counterpart there."""


def our_name(torch_name: str, features: Sequence[str]) -> str | None:
    """The reference's parameter name to ours; None where it is not one of a recommender's.

    Args:
        torch_name: such as `trm_encoder.layer.0.feed_forward.dense_1.weight`.
        features: text features in the order of their tables.
    """
    if torch_name in WHOLE:
        return WHOLE[torch_name]
    if match := re.fullmatch(rf"{re.escape(TOKEN_TABLE)}\.(\d+)\.weight", torch_name):
        ordinal = int(match[1])
        return f"item_encoder/tables/{features[ordinal]}" if ordinal < len(features) else None
    module, _, kind = torch_name.rpartition(".")
    if match := re.fullmatch(r"trm_encoder\.layer\.(\d+)\.(.+)", module):
        part = BLOCK_PARTS.get(match[2])
        ours = None if part is None else f"blocks/{match[1]}/{part}"
    else:
        ours = PARTS.get(module)
    if ours is None or kind not in ("weight", "bias"):
        return None
    if kind == "bias":
        return f"{ours}/bias"
    return f"{ours}/scale" if ours.endswith("norm") else f"{ours}/kernel"


def torch_name(name: str, features: Sequence[str]) -> str:
    """The inverse of our_name; a model of texts and rows has its tables under the same names as one of either."""
    name = re.sub(r"^item_encoder/(text|item_id)/", "item_encoder/", name)
    for torch, ours in WHOLE.items():
        if name == ours:
            return torch
    if name.startswith("item_encoder/tables/"):
        return f"{TOKEN_TABLE}.{features.index(name.rpartition('/')[2])}.weight"
    module, _, kind = name.rpartition("/")
    suffix = "bias" if kind == "bias" else "weight"
    if match := re.fullmatch(r"blocks/(\d+)/(.+)", module):
        parts = {ours: torch for torch, ours in BLOCK_PARTS.items()}
        return f"trm_encoder.layer.{match[1]}.{parts[match[2]]}.{suffix}"
    return f"{next(torch for torch, ours in PARTS.items() if ours == module)}.{suffix}"


def _turned(name: str, array: np.ndarray) -> np.ndarray:
    """PyTorch's linear maps are stored [out, in], ours [in, out]."""
    return np.ascontiguousarray(array.T) if name.endswith("/kernel") else array


def to_torch(arrays: Mapping[str, np.ndarray], features: Sequence[str]) -> dict[str, np.ndarray]:
    """Our arrays by our names to the reference's by its names."""
    return {torch_name(name, features): _turned(name, array) for name, array in arrays.items()}


def from_torch(arrays: Mapping[str, np.ndarray], features: Sequence[str]) -> tuple[dict[str, np.ndarray], list[str]]:
    """The inverse of to_torch, and the names that are not a recommender's."""
    ours, unknown = {}, []
    for theirs, array in arrays.items():
        name = our_name(theirs, features)
        if name is None:
            unknown.append(theirs)
        else:
            ours[name] = _turned(name, array)
    return ours, unknown
