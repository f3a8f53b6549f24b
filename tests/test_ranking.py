"""Ranks of targets, by sorting and by what is recommended."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqrec_jax.data.corpus import Corpus
from seqrec_jax.data.split import Targets, leave_one_out, train_counts
from seqrec_jax.devices import device_mesh, replicate
from seqrec_jax.errors import InputError
from seqrec_jax.evaluation import ranks as ranks_module
from seqrec_jax.evaluation.metrics import summarize
from seqrec_jax.evaluation.ranking import CorpusRanker, Ranking, TargetRanker, check_ranking, popularity_ranks
from seqrec_jax.evaluation.ranks import LAST, draw_distinct, rank_targets
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


def sample_of(ordinal, target, n, n_items):
    """The negatives of a target, as rank_targets draws them with seed 1."""
    key = jax.random.fold_in(jax.random.key(1, impl="threefry2x32"), ordinal)
    return np.delete(np.arange(1, n_items + 1), target - 1)[np.asarray(draw_distinct(key, n, n_items - 1))]


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


@pytest.mark.parametrize("offset", [1.5, -1000.0])
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
    sampled = ranks_of(outputs, catalog, targets, seen, adjustments=adjustments, n_sampled=20)
    for i, target in enumerate(targets):
        drawn = np.setdiff1d(sample_of(i, target, 20, 50), left_out[i])
        assert sampled[i] == (scores[i, drawn] >= scores[i, target]).sum()


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
        row[:] = np.pad(distinct, (7 - len(distinct), 0))
    np.testing.assert_array_equal(ranks_of(outputs, catalog, targets, seen=seen), expected)


def test_sampled_ranks_are_fixed_by_seed_and_ordinal(scored):
    outputs, catalog, targets = scored
    ranks = ranks_of(outputs, catalog, targets, n_sampled=20)
    order = RNG.permutation(30)
    again = ranks_of(outputs[order], catalog, targets[order], n_sampled=20, ordinals=order)
    np.testing.assert_array_equal(again, ranks[order])
    full = ranks_of(outputs, catalog, targets)
    assert np.corrcoef(ranks / 20, full / 49)[0, 1] > 0.9
    assert abs(ranks.mean() / 20 - full.mean() / 49) < 0.05
    np.testing.assert_array_equal(ranks_of(outputs, catalog, targets, n_sampled=49), full)


@pytest.mark.parametrize(("n", "total"), [(1, 1), (5, 5), (3, 64), (17, 65), (1000, 1001), (10_000, 85_681)])
def test_negatives_are_distinct_and_every_item_is_as_likely(n, total):
    draw = jax.jit(jax.vmap(lambda key: draw_distinct(key, n, total)))
    drawn = np.asarray(draw(jax.random.split(jax.random.key(0), max(1, min(2000, 200_000 // n)))))
    assert drawn.min() >= 0
    assert drawn.max() < total
    assert (np.diff(np.sort(drawn, 1)) > 0).all()
    times, expected = np.bincount(drawn.ravel(), minlength=total), drawn.size / total
    assert ((times - expected) ** 2).mean() <= 1.5 * expected * (1 - n / total)


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("n_sampled", [None, 20])
def test_what_is_not_finite_ranks_last_and_beats_nothing(scored, broken, n_sampled):
    outputs, catalog, targets = scored
    whole = ranks_of(outputs, catalog, targets, n_sampled=n_sampled)
    outputs = outputs.copy()
    outputs[3, 1] = broken
    ranks = ranks_of(outputs, catalog, targets, n_sampled=n_sampled)
    assert ranks[3] == LAST
    np.testing.assert_array_equal(np.delete(ranks, 3), np.delete(whole, 3))
    amounts = np.full((30, 1), [0.5], np.float32)
    amounts[5] = np.nan
    adjustments = ScoreAdjustments(jnp.asarray(targets[:, None] % 50 + 1), jnp.asarray(amounts))
    assert ranks_of(outputs, catalog, targets, adjustments=adjustments, n_sampled=n_sampled)[5] == LAST


@pytest.mark.parametrize("name", ["norm/scale", "item_encoder/tables/title"])
@pytest.mark.parametrize("mode", ["full", "sampled20"])
def test_a_ranking_of_scores_that_are_not_finite_is_refused(shop, model, name, mode):
    params = dict(model.params)
    params[name] = params[name].at[5:50].set(jnp.nan)
    with pytest.raises(
        InputError, match=r"dataset: the (scores|embeddings) of \d+ .*not finite; the model has diverged"
    ):
        rank_by(shop, model.replace(params=params), mode=mode)


def test_items_that_a_user_had_are_left_out_of_a_sample(shop, model):
    masked, plain = (rank_by(shop, model, mode="sampled150", mask_seen=masks)[1] for masks in (True, False))
    assert (masked <= plain).all()
    assert masked.sum() < plain.sum()


def test_a_sample_as_large_as_the_catalog_is_the_catalog(shop, corpus, model, caplog):
    full = rank_by(shop, model)[1]
    for mode in ("sampled199", "sampled100000", "popular199"):
        np.testing.assert_array_equal(rank_by(shop, model, mode=mode)[1], full)
    check_ranking(corpus, Ranking(mode="sampled199"))
    assert "'sampled199': dataset has 200 items, so targets are ranked among the whole catalog" in caplog.text


@pytest.fixture
def model(corpus):
    architecture = Architecture(hidden_size=16, n_heads=2, inner_size=16, max_length=6, repeat_offset=True)
    model = Recommender.create(corpus, architecture, seed=0)
    return model.replace(params={name: 6 * array for name, array in model.params.items()})


def rank_by(shop, model, n_devices=1, **settings):
    mesh, split = device_mesh(jax.devices()[:n_devices]), leave_one_out(shop)
    counts = train_counts(shop, split)
    ranker = TargetRanker(model.graph, shop, split.test, Ranking(**settings), mesh, counts=counts)
    params = replicate(mesh, model.params)
    return ranker, ranker.ranks(params, encode_catalog(model.graph)(params, replicate(mesh, model.features(shop))))


@pytest.mark.parametrize("settings", [{}, {"mask_seen": True, "mode": "sampled50"}])
@pytest.mark.slow
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


def test_negatives_by_popularity_are_drawn_by_how_often_they_are_bought():
    counts = np.array([0, 999, 99, 9, 0, 0])
    popular = catalog_proposal(counts + 1.0)
    catalog = np.array([[0], [1], [2], [3], [4], [5]], np.float32)
    outputs = np.ones((400, 1), np.float32)

    def beaten(target):
        ranks = rank_targets(
            jnp.asarray(outputs), jnp.asarray(catalog), jnp.full(400, target), jnp.arange(400), None, None, popular,
            n_sampled=3, seed=3,
        )  # fmt: skip
        return np.asarray(ranks)

    share = (counts + 1) / (counts + 1)[1:].sum()
    for target in (1, 2, 3, 4):
        expected = (1 - (1 - share[target + 1 :]) ** 3).sum()  # an item that is drawn again counts once
        assert beaten(target).mean() == pytest.approx(expected, abs=5 * np.sqrt(expected / 400) + 1e-9)
    assert not beaten(5).any()  # it is drawn itself, which does not count
    np.testing.assert_array_equal(beaten(2), beaten(2))


def test_a_ranking_by_popularity_is_harder_than_one_among_all_alike(corpus, model):
    def score(mode):
        ranker = CorpusRanker(model.graph, corpus, corpus.division.test, Ranking(mode=mode, ks=(10,)), device_mesh())
        return ranker.popularity()["ndcg_at_10"]

    assert score("popular50") < score("sampled50")
    assert [Ranking(mode="popular100").n_sampled(n) for n in (100, 101, 102)] == [None, None, 100]


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


def test_several_datasets_without_a_target_have_no_metrics(shop, model, tmp_path):
    both = Corpus([shop, str(shutil.copytree(shop.folder, tmp_path / "other"))])
    nobody = Targets(*np.zeros((2, 0), np.int64))
    assert CorpusRanker(model.graph, both, nobody, Ranking(), device_mesh(jax.devices()[:1])).popularity() == {}
