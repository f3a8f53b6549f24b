"""The reference's unit of cost: thop's multiply-adds of linear maps, forward, and a few of LayerNorm and softmax."""

from typing import Any


def forward_multiply_adds(architecture: Any, n_features: int, batch_targets: int) -> int:
    """The reference's `forward_flops` of a batch of prefixes padded to max_length; items have `n_features` texts."""
    a = architecture
    hidden, length = a.hidden_size, a.max_length
    item = n_features * (a.embedding_size or hidden) * hidden
    block = 4 * hidden**2 + 2 * hidden * a.inner_size + 8 * hidden + a.n_heads * (3 * length - 1)
    return batch_targets * length * (item + 4 * hidden + a.n_layers * block)


def total_multiply_adds(architecture: Any, n_features: int, batch_targets: int, n_negatives: int, shared: bool) -> int:
    """The reference's `total_flops`: forward_multiply_adds and the items that the loss encodes.

    Those are the targets and `n_negatives` of each one; of the whole batch, where its targets have `shared` negatives.
    """
    item = n_features * (architecture.embedding_size or architecture.hidden_size) * architecture.hidden_size
    negatives = n_negatives if shared else n_negatives * batch_targets
    return forward_multiply_adds(architecture, n_features, batch_targets) + (batch_targets + negatives) * item
