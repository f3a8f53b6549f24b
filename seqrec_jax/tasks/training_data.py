"""What a training run reads of a dataset: its batches, and the features of its items."""

from collections.abc import Mapping, Sequence

import numpy as np
from absl import logging

from seqrec_jax.data import packing
from seqrec_jax.data.batches import Mixture, PackedBatches
from seqrec_jax.data.joined import Joined, is_user_in, join, users_named_in
from seqrec_jax.data.lexical import lexical_vectors
from seqrec_jax.data.split import Split, TrainingLog, without_users
from seqrec_jax.data.store import Dataset, open_dataset
from seqrec_jax.errors import InputError
from seqrec_jax.losses.full_softmax import MOST_DOMAINS
from seqrec_jax.model.item_encoder import ITEM_ID
from seqrec_jax.model.lexical import LEXICAL
from seqrec_jax.model.recommender import Architecture
from seqrec_jax.training.model_record import ModelRecord

OWN, ALL = "own", "all"


def open_joined(folders: Sequence[str], shares: Sequence[float] | None = None, negatives_from: str = OWN) -> Joined:
    """Opens one dataset or several.

    Raises:
        InputError: one is missing or damaged, their tokenizers differ, or a setting does not fit them.
    """
    if negatives_from not in (OWN, ALL):
        raise InputError(f"pretrain.negatives_from = {negatives_from!r} is neither {OWN!r} nor {ALL!r}")
    if not folders:
        raise InputError("DATASET = [] names no dataset")
    if shares is not None and (len(shares) != len(folders) or min(shares) <= 0):
        raise InputError(
            f"pretrain.dataset_shares = {list(shares)} must hold a number above 0 for each of {len(folders)} datasets"
        )
    if negatives_from == OWN and len(folders) > MOST_DOMAINS:
        raise InputError(
            f"DATASET names {len(folders)} datasets, and {MOST_DOMAINS} at most may keep their own catalogs; join "
            f"some in etl, or bind pretrain.negatives_from = {ALL!r}"
        )
    parts = [open_dataset(folder, verify=True) for folder in folders]
    names = [part.name for part in parts]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"DATASET names two datasets {name!r}; their folders need different names")
    return join(parts)


def without_users_of(split: Split, data: Dataset, sources: Sequence[str]) -> Split:
    """The split without the users that are named in other datasets or in files of ids; says how many.

    Raises:
        InputError: one of the sources is missing.
    """
    if not sources:
        return split
    left_out = is_user_in(data, users_named_in(sources))
    logging.info(
        "%s: %d of %d users left out, named in %s", data.name, left_out.sum(), data.n_users, ", ".join(sources)
    )
    return without_users(split, left_out)


