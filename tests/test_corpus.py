"""Several datasets read as one: whose items and users are whose, who competes with whom, how much of each is read."""

import dataclasses
import json
import logging
import shutil
import time
from functools import partial

import numpy as np
import pyarrow as pa
import pytest
from conftest import trusted

import seqrec_jax as sr
from etl.recbole import convert
from etl.synthetic_shop import make_shop
from seqrec_jax.data import corpus as corpora
from seqrec_jax.data.batches import training_batches
from seqrec_jax.data.corpus import Corpus
from seqrec_jax.data.split import by_ratio, global_cut, leave_one_out
from seqrec_jax.data.store import Dataset, open_dataset
from seqrec_jax.errors import InputError


@pytest.fixture(scope="session")
def market_folder(shop_folder, tmp_path_factory):
    """Another shop of the same tokenizer, without brands."""
    folder = tmp_path_factory.mktemp("market")
    make_shop(folder / "raw", n_users=90, n_items=60, brands_per_activity=1, seed=7)
    convert(str(folder / "raw"), str(folder / "market"), tokenizer_from=str(shop_folder), max_tokens={"title": 20})
    return folder / "market"


@pytest.fixture
def both(shop, market_folder):
    return Corpus([shop, open_dataset(market_folder)])


@pytest.fixture
def ids(tmp_path):
    (tmp_path / "ids.txt").write_text("u3\nu5\nnobody\n")
    return str(tmp_path / "ids.txt")


def test_users_items_and_texts_are_found_again(both):
    shop, market = both.datasets
    data = both.data
    assert (data.n_users, data.n_items) == (shop.n_users + market.n_users, shop.n_items + market.n_items)
    assert data.features == ("title", "brand")
    assert data.name == both.name == f"{shop.name}+market"
    ties = {n: shop.ties[n] + market.ties[n] for n in ("neighbours", "of")}
    assert data.ties == {"order": "file"} | ties
    for user in (0, 17, shop.n_users - 1):
        np.testing.assert_array_equal(data.user_items(user), shop.user_items(user))
    for user in (0, 41, market.n_users - 1):
        np.testing.assert_array_equal(data.user_items(shop.n_users + user), market.user_items(user) + shop.n_items)
    everything = data.items.take(np.random.default_rng(0).permutation(data.n_interactions))
    assert len(everything) == shop.n_interactions + market.n_interactions
    titles, own = data.tokens("title"), market.tokens("title")
    np.testing.assert_array_equal(titles[both.part_rows(1)][:, : own.shape[1]], own)
    assert not data.tokens("brand")[shop.n_items + 1 :].any()  # the market has none
    assert list(both.group_ids[[0, 1, shop.n_items, shop.n_items + 1, -1]]) == [0, 1, 1, 2, 2]
    assert both.n_groups == 2
    assert list(both.user_groups[[0, shop.n_users - 1, shop.n_users, -1]]) == [0, 0, 1, 1]
    test = both.division.test
    assert both.part_targets(1, test).users.max() < market.n_users
    assert sum(len(both.part_targets(part, test).users) for part in (0, 1)) == len(test.users)


def test_one_dataset_is_its_own_union(shop, shop_folder):
    corpus = Corpus(shop)
    assert corpus.data is shop
    assert corpus.group_ids is corpus.user_groups is corpus.mixture_shares is None
    assert corpus.n_groups == 1
    targets = corpus.division.test
    assert corpus.part_targets(0, targets) is targets
    np.testing.assert_array_equal(corpus.part_rows(0), np.arange(shop.n_items + 1))
    np.testing.assert_array_equal(targets.users, leave_one_out(shop).test.users)
    assert corpus.train.counts.sum() == corpus.division.train_lengths.sum()
    by_path = Corpus(str(shop_folder))
    assert by_path.datasets[0].digest() == shop.digest()
    assert by_path.settings() == Corpus([shop]).settings()


