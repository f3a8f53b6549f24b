"""Several datasets read as one: whose items and users are whose, who competes with whom, how much of each is read."""

import shutil

import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from etl.recbole import convert
from etl.synthetic_shop import make_shop
from seqrec_jax.data.batches import Mixture, PackedBatches
from seqrec_jax.data.joined import is_user_in, join, users_named_in
from seqrec_jax.data.packing import all_positions, pack
from seqrec_jax.data.split import leave_one_out, share_of_users, train_counts, training_log, without_users
from seqrec_jax.data.store import open_dataset
from seqrec_jax.errors import InputError
from seqrec_jax.losses.full_softmax import full_softmax
from seqrec_jax.losses.negatives import Keys, Predictions, shared
from seqrec_jax.losses.proposals.by_count import popularity
from seqrec_jax.losses.proposals.interface import Observed
from seqrec_jax.losses.sampled_softmax import sampled_softmax
from seqrec_jax.tasks.evaluate import evaluate
from seqrec_jax.tasks.pretrain import pretrain
from seqrec_jax.tasks.training_data import open_joined, training_batches, without_users_of


@pytest.fixture(scope="session")
def market_folder(shop_folder, tmp_path_factory):
    """Another shop of the same tokenizer, without brands."""
    folder = tmp_path_factory.mktemp("market")
    make_shop(folder / "raw", n_users=90, n_items=60, brands_per_activity=1, seed=7)
    convert(str(folder / "raw"), str(folder / "market"), tokenizer_from=str(shop_folder), max_tokens={"title": 20})
    return folder / "market"


@pytest.fixture
def joined(shop, market_folder):
    return join([shop, open_dataset(market_folder)])


def test_users_items_and_texts_are_found_again(joined):
    shop, market = joined.parts
    whole = joined.whole
    assert (whole.n_users, whole.n_items) == (shop.n_users + market.n_users, shop.n_items + market.n_items)
    assert whole.features == ("title", "brand")
    for user in (0, 17, shop.n_users - 1):
        np.testing.assert_array_equal(whole.user_items(user), shop.user_items(user))
    for user in (0, 41, market.n_users - 1):
        np.testing.assert_array_equal(whole.user_items(shop.n_users + user), market.user_items(user) + shop.n_items)
    everything = whole.items.take(np.random.default_rng(0).permutation(whole.n_interactions))
    assert len(everything) == shop.n_interactions + market.n_interactions
    titles, own = whole.tokens("title"), market.tokens("title")
    np.testing.assert_array_equal(titles[joined.rows_of(1)][:, : own.shape[1]], own)
    assert not whole.tokens("brand")[shop.n_items + 1 :].any()  # the market has none
    assert list(joined.domains()[[0, 1, shop.n_items, shop.n_items + 1, -1]]) == [0, 1, 1, 2, 2]
    split = leave_one_out(whole)
    assert joined.targets_of(1, split.test).users.max() < market.n_users
    assert sum(len(joined.targets_of(part, split.test).users) for part in (0, 1)) == len(split.test.users)


def test_one_dataset_is_its_own_union(shop):
    assert join([shop]).whole is shop


def test_another_tokenizer_is_refused_with_the_command(shop, shop_files, tmp_path):
    convert(source=str(shop_files), output=str(tmp_path / "other"), vocab_size=400)
    with pytest.raises(InputError, match=r"another tokenizer than .*TOKENIZER='"):
        join([shop, open_dataset(tmp_path / "other")])


def predictions(domains=None):
    """Five targets among ten items, the first four of one dataset."""
    rng = np.random.default_rng(0)
    table = jnp.asarray(rng.standard_normal((11, 4)), jnp.float32)
    targets = jnp.array([1, 4, 5, 10, 7])
    outputs = jnp.asarray(rng.standard_normal((5, 4)), jnp.float32)
    inputs = jnp.zeros((1, 5), jnp.int32)
    observed = Observed(targets, jnp.arange(5), inputs, inputs)
    drawn = jnp.array([[1, 2, 6, 8, 9, 3]])
    return Predictions(
        observed, outputs[None], table[inputs], outputs, table[targets], 10, table, None, drawn, drawn, domains
    )


