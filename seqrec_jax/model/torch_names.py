"""Parameters under the names and in the layouts of the reference's PyTorch model (SRT's SASRecF2), and back."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from seqrec_jax.items.item_id import ITEM_ID

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
    "lexical.query": "terms/lexical/query",
    "lexical.key": "terms/lexical/key",
}
WHOLE = {
    "position_embedding.weight": "position_table",
    "item_embedding.weight": f"item_encoder/tables/{ITEM_ID}",
    "repeat_offset": "terms/repeat/offset",
    "lexical.recency": "terms/lexical/recency",
    "lexical.gate": "terms/lexical/gate",
    "lexical.scale": "terms/lexical/scale",
    "lexical.trust": "terms/lexical/trust",
}
"""Arrays under a name of their own: RecBole's for a table of items. Repeat offset and lexical term have none there."""
OUR_PARTS, OUR_WHOLE = ({ours: theirs for theirs, ours in of.items()} for of in (PARTS | BLOCK_PARTS, WHOLE))


def our_name(theirs: str, features: Sequence[str]) -> str | None:
    """Our name of a parameter by the reference's, with the text features in the order of their tables; or None."""
    module, _, kind = theirs.rpartition(".")
    if theirs in WHOLE:
        return WHOLE[theirs]
    if match := re.fullmatch(rf"{re.escape(TOKEN_TABLE)}\.(\d{{1,6}})", module):
        return f"item_encoder/tables/{features[int(match[1])]}" if int(match[1]) < len(features) else None
    match = re.fullmatch(r"trm_encoder\.layer\.(\d+)\.(.+)", module)
    part = BLOCK_PARTS.get(match[2]) if match else PARTS.get(module)
    if part is None or kind not in ("weight", "bias"):
        return None
    ours = f"blocks/{match[1]}/{part}" if match else part
    return f"{ours}/{'bias' if kind == 'bias' else 'scale' if part.endswith('norm') else 'kernel'}"


def torch_name(name: str, features: Sequence[str]) -> str:
    """The inverse of our_name."""
    if name in OUR_WHOLE:
        return OUR_WHOLE[name]
    if name.startswith("item_encoder/tables/"):
        return f"{TOKEN_TABLE}.{features.index(name.rpartition('/')[2])}.weight"
    module, _, kind = name.rpartition("/")
    suffix = "bias" if kind == "bias" else "weight"
    if module.startswith("blocks/"):
        _, number, part = module.split("/", 2)
        return f"trm_encoder.layer.{number}.{OUR_PARTS[part]}.{suffix}"
    return f"{OUR_PARTS[module]}.{suffix}"


def _turned(name: str, array: np.ndarray) -> np.ndarray:
    """PyTorch's linear maps are stored [out, in], ours [in, out]."""
    return np.ascontiguousarray(array.T) if name.endswith("/kernel") else array


def to_torch(arrays: Mapping[str, np.ndarray], features: Sequence[str]) -> dict[str, np.ndarray]:
    """Our arrays by our names to the reference's by its names."""
    return {torch_name(name, features): _turned(name, array) for name, array in arrays.items()}


def from_torch(arrays: Mapping[str, np.ndarray], features: Sequence[str]) -> tuple[dict[str, np.ndarray], list[str]]:
    """The inverse of to_torch, and the names that are not a recommender's."""
    names = {theirs: our_name(theirs, features) for theirs in arrays}
    ours = {name: _turned(name, arrays[theirs]) for theirs, name in names.items() if name is not None}
    return ours, [theirs for theirs, name in names.items() if name is None]