def test_each_dataset_is_split_alone(shop, shop_folder, tmp_path):
    other = open_dataset(shutil.copytree(shop_folder, tmp_path / "other"))
    division, alone = Corpus([shop, other], split=global_cut).division, global_cut(shop)
    np.testing.assert_array_equal(division.train_lengths, np.tile(alone.train_lengths, 2))
    np.testing.assert_array_equal(division.test.users[len(alone.test.users) :], alone.test.users + shop.n_users)
    np.testing.assert_array_equal(division.test.positions, np.tile(alone.test.positions, 2))


def test_many_datasets_have_as_many_groups(shop):
    parts = [trusted(dataclasses.replace(shop, folder=shop.folder / str(ordinal))) for ordinal in range(12)]
    corpus = Corpus(parts)
    assert corpus.n_groups == 12
    np.testing.assert_array_equal(np.bincount(corpus.group_ids), [1, *[shop.n_items] * 12])
    assert Corpus(parts, negatives_from="all").group_ids is None


def test_another_tokenizer_is_refused_with_the_command(shop, shop_files, tmp_path):
    convert(source=str(shop_files), output=str(tmp_path / "other"), vocab_size=400)
    with pytest.raises(InputError, match=r"another tokenizer than .*TOKENIZER='"):
        Corpus([shop, tmp_path / "other"])


@pytest.mark.parametrize("loss_positions", ["all", "last"])
def test_an_epoch_reads_each_dataset_by_its_share(both, loss_positions):
    settings = {"batch_size": 200, "loss_positions": loss_positions, "max_length": 10, "shards": 1, "seed": 0}
    batches = training_batches(dataclasses.replace(both, shares=(1, 3)), **settings)
    read = np.zeros(2)
    for step in range(2 * batches.steps_per_epoch):
        batch = batches.batch(step)
        targets = batch.items[batch.targets[batch.weights > 0]]
        read += np.bincount(both.group_ids[targets] - 1, minlength=2)
    assert read.sum() == 2 * batches.n_targets
    assert read[1] / read.sum() == pytest.approx(0.75, abs=0.02)
    plain = training_batches(both, **settings)
    assert batches.n_targets == pytest.approx(plain.n_targets, rel=0.03)
    assert plain.n_targets == int(np.maximum(both.division.train_lengths - 1, 0).sum())


def test_users_of_another_dataset_are_left_out_of_all(shop, ids, tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="absl"):
        left, whole = Corpus(shop, exclude_users_of=[ids]).division, Corpus(shop).division
    assert f"2 of {shop.n_users} users left out" in caplog.text
    users = shop.interactions_table["user_id"].to_pylist()
    rows = [users.index("u3"), users.index("u5")]
    assert not left.train_lengths[rows].any()
    assert not np.isin(rows, left.test.users).any()
    assert len(left.test.users) == len(whole.test.users) - np.isin(rows, whole.test.users).sum()
    nobody = Corpus(shop, exclude_users_of=[str(shop.folder)])
    assert not nobody.train.counts.any()
    with pytest.raises(InputError, match="no user has two training interactions"):
        training_batches(nobody, batch_size=100, loss_positions="all", max_length=10, shards=1, seed=0)
    with pytest.raises(InputError, match="no such dataset folder"):
        _ = Corpus(shop, exclude_users_of=[str(tmp_path / "missing")]).division


def test_what_leaves_no_targets_is_named_with_the_remedy(shop, tmp_path):
    def corpus_of(*lengths, **settings):
        offsets = np.cumsum([0, *lengths])
        times = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(np.arange(offsets[-1])))
        users = pa.array([f"u{user}" for user in range(len(lengths))])
        table = pa.table({"user_id": users, "timestamps": times})
        data = dataclasses.replace(shop, offsets=offsets, interactions_table=table)
        data.__dict__["checked"] = data
        return Corpus(data, **settings)

    (tmp_path / "users.txt").write_text("u0\nu1\n")
    some, everybody = {"users_share": 0.01, "validate_all": False}, {"exclude_users_of": str(tmp_path / "users.txt")}
    for corpus, words in (
        (corpus_of(2, 1), r"split leaves no target in valid, .*: of its 2 users the longest history has 2 .* more"),
        (corpus_of(2, 1, users_share=0.5), r"split leaves no target in valid, .* three are needed"),
        (corpus_of(3, 3, **everybody), r"exclude_users_of leaves no target in valid, .*: all 2 users .* name fewer"),
        (corpus_of(3, *[1] * 99, **some), r"users_share leaves no target in valid, .*; raise it, or set"),
        (corpus_of(*[1] * 100, split=global_cut), r"split leaves no target in valid, .*; raise global_cut\.valid, or"),
    ):
        with pytest.raises(InputError, match=words):
            corpus.check_targets()
    corpus_of(3, *[1] * 99, **some).check_targets(["test"])


