"""What an evaluation reports of the fit: metrics on train, and the loss on valid over the same negatives."""

import json

import numpy as np
import pytest

from seqrec_jax.data.corpus import Corpus
from seqrec_jax.data.split import last_training_targets
from seqrec_jax.devices import device_mesh, replicate
from seqrec_jax.evaluation.ranking import CorpusRanker, Ranking
from seqrec_jax.losses.full_softmax import full_softmax
from seqrec_jax.losses.sampled_softmax import sampled_softmax
from seqrec_jax.model.recommender import Recommender
from seqrec_jax.model.spec import Architecture
from seqrec_jax.runs.settings import Reports, RunSettings
from seqrec_jax.training.config import TrainConfig
from seqrec_jax.training.fit import fit

RANKING = Ranking(ks=(5,))


def epochs_of(run_dir):
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [of["metrics"] for of in map(json.loads, lines) if of["kind"] == "epoch"]


def train(corpus, run_dir, fit_users, **settings):
    """Two epochs, with the metrics of at most so many users."""
    model = Recommender.create(corpus, Architecture(hidden_size=8, n_layers=1, max_length=10))
    config = TrainConfig(epochs=2, train_batch_size=320, ranking=RANKING, valid_metric="ndcg_at_5", **settings)
    return fit(model, corpus, config, run_dir, settings=RunSettings(reports=Reports(fit_users=fit_users)))


def test_the_loss_on_valid_is_that_of_training_on_the_same_catalog(corpus, shop, tmp_path):
    fitted = train(corpus, tmp_path / "run", 1000, loss=full_softmax)
    reported, targets = epochs_of(tmp_path / "run"), corpus.division.valid
    histories = [shop.user_items(u)[:p] for u, p in zip(targets.users, targets.positions, strict=True)]
    ids = shop.items_table["item_id"].to_pylist()
    table = fitted.model.index(shop).recommend(
        histories=[[ids[item] for item in history] for history in histories], k=shop.n_items, exclude_seen=False
    )
    rows = {item: row for row, item in enumerate(ids)}
    items = np.array([rows[item] for item in table["item"].to_pylist()]).reshape(len(histories), -1)
    scores = np.asarray(table["score"]).reshape(items.shape)
    wanted = shop.items.take(shop.offsets[targets.users] + targets.positions)
    log_p = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
    expected = -log_p[items == wanted[:, None]].mean()
    best = max(range(len(reported)), key=lambda epoch: reported[epoch]["valid/ndcg_at_5"])
    assert reported[best]["valid/valid_loss"] == pytest.approx(expected, rel=1e-4)
    seen, mesh = last_training_targets(corpus.division, 1000, 2020), device_mesh()
    ranker = CorpusRanker(fitted.model.graph, corpus, seen, RANKING, mesh)
    on_train = ranker.metrics(*replicate(mesh, (fitted.model.params, fitted.model.features(shop))))
    assert reported[best]["train/ndcg_at_5"] == pytest.approx(on_train["ndcg_at_5"])


@pytest.mark.slow
def test_watching_the_fit_changes_no_parameter_and_meets_the_same_negatives(shop_folder, tmp_path):
    corpus = Corpus(shop_folder)
    settings = {"learning_rate": 1e-12, "loss": sampled_softmax_of_20}  # next to nothing is learnt
    plain = train(corpus, tmp_path / "plain", 0, **settings)
    assert "train/ndcg_at_5" not in epochs_of(tmp_path / "plain")[-1]
    watched = train(corpus, tmp_path / "watched", 50, **settings)
    assert plain.results["params_sha256"] == watched.results["params_sha256"]
    first, second = epochs_of(tmp_path / "watched")
    assert 0 <= first["train/ndcg_at_5"] <= 1
    assert first["valid/valid_loss"] == pytest.approx(second["valid/valid_loss"], abs=1e-6)


def sampled_softmax_of_20():
    return sampled_softmax(n_negatives=20)
