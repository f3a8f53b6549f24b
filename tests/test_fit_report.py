"""What an evaluation tells of the fit: metrics on train, and the loss on valid over the same negatives."""

import json

import gin
import numpy as np
import pytest

from seqrec_jax.data.split import last_training_targets, leave_one_out
from seqrec_jax.evaluation.metrics import summarize
from seqrec_jax.evaluation.ranking import Ranking
from seqrec_jax.evaluation.top_items import top_items
from seqrec_jax.losses.full_softmax import full_softmax
from seqrec_jax.tasks.pretrain import pretrain
from seqrec_jax.tasks.restored import open_checkpoint, target_ranks


def epochs_of(run_dir):
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [of["metrics"] for of in map(json.loads, lines) if of["kind"] == "epoch"]


@pytest.fixture
def bound():
    gin.parse_config(
        """
        Tracker.uri = None
        Architecture.hidden_size = 8
        Architecture.n_layers = 1
        Architecture.max_length = 10
        Ranking.ks = (5,)
        pretrain.valid_metric = 'ndcg_at_5'
        pretrain.train_batch_size = 320
        """
    )


def train(shop_folder, run_dir, **settings):
    return pretrain(dataset=str(shop_folder), run_dir=str(run_dir), **({"epochs": 2} | settings))


def test_the_loss_on_valid_is_that_of_training_on_the_same_catalog(shop, shop_folder, tmp_path, bound):
    gin.parse_config("Reports.fit_users = 1000")
    train(shop_folder, tmp_path / "run", loss=full_softmax)
    told = epochs_of(tmp_path / "run")
    opened = open_checkpoint(str(tmp_path / "run"), str(shop_folder))
    targets = leave_one_out(shop).valid
    histories = [shop.user_items(u)[:p] for u, p in zip(targets.users, targets.positions, strict=True)]
    items, scores = top_items(
        opened.restored.graph, opened.restored.params, opened.features, histories, k=shop.n_items, max_length=10,
        exclude_seen=False,
    )  # fmt: skip
    wanted = shop.items.take(shop.offsets[targets.users] + targets.positions)
    log_p = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
    expected = -log_p[items == wanted[:, None]].mean()
    best = max(range(len(told)), key=lambda epoch: told[epoch]["valid/ndcg_at_5"])
    assert told[best]["valid/valid_loss"] == pytest.approx(expected, rel=1e-4)
    seen = last_training_targets(leave_one_out(shop), 1000, 2020)
    counts = np.zeros(shop.n_items + 1)
    on_train = summarize(target_ranks(opened, seen, Ranking(), counts), (5,))
    assert told[best]["train/ndcg_at_5"] == pytest.approx(on_train["ndcg_at_5"])


def test_watching_the_fit_changes_no_parameter_and_meets_the_same_negatives(shop_folder, tmp_path, bound):
    gin.parse_config("sampled_softmax.n_negatives = 20\none_cycle.learning_rate = 1e-12")  # next to nothing is learnt
    plain = train(shop_folder, tmp_path / "plain")
    assert "train/ndcg_at_5" not in epochs_of(tmp_path / "plain")[-1]
    gin.parse_config("Reports.fit_users = 50")
    watched = train(shop_folder, tmp_path / "watched")
    assert plain["params_sha256"] == watched["params_sha256"]
    first, second = epochs_of(tmp_path / "watched")
    assert 0 <= first["train/ndcg_at_5"] <= 1
    assert first["valid/valid_loss"] == pytest.approx(second["valid/valid_loss"], abs=1e-6)