def test_shares_of_users_are_nested_and_test_on_all(shop):
    whole = Corpus(shop).division

    def of_share(share, **settings):
        return Corpus(shop, users_share=share, **{"seed": 1} | settings).division

    small, large = of_share(0.1), of_share(0.5)
    assert np.count_nonzero(small.train_lengths) == 30
    assert set(np.flatnonzero(small.train_lengths)) < set(np.flatnonzero(large.train_lengths))
    np.testing.assert_array_equal(small.valid.users, whole.valid.users)
    np.testing.assert_array_equal(small.test.users, whole.test.users)
    own = of_share(0.1, validate_all=False)
    assert set(own.valid.users) <= set(np.flatnonzero(small.train_lengths))
    np.testing.assert_array_equal(own.test.users, whole.test.users)
    assert not np.array_equal(small.train_lengths, of_share(0.1, seed=2).train_lengths)


def test_computed_values_may_be_given_and_what_follows_is_computed_anew(both):
    assert both.train.counts.sum() > 0
    assert both.n_groups == 2
    groups = np.where(both.train.counts > 0, both.group_ids, 3 * (both.group_ids > 0)).astype(np.int32)
    division = both.division._replace(train_lengths=np.zeros_like(both.division.train_lengths))
    other = both.replaced(division=division, group_ids=groups, mixture_shares=(1, 2))
    assert other.n_groups == 3
    assert other.mixture_shares == (1, 2)
    assert not other.train.counts.any()
    assert other.data is both.data
    assert both.train.counts.sum() > 0
    assert both.n_groups == 2


def test_a_dataset_may_stand_in_a_union_twice_where_datasets_are_replaced(shop, both, shop_files, tmp_path):
    one = Corpus(shop)
    assert one.train.counts.sum() > 0
    union = one.replaced(datasets=(shop, *both.datasets))  # the target of a fine-tuning, among its pre-training sets
    assert union.data.n_items == shop.n_items + both.data.n_items
    assert union.n_groups == 3
    assert union.train.counts.sum() == one.train.counts.sum() + both.train.counts.sum()
    assert one.data is shop
    convert(source=str(shop_files), output=str(tmp_path / "other"), vocab_size=400)
    with pytest.raises(InputError, match="another tokenizer"):
        one.replaced(datasets=(shop, open_dataset(tmp_path / "other")))


def test_settings_are_json_and_tell_corpora_apart(shop, market_folder, shop_folder, ids, tmp_path):
    moved = shutil.copytree(shop_folder, tmp_path / "moved")
    shutil.copy(ids, tmp_path / "same.txt")
    assert Corpus(moved).settings() == Corpus(shop).settings()
    excluding = Corpus(shop, exclude_users_of=[ids])
    assert excluding.settings() == Corpus(shop, exclude_users_of=[str(tmp_path / "same.txt")]).settings()
    pair = [shop, open_dataset(market_folder)]
    different = [
        Corpus(shop), Corpus(pair), Corpus(pair[::-1]), Corpus(pair, shares=(1, 2)), Corpus(pair, negatives_from="all"),
        Corpus(shop, split=by_ratio), Corpus(shop, split=partial(by_ratio, valid=0.2)), excluding,
        Corpus(shop, users_share=0.5), Corpus(shop, users_share=0.5, seed=3),
        Corpus(shop, users_share=0.5, validate_all=False),
    ]  # fmt: skip
    assert len({json.dumps(corpus.settings(), sort_keys=True) for corpus in different}) == len(different)
    assert Corpus(shop, seed=3).settings() == Corpus(shop).settings()  # the seed draws nothing