DOMAINS = jnp.array([0, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2])


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_the_full_softmax_is_over_the_targets_own_catalog(label_smoothing):
    p = predictions(DOMAINS)
    losses = full_softmax(0.5, label_smoothing).losses(Keys(jax.random.key(0), jnp.arange(5)), p, None)
    logits = np.asarray(p.outputs @ p.embeddings.T, np.float64) / 0.5
    for row, target in enumerate(np.asarray(p.observed.targets)):
        own = np.flatnonzero(np.asarray(DOMAINS) == DOMAINS[target])
        normalizer = np.log(np.exp(logits[row, own]).sum())
        aim = (1 - label_smoothing) * logits[row, target] + label_smoothing * logits[row, own].mean()
        assert float(losses[row]) == pytest.approx(normalizer - aim, rel=1e-5)


def test_padding_leaves_gradients_finite():
    p = predictions(DOMAINS)
    observed = p.observed._replace(targets=jnp.zeros(5, jnp.int32))

    def total(outputs):
        of_padding = p._replace(
            observed=observed, hidden=outputs[None], outputs=outputs, repeat_offset=jnp.float32(-3), inputs=p.inputs + 1
        )
        return full_softmax().losses(Keys(jax.random.key(0), jnp.arange(5)), of_padding, None).sum()

    assert jnp.isfinite(jax.grad(total)(200 * p.outputs)).all()


def test_negatives_of_another_dataset_do_not_count():
    proposal = popularity(type("Log", (), {"counts": np.arange(11), "blocks": None}))
    loss = sampled_softmax(6, shared)
    keys = Keys(jax.random.key(0), jnp.arange(5))
    own = loss.losses(keys, predictions(DOMAINS), proposal)
    everybody = loss.losses(keys, predictions(), proposal)
    mine = predictions()._replace(drawn=jnp.array([[1, 2, 3]]), drawn_rows=jnp.array([[1, 2, 3]]))
    np.testing.assert_allclose(own[:2], loss.losses(keys, mine, proposal)[:2], rtol=1e-5)
    assert (own < everybody).all()


def test_an_epoch_reads_each_dataset_by_its_share(joined):
    whole, groups = joined.whole, joined.groups()
    split = leave_one_out(whole)
    settings = {"train_batch_size": 200, "loss_positions": "all", "max_length": 10}
    settings |= {"shards": 1, "seed": 0, "groups": groups}
    batches = training_batches(whole, split, **settings, shares=(1, 3))
    read = np.zeros(2)
    for step in range(2 * batches.steps_per_epoch):
        batch = batches.batch(step)
        targets = batch.items[batch.targets[batch.weights > 0]]
        read += np.bincount(joined.domains()[targets] - 1, minlength=2)
    assert read.sum() == 2 * batches.n_targets
    assert read[1] / read.sum() == pytest.approx(0.75, abs=0.02)
    plain = training_batches(whole, split, **settings)
    assert batches.n_targets == pytest.approx(plain.n_targets, rel=0.03)
    assert plain.n_targets == int(np.maximum(split.train_lengths - 1, 0).sum())


def test_windows_of_a_length_take_turns():
    lengths = np.array([2, 2, 2, 3, 2])
    mixture = Mixture(np.array([0, 0, 0, 0, 1]), np.array([0.5, 3.0]))
    windows = all_positions(np.array([0]), leave_one_out_of_nobody(), 3)._replace(
        starts=np.arange(0, 50, 10), lengths=lengths
    )
    places = mixture.lengths_of_places(lengths)
    assert sorted(places) == [2, 2, 2, 2, 2]  # half of three, rounded to 2; half of one, to none; three times one
    batches = PackedBatches(lambda at: at + 1, windows, pack(places, 3), rows=5, seed=0, mixture=mixture)
    seen = np.zeros(5)
    for step in range(20):
        for shard in batches.windows_of(step):
            seen += np.bincount(shard, minlength=5)
    assert seen[4] == 60
    assert seen[3] == 0
    assert seen[:3].sum() == 40
    assert seen[:3].min() > 5


