"""Ranks of targets, by sorting and by what is recommended."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqrec_jax.data.corpus import Corpus
from seqrec_jax.data.split import leave_one_out, train_counts
from seqrec_jax.devices import device_mesh, replicate
from seqrec_jax.errors import InputError
from seqrec_jax.evaluation import ranks as ranks_module
from seqrec_jax.evaluation.metrics import summarize
from seqrec_jax.evaluation.ranking import CorpusRanker, Ranking, TargetRanker, popularity_ranks
from seqrec_jax.evaluation.ranks import rank_targets
from seqrec_jax.inference.encoding import encode_catalog
from seqrec_jax.losses.proposals.by_count import catalog_proposal
from seqrec_jax.model.recommender import Recommender
from seqrec_jax.model.spec import Architecture
from seqrec_jax.model.terms.interface import ScoreAdjustments

RNG = np.random.default_rng(0)


def ranks_of(outputs, catalog, targets, seen=None, n_sampled=None, ordinals=None, adjustments=None):
    ordinals = np.arange(len(targets)) if ordinals is None else ordinals
    return np.asarray(
        rank_targets(
            jnp.asarray(outputs), jnp.asarray(catalog), jnp.asarray(targets), jnp.asarray(ordinals),
            None if seen is None else jnp.asarray(seen), adjustments, n_sampled=n_sampled, seed=1,
        )
    )  # fmt: skip


@pytest.fixture
def scored():
    outputs, catalog = RNG.normal(size=(30, 4)).astype(np.float32), RNG.normal(size=(51, 4)).astype(np.float32)
    return outputs, catalog, RNG.integers(1, 51, 30)


@pytest.mark.parametrize("items_per_block", [7, 51, 4096])
def test_full_ranks_equal_sorting(scored, items_per_block, monkeypatch):
    monkeypatch.setattr(ranks_module, "ITEMS_PER_BLOCK", items_per_block)
    outputs, catalog, targets = scored
    scores = outputs @ catalog.T
    expected = [(np.delete(scores[i], [0, t]) >= scores[i, t]).sum() for i, t in enumerate(targets)]
    np.testing.assert_array_equal(ranks_of(outputs, catalog, targets), expected)


def test_ties_go_against_the_model():
    catalog = np.ones((11, 2), np.float32)
    np.testing.assert_array_equal(ranks_of(np.ones((1, 2), np.float32), catalog, np.array([4])), [9])


@pytest.mark.parametrize("offset", [-2.0, 1.5, -1000.0])
@pytest.mark.parametrize("masks", [False, True])
def test_items_whose_scores_are_adjusted_are_ranked_by_what_they_have_then(scored, offset, masks):
    outputs, catalog, targets = scored
    items = np.array([RNG.permutation(np.arange(1, 51))[:7] for _ in range(30)])
    amounts = np.array([offset, offset, offset, 0.7, 2.1, 0, 0], np.float32) * np.ones((30, 1), np.float32)
    items[:, 5], items[:, 6] = items[:, 0], 0  # the same item again, to which nothing is added, and padding
    for i, target in list(enumerate(targets))[::3]:
        if target not in items[i]:
            items[i, i % 5] = target
            items[i, 5] = items[i, 0]
    scores = outputs @ catalog.T
    np.add.at(scores, (np.arange(30)[:, None], items), amounts)
    adjustments = ScoreAdjustments(jnp.asarray(items, jnp.int32), jnp.asarray(amounts))
    seen = np.array([np.unique(row)[-4:] for row in items]) if masks else None
    left_out = [np.setdiff1d(row, target) for row, target in zip(seen, targets, strict=True)] if masks else [[]] * 30
    beats = [np.delete(scores[i] >= scores[i, t], [0, t, *left_out[i]]) for i, t in enumerate(targets)]
    expected = [row.sum() for row in beats]
    np.testing.assert_array_equal(ranks_of(outputs, catalog, targets, seen, adjustments=adjustments), expected)
    if not masks:
        sampled = ranks_of(outputs, catalog, targets, adjustments=adjustments, n_sampled=200_000) / 200_000
        np.testing.assert_allclose(sampled, np.array(expected) / 49, atol=0.01)


def test_seen_items_are_left_out_but_never_the_target(scored):
    outputs, catalog, targets = scored
    scores = outputs @ catalog.T
    seen = np.array([np.concatenate([RNG.permutation(np.arange(1, 51))[:5], [0, t if i % 2 else 0]])
                     for i, t in enumerate(targets)])  # fmt: skip
    expected = []
    for i, t in enumerate(targets):
        left = np.setdiff1d(np.arange(1, 51), [*seen[i], t])
        expected.append((scores[i, left] >= scores[i, t]).sum())
    for row in seen:  # histories hold distinct items
        distinct = np.unique(row)
        row[:] = np.pad(distinct, (0, 7 - len(distinct)))
    np.testing.assert_array_equal(ranks_of(outputs, catalog, targets, seen=seen), expected)


def test_sampled_ranks_are_fixed_by_seed_and_ordinal(scored):
    outputs, catalog, targets = scored
    ranks = ranks_of(outputs, catalog, targets, n_sampled=200)
    order = RNG.permutation(30)
    again = ranks_of(outputs[order], catalog, targets[order], n_sampled=200, ordinals=order)
    np.testing.assert_array_equal(again, ranks[order])
    full = ranks_of(outputs, catalog, targets)
    assert np.corrcoef(ranks / 200, full / 49)[0, 1] > 0.98
    assert abs(ranks.mean() / 200 - full.mean() / 49) < 0.02


@pytest.fixture
def model(corpus):
    architecture = Architecture(hidden_size=16, n_heads=2, inner_size=16, max_length=6, repeat_offset=True)
    model = Recommender.create(corpus, architecture, seed=0)
    return model.replace(params={name: 6 * array for name, array in model.params.items()})


def rank_by(shop, model, n_devices=1, **settings):
    mesh = device_mesh(jax.devices()[:n_devices])
    ranker = TargetRanker(model.graph, shop, leave_one_out(shop).test, Ranking(**settings), mesh)
    params = replicate(mesh, model.params)
    return ranker, ranker.ranks(params, encode_catalog(model.graph)(params, replicate(mesh, model.features(shop))))


@pytest.mark.parametrize("settings", [{}, {"mask_seen": True}, {"mode": "sampled50"}])
def test_devices_and_batch_size_do_not_change_a_rank(shop, model, settings):
    _, ranks = rank_by(shop, model, **settings)
    assert len(np.unique(ranks)) > 20
    for n_devices, size in ((4, 64), (2, 130)):
        np.testing.assert_array_equal(rank_by(shop, model, n_devices, batch_size=size, **settings)[1], ranks)


@pytest.mark.parametrize("mask_seen", [False, True])
def test_ranks_agree_with_the_recommendations(shop, model, mask_seen):
    _, ranks = rank_by(shop, model, mask_seen=mask_seen)
    histories = [shop.user_items(user)[:-1] for user in range(shop.n_users)]
    items, scores = model.index(shop).top(histories, k=200, exclude_seen=mask_seen)
    assert (np.diff(scores[:, :100]) <= 0).all()
    for user, rank in enumerate(ranks):
        target = shop.user_items(user)[-1]
        place = np.flatnonzero(items[user] == target)
        if len(place):
            assert abs(place[0] - rank) <= 2  # equal texts tie
        else:
            assert mask_seen
            assert target in histories[user]
        assert not mask_seen or not np.isin(items[user][items[user] > 0], histories[user]).any()


def test_popularity_ranks_by_training_count(shop, model):
    split = leave_one_out(shop)
    counts = train_counts(shop, split)
    ranker, _ = rank_by(shop, model)
    targets = [shop.user_items(user)[-1] for user in range(shop.n_users)]
    expected = [(counts[1:] >= counts[target]).sum() - 1 for target in targets]
    np.testing.assert_array_equal(popularity_ranks(ranker, counts), expected)
    assert counts.sum() == split.train_lengths.sum()


@pytest.mark.parametrize("wrong", [{"mode": "sampled"}, {"mode": "sampled0"}, {"ks": ()}, {"ks": (0,)}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(InputError):
        Ranking(**wrong)


def test_a_learnt_offset_keeps_the_history_out_of_rankings_and_recommendations(shop, model):
    low = model.replace(params=model.params | {"terms/repeat/offset": jnp.float32(-100.0)})
    targets = leave_one_out(shop).test
    never_again = [
        user for user, position in zip(*targets, strict=True)
        if shop.user_items(user)[position] not in shop.user_items(user)[:position] and position <= 6
    ]  # fmt: skip
    kept = np.isin(targets.users, never_again)
    assert kept.sum() > 20
    ranks = rank_by(shop, low)[1]
    np.testing.assert_array_equal(ranks[kept], rank_by(shop, model, mask_seen=True)[1][kept])
    assert (ranks < rank_by(shop, model)[1]).any()
    history = shop.user_items(3)[-6:]
    items, _ = low.index(shop).top([history], k=20, exclude_seen=False)
    assert not set(items[0]) & set(history)


def test_negatives_by_popularity_are_drawn_as_often_as_they_are_bought():
    counts = np.array([0, 999, 99, 9, 0, 0])
    popular = catalog_proposal(counts + 1.0)
    catalog = np.array([[0], [1], [2], [3], [4], [5]], np.float32)
    outputs = np.ones((400, 1), np.float32)

    def beaten(target):
        ranks = rank_targets(
            jnp.asarray(outputs), jnp.asarray(catalog), jnp.full(400, target), jnp.arange(400), None, None, popular,
            n_sampled=100, seed=3,
        )  # fmt: skip
        return np.asarray(ranks)

    share = (counts + 1) / (counts + 1)[1:].sum()
    for target in (1, 2, 3, 4):
        expected = share[target + 1 :].sum()
        assert beaten(target).mean() / 100 == pytest.approx(expected, abs=5 * np.sqrt(expected / 40_000))
    assert not beaten(5).any()  # it is drawn itself, which does not count
    np.testing.assert_array_equal(beaten(2), beaten(2))


def test_a_ranking_by_popularity_is_harder_than_one_among_all_alike(corpus, model):
    def score(mode):
        ranker = CorpusRanker(model.graph, corpus, corpus.division.test, Ranking(mode=mode, ks=(10,)), device_mesh())
        return ranker.popularity()["ndcg_at_10"]

    assert score("popular50") < score("sampled50")
    assert Ranking(mode="popular100").n_sampled == 100


def test_each_dataset_of_a_corpus_is_ranked_within_its_own_catalog(shop, model, tmp_path):
    both = Corpus([shop, str(shutil.copytree(shop.folder, tmp_path / "other"))])
    mesh = device_mesh(jax.devices()[:1])
    features = replicate(mesh, model.features(both.data, both.item_starts))
    metrics = CorpusRanker(model.graph, both, both.division.test, Ranking(ks=(10,)), mesh).metrics(
        replicate(mesh, model.params), features
    )
    alone = summarize(rank_by(shop, model)[1], (10,))
    for name, value in alone.items():
        assert metrics[name] == metrics[f"dataset/{name}"] == metrics[f"other/{name}"] == pytest.approx(value)