def test_settings_that_fit_no_datasets_are_refused(shop_folder, market_folder, tmp_path):
    folders = [str(shop_folder), str(market_folder)]
    cases = {
        r"Corpus\.datasets = \[\] names no dataset": ([], {}),
        r"Corpus\.shares = .* must hold a number above 0 for each of 2": (folders, {"shares": [1.0]}),
        r"Corpus\.shares = .* must hold a number above 0": (folders, {"shares": [1.0, 0]}),
        r"Corpus\.negatives_from = 'some' is neither 'own' nor 'all'": (folders, {"negatives_from": "some"}),
        r"Corpus\.datasets has two datasets 'market'": ([folders[1], folders[1]], {}),
        r"Corpus\.users_share = 0 is not in \(0, 1\]": (folders, {"users_share": 0}),
        r"Corpus\.users_share = 1.5 is not in \(0, 1\]": (folders, {"users_share": 1.5}),
        r"Corpus\.datasets holds a int, neither a Dataset nor a folder": (5, {}),
        "nothing_here: no such dataset folder": (str(tmp_path / "nothing_here"), {}),
    }
    for message, (datasets, settings) in cases.items():
        with pytest.raises(InputError, match=message):
            Corpus(datasets, **settings)
    shutil.copytree(market_folder, tmp_path / "copy")
    assert Corpus([folders[1], str(tmp_path / "copy")]).train.counts.sum() > 0


def test_a_folder_is_verified(shop_folder, tmp_path):
    folder = shutil.copytree(shop_folder, tmp_path / "copy")
    path = folder / "items.arrow"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match="its checksum"):
        Corpus(folder)


def test_a_million_users_are_read_only_when_asked_for(shop):
    """Settings touch no interaction of a checked dataset; dividing a million users takes no time to speak of."""
    n_users, length = 1_000_000, 8
    large = dataclasses.replace(
        shop, offsets=np.arange(0, (n_users + 1) * length, length), items=None,
        interactions_table=pa.table({"user_id": pa.nulls(n_users, pa.string())}),
    )  # fmt: skip
    large.__dict__["checked"] = large
    splits = []
    started = time.perf_counter()
    corpus = Corpus(trusted(large), split=lambda data: splits.append(data) or leave_one_out(data))
    assert (corpus.data.n_users, corpus.n_groups, splits) == (n_users, 1, [])
    assert len(corpus.division.test.users) == n_users
    assert len(corpus.division.valid.users) == n_users
    assert len(splits) == 1
    assert time.perf_counter() - started < 1


def test_a_corpus_is_compared_by_identity(shop):
    corpus = Corpus(shop)
    assert {corpus: 1}[corpus] == 1
    assert corpus != Corpus(shop)
    assert isinstance(corpus.data, Dataset)
    assert corpora.users_named_in([]).to_pylist() == []


@pytest.mark.slow
def test_a_run_on_two_datasets_tells_of_each_and_leaves_users_out(both, ids, tmp_path):
    ranking = sr.Ranking(ks=(10,), batch_size=128)
    architecture = sr.Architecture(n_layers=1, hidden_size=16, max_length=20, lexical_size=8)
    corpus = Corpus(both.datasets, shares=(1, 1), exclude_users_of=[ids])
    config = sr.TrainConfig(
        epochs=1, train_batch_size=400, ranking=ranking, valid_metric="ndcg_at_10",
        loss=partial(sr.sampled_softmax, n_negatives=20),
    )  # fmt: skip
    model, results = sr.fit(sr.Recommender.create(corpus, architecture), corpus, config, tmp_path / "run")
    for part in ("valid", "test"):
        of_each = [results[part][f"{data.name}/ndcg_at_10"] for data in both.datasets]
        assert results[part]["ndcg_at_10"] == pytest.approx(np.mean(of_each))
    assert results["dataset"]["n_users"] == 390
    assert results["dataset"]["ties"] == {data.name: data.ties for data in both.datasets}
    market = Corpus(both.datasets[1])  # which has no brands
    report = sr.evaluate(model, market, ranking=ranking, draws=100)
    assert report.baselines["popularity"]["ndcg_at_10"] > 0
    assert report.test["ndcg_at_10"] > 0
