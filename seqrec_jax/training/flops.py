"""What a run costs in the reference's unit."""

from typing import NamedTuple

from seqrec_jax.model.recommender import Architecture


class Shape(NamedTuple):
    """What of an Architecture costs multiply-adds; see there."""

    n_layers: int
    n_heads: int
    hidden_size: int
    inner_size: int
    embedding_size: int | None
    max_length: int


def forward_multiply_adds(architecture: Architecture | Shape, n_features: int, batch_targets: int) -> int:
    """The reference's `forward_flops`: thop's count for one batch of prefixes padded to max_length.

    thop counts multiply-adds of linear maps, and a few operations of LayerNorm and softmax.

    Args:
        architecture: of the model.
        n_features: text features.
        batch_targets: prefixes of a batch.
    """
    a = architecture
    hidden, length = a.hidden_size, a.max_length
    item = n_features * (a.embedding_size or hidden) * hidden
    block = 4 * hidden**2 + 2 * hidden * a.inner_size + 8 * hidden + a.n_heads * (3 * length - 1)
    return batch_targets * length * (item + 4 * hidden + a.n_layers * block)


def total_multiply_adds(
    architecture: Architecture | Shape, n_features: int, batch_targets: int, n_negatives: int, shared: bool
) -> int:
    """The reference's `total_flops`: forward_multiply_adds and the items that the loss encodes."""
    a = architecture
    item = n_features * (a.embedding_size or a.hidden_size) * a.hidden_size
    negatives = n_negatives if shared else n_negatives * batch_targets
    return forward_multiply_adds(a, n_features, batch_targets) + (batch_targets + negatives) * item
