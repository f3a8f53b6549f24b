"""A pre-trained model laid over another dataset: what it reads there, and with which parameters it begins."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from flax import nnx

from seqrec_jax.data.joined import Joined, is_user_in, join
from seqrec_jax.data.split import (
    Split,
    TrainingLog,
    share_of_users,
    training_log,
    without_users,
)
from seqrec_jax.data.store import Dataset, open_dataset
from seqrec_jax.errors import InputError
from seqrec_jax.model.item_encoder import ITEM_ID
from seqrec_jax.model.recommender import Architecture
from seqrec_jax.tasks.restored import check_tokenizer
from seqrec_jax.tasks.settings import check_share
from seqrec_jax.tasks.training_data import features_of_record
from seqrec_jax.training.carry import carry
from seqrec_jax.training.checkpoint import Restored
from seqrec_jax.training.model_record import ModelRecord

CHANGEABLE = (
    "item_encoder", "repeat_offset", "transitions", "lexical_size", "hidden_dropout", "attention_dropout",
    "id_dropout", "token_dropout", "attention",
)  # fmt: skip


class Domain(NamedTuple):
    """A small domain and the model that is to be fine-tuned on it.

    Attributes:
        data: the dataset.
        split: of it, with a share of its users for training.
        log: its training part.
        record: of the model.
        features: what the model reads of the items.
        start: parameters of the checkpoint, in the model's architecture.
    """

    data: Dataset
    split: Split
    log: TrainingLog
    record: ModelRecord
    features: dict[str, np.ndarray]
    start: nnx.State


def changed(architecture: Architecture, changes: Mapping[str, Any]) -> Architecture:
    """The checkpoint's architecture with what fine-tuning changes.

    Raises:
        InputError: a change that its parameters do not fit, or a wrong value.
    """
    for name in changes:
        if name not in CHANGEABLE:
            raise InputError(
                f"finetune.changes names {name!r}; what a checkpoint's parameters allow to change is "
                f"{', '.join(CHANGEABLE)}"
            )
    if "text" in changes.get("item_encoder", "") and architecture.item_encoder == "id":
        raise InputError(
            f"finetune.changes = {dict(changes)!r}: the checkpoint's model has rows for its items and reads no text; "
            "pre-train with Architecture.item_encoder = 'text'"
        )
    if changes.get("item_encoder") == "id":
        changes = {"lexical_size": 0, **changes}
    return dataclasses.replace(architecture, **changes)


def record_on(data: Dataset, pretrained: ModelRecord, architecture: Architecture) -> ModelRecord:
    """What the fine-tuned checkpoint will say: text features that are new in the dataset are read with the first one's
    tokens, so that no parameter changes its shape."""
    texts = pretrained.max_tokens if architecture.item_encoder != "id" else {}
    new = [name for name in data.features if texts and name not in pretrained.max_tokens]
    appended = {name: most for name, most in pretrained.appended.items() if texts}
    appended |= {name: data.tokens(name).shape[1] for name in new if name not in appended}
    if told := [name for name in new if name not in pretrained.appended]:
        logging.info(
            "%s: the checkpoint's model does not know %s; read as more words of %s", data.folder, ", ".join(told),
            next(iter(texts)),
        )  # fmt: skip
    rows = {} if architecture.item_encoder == "text" else {ITEM_ID: data.n_items + 1}
    return ModelRecord(
        architecture,
        {name: pretrained.vocab_sizes[name] for name in texts} | rows,
        dict(texts),
        pretrained.tokenizer_sha256 if texts else data.tokenizer_sha256,
        data.catalog_sha256() if rows else None,
        appended,
    )


def open_domain(
    dataset: str,
    checkpoint: str,
    restored: Restored,
    changes: Mapping[str, Any],
    users_share: float,
    seed: int,
    how: Callable[[Dataset], Split],
) -> Domain:
    """Opens a small domain for a checkpoint.

    Args:
        dataset: its folder.
        checkpoint: where the model comes from.
        restored: the checkpoint.
        changes: fields of Architecture.
        users_share: of the users, for training and validation.
        seed: of the share, and of parameters that the checkpoint lacks.
        how: divides the dataset.

    Raises:
        InputError: it was made with another tokenizer, or has nobody to train on or nobody to predict for.
    """
    check_share("finetune", users_share)
    architecture = changed(restored.record.architecture, changes)
    data = open_dataset(dataset, verify=True)
    if architecture.item_encoder != "id":
        check_tokenizer(data, restored.record, checkpoint)
    whole = how(data)
    if not len(whole.test.users):
        raise InputError(
            f"{data.folder}: no user has anything to train on, to validate with and to test with, such as three "
            "interactions to leave one out of; "
            "rank its items with gin/recommend.gin as they are"
        )
    split = share_of_users(whole, users_share, seed)
    if not len(split.valid.users):
        raise InputError(
            f"{data.folder}: none of the {100 * users_share:g} % of its {data.n_users} users has anything to validate "
            "with; raise finetune.users_share"
        )
    record = record_on(data, restored.record, architecture)
    before = restored.record
    same_catalog = record.catalog_sha256 is not None and before.catalog_sha256 == record.catalog_sha256
    if before.catalog_sha256 is not None and not same_catalog:
        logging.info("%s: has another catalog, so the checkpoint's item rows are left behind", data.folder)
    start = carry(restored.params, before.architecture, architecture, record.vocab_sizes, seed, same_catalog)
    return Domain(data, split, training_log(data, split), record, features_of_record(data, record), start)


class Pretraining(NamedTuple):
    """What a checkpoint was pre-trained on.

    Attributes:
        joined: the datasets.
        split: of their union.
    """

    joined: Joined
    split: Split


class TrainingSet(NamedTuple):
    """What fine-tuning trains on: the domain, or the domain and a share of what the model was pre-trained on.

    Attributes:
        data: the dataset, or the union.
        split: its training part.
        log: the same, for the negatives.
        features: what the model reads of its items.
        domains: see Catalog.
        groups: see training_batches.
        shares: see training_batches.
    """

    data: Dataset
    split: Split
    log: TrainingLog
    features: dict[str, np.ndarray]
    domains: np.ndarray | None = None
    groups: np.ndarray | None = None
    shares: tuple[float, ...] | None = None


def without_rare_rows(training: TrainingSet, least: int) -> TrainingSet:
    """The training set in which items of fewer interactions have no row of their own beside their text.

    A row that is learnt from a few users' interactions says who they were, and not what the item is.
    """
    if ITEM_ID not in training.features or len(training.features) == 1:
        return training
    rows = training.features[ITEM_ID]
    kept = np.where(training.log.counts >= least, rows, 0).astype(rows.dtype)
    return training._replace(features={**training.features, ITEM_ID: kept})


def apart_from_cold(training: TrainingSet) -> TrainingSet:
    """The training set in which no target competes with items that nobody has in training.

    An item that few users could have shown is not one that nobody wants: as a negative, it would be pushed below all
    others, words or no words.
    """
    counts, domains = training.log.counts, training.domains
    own = np.where(np.arange(len(counts)) > 0, 1, 0) if domains is None else domains
    return training._replace(domains=np.where(counts > 0, own, (own.max() + 1) * (own > 0)).astype(np.int32))


def stacked(of_domain: Mapping[str, np.ndarray], of_others: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Features of the domain's items and of others after them; those have no rows of their own, but the padding's."""
    features: dict[str, np.ndarray] = {}
    for name, first in of_domain.items():
        if name == ITEM_ID:
            n_others = len(next(iter(of_others.values()))) - 1
            features[name] = np.concatenate([first, np.zeros(n_others, first.dtype)])
            continue
        second = of_others[name][1:]
        width = max(first.shape[1], second.shape[1])
        wide = [np.pad(tokens, ((0, 0), (0, width - tokens.shape[1]))) for tokens in (first, second)]
        features[name] = np.concatenate(wide)
    return features


def with_replay(domain: Domain, pretraining: Pretraining, pretrained: ModelRecord, share: float) -> TrainingSet:
    """The domain and the pre-training datasets, without the domain's users, each with its own catalog.

    Args:
        domain: the small domain.
        pretraining: what the checkpoint was pre-trained on.
        pretrained: record of the checkpoint's model.
        share: of each batch's targets that are of pre-training, on average.
    """
    other = pretraining.joined.whole
    known = domain.data.interactions_table["user_id"].combine_chunks()
    left = without_users(pretraining.split, is_user_in(other, known))
    joined = join([domain.data, *pretraining.joined.parts])
    lengths = np.concatenate([domain.split.train_lengths, left.train_lengths])
    split = Split(lengths, domain.split.valid, domain.split.test)
    features = stacked(domain.features, features_of_record(other, pretrained, pretraining.joined.item_starts))
    groups = joined.groups().clip(max=1)
    domains = joined.domains()
    shares = (1 - share, share)
    return TrainingSet(joined.whole, split, training_log(joined.whole, split), features, domains, groups, shares)
