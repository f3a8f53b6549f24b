"""What fine-tuning begins with: the pre-trained model laid over the target dataset, and what it trains on there."""

import dataclasses

import numpy as np
from absl import logging
from jax.sharding import Mesh

from seqrec_jax.data.corpus import Corpus, is_user_in
from seqrec_jax.data.split import Split, without_users
from seqrec_jax.devices import replicate
from seqrec_jax.errors import InputError
from seqrec_jax.evaluation.ranking import Ranking, check_ranking
from seqrec_jax.finetuning.config import FinetuneConfig
from seqrec_jax.items.item_id import ITEM_ID
from seqrec_jax.model.recommender import Recommender
from seqrec_jax.model.terms.transitions import count_transitions
from seqrec_jax.training.config import TrainConfig
from seqrec_jax.training.step import Catalog


def check_target(target: Corpus, ranking: Ranking) -> None:
    """Refuses, by an InputError, several datasets, and one with nobody to validate with or to test with."""
    if len(target.datasets) > 1:
        raise InputError(f"Corpus.datasets = {target.name}: finetune takes one target dataset")
    check_ranking(target, ranking)


def adapt_to(target: Corpus, model: Recommender, config: FinetuneConfig) -> Recommender:
    """The pre-trained model on the target, with the changes of the configuration and what its score terms count there;
    an InputError for a change that the parameters do not fit, or a dataset of another tokenizer."""
    adapted = model.adapt(target.data, config.changes, config.train.seed)
    if not adapted.architecture.transitions:
        return adapted
    return adapted.replace(statistics={"transitions": count_transitions(target.train, target.data.catalog_sha256())})


def training_corpus(target: Corpus, pretraining: Corpus | None, config: FinetuneConfig) -> Corpus:
    """What is trained on: the target, and with replay_share the pre-training datasets, without the target's users.

    Each dataset keeps its own catalog. Unless FinetuneConfig.cold_negatives, no target competes with items that nobody
    has in training: as negatives, they would be pushed below all others, though few users could have shown them.
    """
    training = target
    if pretraining is not None and config.replay_share:
        known = target.data.interactions_table["user_id"].combine_chunks()
        own, others = target.division, without_users(pretraining.division, is_user_in(pretraining.data, known))
        union = target.replaced(datasets=(target.data, *pretraining.datasets), negatives_from="own")
        training = union.replaced(
            division=Split(np.concatenate([own.train_lengths, others.train_lengths]), own.valid, own.test),
            user_groups=(np.arange(union.data.n_users) >= target.data.n_users).astype(np.int64),
            mixture_shares=(1 - config.replay_share, config.replay_share),
        )
    if config.cold_negatives:
        return training
    counts, groups = training.train.counts, training.group_ids
    groups = (np.arange(len(counts)) > 0).astype(np.int32) if groups is None else groups
    return training.replaced(group_ids=np.where((counts > 0) | (groups == 0), groups, groups.max() + 1))


def training_catalog(
    model: Recommender, target: Corpus, training: Corpus, config: FinetuneConfig, mesh: Mesh
) -> Catalog:
    """The items that are trained on, on the devices, with the proposal. Items of pre-training have no rows of their
    own, nor, where there is text, have items with fewer than row_interactions in training."""
    features = model.features(training.data, training.item_starts)
    if ITEM_ID in features:
        rows, least = features[ITEM_ID], config.row_interactions if model.spec.texts else 0
        kept = (rows <= target.data.n_items) & (training.train.counts >= least)
        features[ITEM_ID] = np.where(kept, rows, 0).astype(rows.dtype)
    proposal = config.train.proposal(training.train)
    return replicate(mesh, Catalog(features, proposal, training.group_ids, training.n_groups))


def with_least_steps(config: FinetuneConfig, training: Corpus, max_length: int, n_devices: int) -> TrainConfig:
    """How the phases train: with fewer targets a step where an epoch would have fewer steps than least_steps.

    `max_length` is the number of items that the model reads; a step has at least a row of so many on each device.
    """
    train, row = config.train, max_length * n_devices * config.train.accumulation_steps
    n_targets = int((training.division.train_lengths - 1).clip(0).sum())
    size = min(int(train.train_batch_size), max(row, n_targets // config.least_steps // row * row))
    if size < int(train.train_batch_size):
        logging.info("batches of %d targets, for at least %d steps an epoch", size, config.least_steps)
    return dataclasses.replace(train, train_batch_size=size)