def leave_one_out_of_nobody():
    from seqrec_jax.data.split import Split, Targets

    nobody = Targets(np.zeros(0, np.int64), np.zeros(0, np.int64))
    return Split(np.zeros(0, np.int64), nobody, nobody)


def test_users_of_another_dataset_are_left_out_of_all(shop, tmp_path):
    (tmp_path / "ids.txt").write_text("u3\nu5\nnobody\n")
    split = leave_one_out(shop)
    left = without_users_of(split, shop, [str(tmp_path / "ids.txt")])
    users = shop.interactions_table["user_id"].to_pylist()
    rows = [users.index("u3"), users.index("u5")]
    assert not left.train_lengths[rows].any()
    assert not np.isin(rows, left.test.users).any()
    assert len(left.test.users) == len(split.test.users) - np.isin(rows, split.test.users).sum()
    assert is_user_in(shop, users_named_in([str(shop.folder)])).all()
    nobody = without_users(split, np.ones(shop.n_users, bool))
    assert not train_counts(shop, nobody).any()
    with pytest.raises(InputError, match="no such dataset folder"):
        without_users_of(split, shop, [str(tmp_path / "missing")])


def test_shares_of_users_are_nested_and_test_on_all(shop):
    split = leave_one_out(shop)
    small, large = (share_of_users(split, share, seed=1) for share in (0.1, 0.5))
    assert np.count_nonzero(small.train_lengths) == 30
    assert set(np.flatnonzero(small.train_lengths)) < set(np.flatnonzero(large.train_lengths))
    assert set(small.valid.users) <= set(np.flatnonzero(small.train_lengths))
    np.testing.assert_array_equal(small.test.users, split.test.users)
    assert not np.array_equal(small.train_lengths, share_of_users(split, 0.1, seed=2).train_lengths)


def test_settings_that_fit_no_datasets_are_refused(shop_folder, market_folder, tmp_path):
    both = [str(shop_folder), str(market_folder)]
    cases = {
        "names no dataset": ([], None, "own"),
        "must hold a number above 0 for each of 2": (both, [1.0], "own"),
        "is neither 'own' nor 'all'": (both, None, "some"),
        "names two datasets 'market'": ([both[1], both[1]], None, "own"),
    }
    for message, arguments in cases.items():
        with pytest.raises(InputError, match=message):
            open_joined(*arguments)
    shutil.copytree(market_folder, tmp_path / "copy")
    assert len(open_joined([both[1], str(tmp_path / "copy")]).parts) == 2
    assert training_log(open_joined(both).whole, leave_one_out(open_joined(both).whole)).counts.sum() > 0


@pytest.mark.slow
def test_a_run_on_two_datasets_tells_of_each_and_leaves_users_out(shop_folder, market_folder, tmp_path):
    (tmp_path / "ids.txt").write_text("u3\nu5\n")
    gin.parse_config([f"{name} = {value}" for name, value in SMALL.items()])
    results = pretrain(
        dataset=[str(shop_folder), str(market_folder)], run_dir=str(tmp_path / "run"), epochs=1, train_batch_size=400,
        dataset_shares=[1, 1], exclude_users_of=[str(tmp_path / "ids.txt")],
    )  # fmt: skip
    figure = "ndcg_at_10"
    for part in ("valid", "test"):
        of_each = [results[part][f"{name}/{figure}"] for name in (shop_folder.name, "market")]
        assert results[part][figure] == pytest.approx(np.mean(of_each))
    assert results["dataset"]["n_users"] == 390
    gin.clear_config()
    gin.parse_config("Ranking.ks = (10,)")
    there = evaluate(checkpoint=str(tmp_path / "run"), dataset=str(market_folder))  # which has no brands
    assert there["baselines"]["popularity"][figure] > 0
    assert there["test"][figure] > 0


SMALL = {
    "Architecture.n_layers": 1,
    "Architecture.hidden_size": 16,
    "Architecture.max_length": 20,
    "Architecture.lexical_size": 8,
    "Ranking.ks": (10,),
    "Ranking.rows": 16,
    "sampled_softmax.n_negatives": 20,
    "Tracker.uri": None,
}
