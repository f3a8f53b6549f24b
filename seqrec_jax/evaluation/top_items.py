"""The best items for histories."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from seqrec_jax.data.transitions import Transitions
from seqrec_jax.evaluation.ranking import encode_catalog, raised_by
from seqrec_jax.model.recommender import items_read

HISTORIES_PER_BLOCK = 64


def top_items(
    graph: nnx.GraphDef,
    params: nnx.State,
    features: Mapping[str, jax.Array | np.ndarray],
    histories: Sequence[np.ndarray],
    *,
    k: int,
    max_length: int,
    exclude_seen: bool,
    transitions: Transitions | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k items of highest score for each history.

    Args:
        graph: of the recommender.
        params: of the recommender.
        features: what the model reads of the catalog.
        histories: item rows in time order, each at least one; the last max_length are read.
        k: items for each.
        max_length: of the model.
        exclude_seen: leave the history's own items out.
        transitions: which a model with a weight for them adds to its scores; None for none.

    Returns:
        Item rows [histories, k] int32, best first, and their scores [histories, k] float32; where fewer than k items
        are left, item 0 with score -inf.
    """
    catalog = encode_catalog(graph)(params, features)
    k = min(k, catalog.shape[0] - 1)

    @jax.jit
    def best(params, catalog, inputs, lengths, hidden_items, followers):
        columns = jnp.arange(inputs.shape[1])
        segments = (columns < lengths[:, None]).astype(jnp.int32)
        positions = jnp.broadcast_to(columns, inputs.shape)
        model, row = nnx.merge(graph, params), jnp.arange(len(inputs))[:, None]
        hidden = model.encode_sequences(catalog[inputs], segments, positions)
        scores = hidden[jnp.arange(len(inputs)), lengths - 1] @ catalog.T
        last = jnp.arange(len(inputs)) * inputs.shape[1] + lengths - 1
        raised = raised_by(model, *items_read(inputs, positions, last), followers)
        if raised is not None:
            scores = scores.at[row, raised.items].add(raised.amounts)
        scores = scores.at[row, hidden_items].set(-jnp.inf)
        values, items = jax.lax.top_k(scores, k)
        return jnp.where(jnp.isfinite(values), items, 0), values

    items, scores = [], []
    for first in range(0, len(histories), HISTORIES_PER_BLOCK):
        block = histories[first : first + HISTORIES_PER_BLOCK]
        inputs = np.zeros((len(block), max_length), np.int32)
        hidden_items = np.zeros((len(block), 1 + max(map(len, block)) * exclude_seen), np.int32)
        for row, history in enumerate(block):
            recent = history[-max_length:]
            inputs[row, : len(recent)] = recent
            if exclude_seen:
                hidden_items[row, : len(history)] = history
        lengths = np.array([min(len(history), max_length) for history in block], np.int32)
        read = np.concatenate([history[-max_length:] for history in block])
        followers = None if transitions is None else transitions.followers(read, lengths)
        block_items, block_scores = best(params, catalog, inputs, lengths, hidden_items, followers)
        items.append(np.asarray(block_items))
        scores.append(np.asarray(block_scores))
    return np.concatenate(items), np.concatenate(scores)