def training_batches(
    dataset: Dataset,
    split: Split,
    *,
    train_batch_size: int,
    loss_positions: str,
    max_length: int,
    shards: int,
    seed: int,
    accumulation_steps: int = 1,
    task: str = "pretrain",
    groups: np.ndarray | None = None,
    shares: Sequence[float] | None = None,
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
        accumulation_steps: parts of each device's share; each is a shard of its own.
        task: whose bindings the messages name.
        groups: [users] int64, the dataset of each user, where several are joined.
        shares: of an epoch's targets for each of those; None takes every interaction once.

    Raises:
        InputError: the batch does not divide over the devices, or nothing is there to train on.
    """
    if loss_positions not in ("all", "last"):
        raise InputError(f"{task}.loss_positions = {loss_positions!r} is neither 'all' nor 'last'")
    shards *= accumulation_steps
    parts = "devices" if accumulation_steps == 1 else f"devices and {task}.accumulation_steps"
    last_only = loss_positions == "last"
    rows = train_batch_size if last_only else train_batch_size // max_length
    if last_only and rows % shards:
        raise InputError(f"{task}.train_batch_size = {train_batch_size} does not divide over {shards} {parts}")
    rows -= rows % shards
    if rows < shards:
        raise InputError(
            f"{task}.train_batch_size = {train_batch_size} does not divide over {shards} {parts} in rows of "
            f"{max_length} targets; bind at least {shards * max_length}"
        )
    windows = (packing.prefixes if last_only else packing.all_positions)(dataset.offsets, split, max_length)
    if not len(windows.lengths):
        raise InputError(f"{dataset.folder}: no user has two training interactions, so there is nothing to train on")
    mixture, lengths = None, windows.lengths
    if groups is not None and shares is not None:
        users = np.searchsorted(dataset.offsets, windows.starts, side="right") - 1
        mixture = Mixture.of_shares(groups[users], np.ones_like(lengths) if last_only else lengths, shares)
        lengths = mixture.lengths_of_places(lengths)
    layout = packing.one_per_row(lengths, max_length) if last_only else packing.pack(lengths, train_batch_size // rows)
    return PackedBatches(
        dataset.items.take, windows, layout, rows=rows, shards=shards, last_only=last_only, seed=seed, mixture=mixture
    )


def item_features(
    dataset: Dataset,
    architecture: Architecture,
    max_tokens: Mapping[str, int] | None = None,
    starts: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """What the model reads of the catalog: token ids in the smallest integers that hold the vocabulary, and item rows.

    Args:
        dataset: whose items they are.
        architecture: says whether it reads text, rows, or both.
        max_tokens: features to read and the most tokens of each; None reads all that the dataset holds.
        starts: of the catalogs that the dataset joins; see lexical_vectors.

    Returns:
        Per text feature [n_items + 1, tokens], `item_id` [n_items + 1] where items have rows, and `lexical`
        [n_items + 1, lexical_size] where the model scores by words.

    Raises:
        InputError: max_tokens names a feature that the dataset lacks, or the model reads text and there is none.
    """
    features: dict[str, np.ndarray] = {}
    if architecture.item_encoder != "id":
        if not dataset.features:
            raise InputError(
                f"Architecture.item_encoder = {architecture.item_encoder!r} reads text, but {dataset.folder} has none; "
                "bind Architecture.item_encoder = 'id'"
            )
        limits = dict.fromkeys(dataset.features) if max_tokens is None else max_tokens
        for name in limits:
            if name not in dataset.features:
                raise InputError(
                    f"pretrain.max_tokens names {name!r}; {dataset.folder} has {', '.join(dataset.features)}"
                )
        if not limits:
            raise InputError("pretrain.max_tokens = {} names no text feature; None reads all")
        kind = np.uint16 if dataset.vocab_size <= 1 << 16 else np.int32
        features = {
            name: dataset.tokens(name, limits[name]).astype(kind) for name in dataset.features if name in limits
        }
    if architecture.lexical_size:
        if not features:
            raise InputError("Architecture.lexical_size reads text; bind Architecture.item_encoder = 'text_and_id'")
        size = architecture.lexical_size
        features[LEXICAL] = lexical_vectors(list(features.values()), dataset.vocab_size, size, starts)
    if architecture.item_encoder != "text":
        features[ITEM_ID] = np.arange(dataset.n_items + 1, dtype=np.int32)
    return features


def features_of_record(
    dataset: Dataset, record: ModelRecord, starts: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """What a checkpoint's model reads of a catalog, which may lack some of its text features.

    Args:
        dataset: made with the model's tokenizer.
        record: of the model.
        starts: of the catalogs that the dataset joins; see lexical_vectors.

    Returns:
        Per text feature [n_items + 1, tokens], no tokens where the dataset lacks it and the appended features' after
        the first one's; the others as of item_features.

    Raises:
        InputError: the dataset has none of them.
    """
    features: dict[str, np.ndarray] = {}
    known = [name for name in record.max_tokens if name in dataset.features]
    more = {name: most for name, most in record.appended.items() if name in dataset.features}
    if record.max_tokens and not known and not more:
        raise InputError(
            f"{dataset.folder}: has none of the text features that the checkpoint's model reads, "
            f"{', '.join(record.max_tokens)}"
        )
    kind = np.uint16 if dataset.vocab_size <= 1 << 16 else np.int32
    for name, most in record.max_tokens.items():
        tokens = dataset.tokens(name, most) if name in known else np.zeros((dataset.n_items + 1, 1), np.int32)
        if not features:
            tokens = np.concatenate([tokens, *(dataset.tokens(other, limit) for other, limit in more.items())], 1)
        features[name] = tokens.astype(kind)
    if missing := [name for name in record.max_tokens if name not in known]:
        logging.warning("%s: has no %s, which the model reads as empty", dataset.folder, ", ".join(missing))
    if size := record.architecture.lexical_size:
        features[LEXICAL] = lexical_vectors(list(features.values()), dataset.vocab_size, size, starts)
    if ITEM_ID in record.vocab_sizes:
        features[ITEM_ID] = np.arange(dataset.n_items + 1, dtype=np.int32)
    return features


def epoch_tokens(log: TrainingLog, features: Mapping[str, np.ndarray]) -> int:
    """Text tokens of all training interactions."""
    texts = [tokens for name, tokens in features.items() if name not in (ITEM_ID, LEXICAL)]
    return int(sum(((tokens != 0).sum(1) * log.counts).sum() for tokens in texts))


def model_record(dataset: Dataset, architecture: Architecture, features: Mapping[str, np.ndarray]) -> ModelRecord:
    """What a checkpoint will say of the model that reads these features of the dataset."""
    texts = {name: tokens.shape[1] for name, tokens in features.items() if name not in (ITEM_ID, LEXICAL)}
    rows = {ITEM_ID: len(features[ITEM_ID])} if ITEM_ID in features else {}
    return ModelRecord(
        architecture,
        dict.fromkeys(texts, dataset.vocab_size) | rows,
        texts,
        dataset.tokenizer_sha256,
        dataset.catalog_sha256() if rows else None,
    )
