"""What fine-tuning begins with, and what it trains on."""

import dataclasses

import jax
import numpy as np
import pytest

from etl.recbole import convert
from etl.synthetic_shop import make_shop
from seqrec_jax.data.corpus import Corpus
from seqrec_jax.devices import device_mesh
from seqrec_jax.errors import InputError
from seqrec_jax.evaluation.ranking import Ranking
from seqrec_jax.finetuning.adapt import (
    adapt_to,
    check_target,
    training_catalog,
    training_corpus,
    with_least_steps,
)
from seqrec_jax.finetuning.config import FinetuneConfig
from seqrec_jax.losses.full_softmax import full_softmax
from seqrec_jax.model.recommender import Recommender
from seqrec_jax.model.spec import Architecture
from seqrec_jax.training.config import TrainConfig

ARCHITECTURE = Architecture(n_layers=1, n_heads=1, hidden_size=4, inner_size=4, max_length=10, lexical_size=4)
TRAIN = TrainConfig(loss=full_softmax)


@pytest.fixture(scope="module")
def markets(shop_folder, tmp_path_factory):
    """Eight small datasets, made with the tokenizer of the large one."""
    folder = tmp_path_factory.mktemp("markets")
    for seed in range(8):
        make_shop(folder / f"raw{seed}", n_users=20, n_items=10, brands_per_activity=1, seed=seed)
        convert(str(folder / f"raw{seed}"), str(folder / f"market{seed}"), tokenizer_from=str(shop_folder))
    return [Corpus(folder / f"market{seed}").data for seed in range(8)]


def without_training(corpus, item):
    """The corpus in which nobody has an item in training."""
    counts = corpus.train.counts.copy()
    counts[item] = 0
    return corpus.replaced(train=corpus.train._replace(counts=counts))


def test_items_that_nobody_has_in_training_compete_with_no_target(markets):
    target = without_training(Corpus(markets[0]), item=3)
    training = training_corpus(target, None, FinetuneConfig())
    assert training.group_ids.tolist() == [0, 1, 1, 2, *[1] * 7]
    assert training.n_groups == 2
    assert training_corpus(target, None, FinetuneConfig(cold_negatives=True)) is target


def test_groups_of_many_datasets_with_replay_and_cold_items_have_no_limit(markets):
    target, pretraining = Corpus(markets[0]), Corpus(markets[1:])
    config = FinetuneConfig(replay_share=0.25, train=TRAIN)
    training = training_corpus(target, pretraining, config)
    cold = np.flatnonzero(training.train.counts[1:] == 0) + 1
    dataset = np.searchsorted(training.item_starts, np.arange(1, 81))
    expected = np.where(training.train.counts[1:] > 0, dataset, 9)
    np.testing.assert_array_equal(training.group_ids, [0, *expected])
    assert training.n_groups == (9 if len(cold) else 8)
    assert len(training.division.valid.users) == len(target.division.valid.users)
    assert training.mixture_shares == (0.75, 0.25)
    assert set(training.user_groups.tolist()) == {0, 1}
    users = training.data.interactions_table["user_id"].to_pylist()
    trained = {user for user, n in zip(users[20:], training.division.train_lengths[20:], strict=True) if n}
    assert not trained & set(users[:20])  # the target's users are not replayed
    mesh = device_mesh(jax.devices()[:1])
    model = Recommender.create(Corpus(markets[1:]), ARCHITECTURE)
    changed = dataclasses.replace(config, changes={"item_encoder": "text_and_id"}, row_interactions=2)
    adapted = adapt_to(target, model, changed)
    catalog = training_catalog(adapted, target, training, changed, mesh)
    assert catalog.n_groups == training.n_groups
    rows = np.asarray(catalog.features["item_id"])
    own = np.arange(11) * (target.train.counts >= 2)
    np.testing.assert_array_equal(rows, [*own, *np.zeros(70, int)])  # others have no rows, nor have rare ones
    texts = np.asarray(catalog.features["lexical"])
    for part, data in enumerate((target.data, *pretraining.datasets)):
        np.testing.assert_array_equal(texts[training.part_rows(part)], model.features(data)["lexical"])


def test_every_item_of_a_model_of_rows_alone_has_its_row(markets):
    target, config = Corpus(markets[0]), FinetuneConfig(train=TRAIN, row_interactions=1000)
    model = Recommender.create(target, dataclasses.replace(ARCHITECTURE, item_encoder="id", lexical_size=0))
    catalog = training_catalog(model, target, target, config, device_mesh(jax.devices()[:1]))
    np.testing.assert_array_equal(catalog.features["item_id"], np.arange(11))


@pytest.mark.parametrize("encoder", ["text", "text_and_id"])
def test_a_text_that_was_left_out_of_training_stays_out_on_the_same_dataset_alone(markets, encoder):
    corpus, (first, *others) = Corpus(markets[0]), markets[0].features
    assert others
    model = Recommender.create(corpus, dataclasses.replace(ARCHITECTURE, item_encoder=encoder), max_tokens={first: 4})
    if encoder == "text":  # With rows, the spec tells whose they are, in a saved model as well.
        model = model.replace(trained_with=corpus.settings())
    assert adapt_to(corpus, model, FinetuneConfig()).spec.texts == model.spec.texts
    appended = adapt_to(Corpus(markets[1]), model, FinetuneConfig()).spec.texts[0].appended
    assert [name for name, _ in appended] == others


def test_transitions_are_counted_on_the_target(markets):
    model, target = Recommender.create(Corpus(markets[1]), ARCHITECTURE), Corpus(markets[0])
    assert not adapt_to(target, model, FinetuneConfig()).statistics
    adapted = adapt_to(target, model, FinetuneConfig(changes={"transitions": True}))
    assert adapted.statistics["transitions"].catalog_sha256 == target.data.catalog_sha256()
    assert adapted.statistics_for(target.data)


def test_batches_are_smaller_where_an_epoch_would_have_few_steps(corpus):
    config = FinetuneConfig(train=dataclasses.replace(TRAIN, train_batch_size=3200))
    n_targets = int((corpus.division.train_lengths - 1).clip(0).sum())
    size = with_least_steps(config, corpus, 10, 4).train_batch_size
    assert size % 40 == 0
    assert size <= n_targets / 8 < size + 40
    few = dataclasses.replace(config, least_steps=10**6)
    assert with_least_steps(few, corpus, 10, 4).train_batch_size == 40
    small = FinetuneConfig(train=dataclasses.replace(TRAIN, train_batch_size=50))
    assert with_least_steps(small, corpus, 10, 4) == small.train


def test_a_target_is_one_dataset(markets):
    check_target(Corpus(markets[0]), Ranking())
    with pytest.raises(InputError, match=r"market0\+market1: finetune takes one target dataset"):
        check_target(Corpus(markets[:2]), Ranking())
