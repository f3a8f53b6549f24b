"""What a training run reads of a dataset: its batches, and the tokens of its catalog."""

from collections.abc import Mapping

import numpy as np

from seqrec_jax.data import packing
from seqrec_jax.data.batches import PackedBatches
from seqrec_jax.data.split import Split
from seqrec_jax.data.store import Dataset
from seqrec_jax.errors import InputError


def training_batches(
    dataset: Dataset,
    split: Split,
    *,
    train_batch_size: int,
    loss_positions: str,
    max_length: int,
    shards: int,
    seed: int,
) -> PackedBatches:
    """Batches of about `train_batch_size` targets.

    Args:
        dataset: to train on.
        split: of it.
        train_batch_size: targets of a step, over all devices.
        loss_positions: `all`: packed rows, a target at every position; `last`: RecBole's scheme, a padded prefix for
            each target.
        max_length: most items that the model reads at once.
        shards: devices.
        seed: of the order.

    Raises:
        InputError: the batch does not divide over the devices, or nothing is there to train on.
    """
    if loss_positions not in ("all", "last"):
        raise InputError(f"pretrain.loss_positions = {loss_positions!r} is neither 'all' nor 'last'")
    last_only = loss_positions == "last"
    rows = train_batch_size if last_only else train_batch_size // max_length
    if last_only and rows % shards:
        raise InputError(f"pretrain.train_batch_size = {train_batch_size} does not divide over {shards} devices")
    rows -= rows % shards
    if rows < shards:
        raise InputError(
            f"pretrain.train_batch_size = {train_batch_size} does not divide over {shards} devices in rows of "
            f"{max_length} targets; bind at least {shards * max_length}"
        )
    windows = (packing.prefixes if last_only else packing.all_positions)(dataset.offsets, split, max_length)
    if not len(windows.lengths):
        raise InputError(f"{dataset.folder}: no user has two training interactions, so there is nothing to train on")
    if last_only:
        layout = packing.one_per_row(windows.lengths, max_length)
    else:
        layout = packing.pack(windows.lengths, train_batch_size // rows)
    return PackedBatches(dataset.items.take, windows, layout, rows=rows, shards=shards, last_only=last_only, seed=seed)


def item_tokens(dataset: Dataset, max_tokens: Mapping[str, int] | None = None) -> dict[str, np.ndarray]:
    """Token ids of the catalog by feature, in the smallest integers that hold the vocabulary.

    Args:
        dataset: whose items they are.
        max_tokens: features to read and the most tokens of each; None reads all that the dataset holds.

    Returns:
        Per feature [n_items + 1, tokens].

    Raises:
        InputError: max_tokens names a feature that the dataset lacks.
    """
    for name in max_tokens or ():
        if name not in dataset.features:
            raise InputError(f"pretrain.max_tokens names {name!r}; {dataset.folder} has {', '.join(dataset.features)}")
    kind = np.uint16 if dataset.vocab_size <= 1 << 16 else np.int32
    limits = dict.fromkeys(dataset.features) if max_tokens is None else max_tokens
    return {name: dataset.tokens(name, limits[name]).astype(kind) for name in dataset.features if name in limits}
