"""A model's parameters carried into another architecture: with or without rows for the items, or a repeat offset."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from seqrec_jax.model import parameters
from seqrec_jax.model.item_encoder import ITEM_ID
from seqrec_jax.model.recommender import Architecture, build

ENCODER, ROWS = "item_encoder/", "item_encoder/item_id/"


def _canonical(name: str, item_encoder: str) -> str:
    """A parameter's name as in an encoder of text and rows."""
    if not name.startswith(ENCODER) or item_encoder == "text_and_id":
        return name
    part = "text/" if item_encoder == "text" else "item_id/"
    return ENCODER + part + name.removeprefix(ENCODER)


def carry(
    params: nnx.State,
    source: Architecture,
    target: Architecture,
    vocab_sizes: Mapping[str, int],
    seed: int,
    same_catalog: bool = False,
) -> nnx.State:
    """Parameters of the target architecture, each the source's where it has it.

    Rows that are new beside texts begin at 0, so that a model of texts begins as it was; so does a repeat offset.

    Args:
        params: of the source.
        source: their architecture.
        target: of the same sizes.
        vocab_sizes: of the target; see Recommender.
        seed: of what is new besides.
        same_catalog: whether the items' rows are the same items; else they are not carried.
    """
    _, like = build(target, vocab_sizes, seed)
    brought = {_canonical(name, source.item_encoder): array for name, array in parameters.named(params).items()}
    if not same_catalog:
        brought = {name: array for name, array in brought.items() if not name.startswith(ROWS)}
    arrays: dict[str, jax.Array] = {}
    for name, fresh in parameters.named(like).items():
        arrays[name] = brought.get(_canonical(name, target.item_encoder), fresh)
        if arrays[name] is fresh and name.endswith(f"tables/{ITEM_ID}") and target.item_encoder == "text_and_id":
            arrays[name] = jnp.zeros_like(fresh)
    return parameters.from_named(like, arrays)


def renamed(arrays: Mapping[str, jax.Array], source: Architecture, target: Architecture) -> dict[str, jax.Array]:
    """Arrays under the names that the source's parameters have in the target, rows of items left out."""
    names = {name: _canonical(name, source.item_encoder) for name in arrays}
    return {
        _in_encoder(name, target.item_encoder): arrays[old] for old, name in names.items() if not name.startswith(ROWS)
    }


def _in_encoder(name: str, item_encoder: str) -> str:
    """The inverse of _canonical."""
    return name.replace(ENCODER + "text/", ENCODER, 1) if item_encoder == "text" else name
