"""A whole run on the tiny shop: results, checkpoint, MLflow, and what is refused."""

import dataclasses
import functools
import json
import shutil
import sqlite3
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from etl.recbole import convert
from seqrec_jax.data.corpus import Corpus
from seqrec_jax.data.split import Targets, leave_one_out
from seqrec_jax.errors import InputError
from seqrec_jax.evaluation.evaluate import evaluate
from seqrec_jax.evaluation.metrics import METRICS
from seqrec_jax.losses.full_softmax import full_softmax
from seqrec_jax.losses.negatives import shared
from seqrec_jax.losses.pairwise import bpr
from seqrec_jax.losses.proposals.by_count import popularity, uniform
from seqrec_jax.losses.proposals.co_counts import co_counts
from seqrec_jax.losses.proposals.in_batch import positive_mixing, similarity
from seqrec_jax.losses.proposals.knn import knn
from seqrec_jax.losses.sampled_softmax import sampled_softmax
from seqrec_jax.model import parameters, storage
from seqrec_jax.model.recommender import Recommender
from seqrec_jax.model.spec import Architecture
from seqrec_jax.runs.results import read_results
from seqrec_jax.runs.settings import RunSettings, Tracking
from seqrec_jax.training.config import TrainConfig
from seqrec_jax.training.fit import fit
from seqrec_jax.training.optimizers import adamw

ARCHITECTURE = Architecture(n_layers=1, hidden_size=32, hidden_dropout=0.1, attention_dropout=0.1)
CONFIG = TrainConfig(
    epochs=12, eval_every=4, train_batch_size=400, learning_rate=5e-3, optimizer=adamw,
    loss=functools.partial(sampled_softmax, n_negatives=64),
)  # fmt: skip
NEIGHBOURS = functools.partial(knn, pool_size=20)


def run(data, run_dir, architecture=None, settings=RunSettings(), max_tokens=None, **config):
    """A run of seconds, on the four simulated devices."""
    corpus, config = Corpus(data), dataclasses.replace(CONFIG, **config)
    architecture = dataclasses.replace(ARCHITECTURE, **(architecture or {}))
    model = Recommender.create(corpus, architecture, config.seed, max_tokens)
    return fit(model, corpus, config, run_dir, settings=settings)


@pytest.fixture(scope="module")
def finished(shop_folder, tmp_path_factory):
    """A finished run, tracked in MLflow: its folder, its model and its results."""
    folder = tmp_path_factory.mktemp("finished")
    settings = RunSettings(tracker=Tracking(f"sqlite:///{folder}/mlruns.sqlite"), config_text="# for people\n")
    fitted = run(shop_folder, folder / "run", settings=settings)
    return SimpleNamespace(folder=folder / "run", settings=settings, model=fitted.model, results=fitted.results)


def test_results_hold_what_is_promised_and_beat_popularity(finished):
    stored = read_results(finished.folder / "results.json", "")
    assert stored == finished.results
    names = {f"{metric}_at_{k}" for metric in METRICS for k in (5, 10)}
    assert set(stored["valid"]) == set(stored["test"]) == set(stored["baselines"]["popularity"]) == names
    assert set(stored["train"]) == {
        "seconds", "steps", "targets", "targets_per_second", "best_step", "skipped_steps", "seconds_waiting_for_data",
        "seconds_waiting_for_checkpoints",
    }  # fmt: skip
    n = stored["dataset"]["n_inters"]
    ties = {"dataset": {"order": "file", "neighbours": 0, "of": n - 300}}
    assert stored["dataset"] == {"n_users": 300, "n_items": 200, "n_inters": n, "ties": ties}
    assert stored["test"]["ndcg_at_10"] > 2 * stored["baselines"]["popularity"]["ndcg_at_10"]
    kept = {int(path.name) for path in (finished.folder / "checkpoints").iterdir()}
    steps = stored["train"]["steps"]
    assert kept == {steps * 8 // 12, steps, stored["train"]["best_step"]}
    config = json.loads((finished.folder / "config.json").read_text())
    assert config["TrainConfig"]["loss"]["n_negatives"] == 64
    assert config["Architecture"]["hidden_size"] == 32
    assert (finished.folder / "config.gin").read_text() == "# for people\n"


def test_the_fitted_model_is_the_one_in_the_folder_and_evaluates_alike(finished, shop_folder):
    loaded = storage.load(finished.folder)
    assert loaded.spec == finished.model.spec
    assert loaded.trained_with == finished.model.trained_with == Corpus(shop_folder).settings()
    digests = {parameters.sha256(model.params) for model in (loaded, finished.model)}
    assert digests == {finished.results["params_sha256"]}
    report = evaluate(finished.model, Corpus(shop_folder), ranking=CONFIG.ranking, draws=100).to_json()
    assert report["test"] == finished.results["test"]
    assert report["valid"] == finished.results["valid"]
    assert report["baselines"]["popularity"] == finished.results["baselines"]["popularity"]


@pytest.mark.slow
def test_a_run_repeats_bit_for_bit_and_the_seed_matters(finished, shop_folder, tmp_path):
    again = run(shop_folder, tmp_path / "again").results
    assert again["params_sha256"] == finished.results["params_sha256"]
    assert again["test"] == finished.results["test"]
    other = run(shop_folder, tmp_path / "other", seed=1).results
    assert other["params_sha256"] != finished.results["params_sha256"]


def test_training_may_begin_with_a_trained_model(finished, shop_folder, tmp_path):
    corpus, config = Corpus(shop_folder), dataclasses.replace(CONFIG, epochs=1, learning_rate=1e-9)
    before = parameters.sha256(finished.model.params)
    fitted = fit(finished.model, corpus, config, tmp_path / "run")
    assert fitted.results["test"]["ndcg_at_10"] == pytest.approx(finished.results["test"]["ndcg_at_10"], rel=0.05)
    assert parameters.sha256(finished.model.params) == before  # the start is copied, not given up
    fresh = Recommender.create(corpus, ARCHITECTURE)
    with pytest.raises(InputError, match=r"another configuration, Recommender.params_sha256 = \w+ \(now \w+\)"):
        fit(fresh, corpus, config, tmp_path / "run")


def test_mlflow_holds_the_references_names(finished):
    database = sqlite3.connect(finished.folder.parent / "mlruns.sqlite")
    params = dict(database.execute("select key, value from params"))
    assert {
        "dataset", "n_items", "n_inters", "n_layers", "hidden_size", "inner_size", "embedding_size", "n_heads",
        "train_batch_size", "epochs", "learning_rate", "weight_decay", "nce_num_negatives", "nce_sampling_strategy",
        "nce_global_negatives", "nce_temperature", "model_total_params", "model_non_emb_params", "forward_flops",
        "total_flops", "train_step_flops",
    } <= set(params)  # fmt: skip
    assert params["nce_num_negatives"] == "64"
    assert params["weight_decay"] == "0.01"
    assert (params["learning_rate"], params["users_share"]) == ("0.005", "1.0")
    assert float(params["train_step_flops"]) > 1e6
    assert params == finished.results["params"]
    metrics = {}
    for key, value, step in database.execute("select key, value, step from metrics order by step"):
        metrics.setdefault(key, []).append((step, value))
    assert len(metrics["train/train_loss"]) == 12
    assert [step for step, _ in metrics["valid/ndcg_at_10"]] == [4, 8, 12]
    assert metrics["test/ndcg_at_10"][0][1] == finished.results["test"]["ndcg_at_10"]
    assert {"train/learning_rate", "train/epoch", "time_epoch", "time_on_epoch_start"} <= set(metrics)
    assert database.execute("select status from runs").fetchall() == [("FINISHED",)]
    artifacts = {path.name for path in (finished.folder.parent / "mlartifacts").rglob("*") if path.is_file()}
    assert artifacts == {"config.json", "config.gin", "results.json"}


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": full_softmax},
        pytest.param({"loss": bpr, "proposal": uniform}, marks=pytest.mark.slow),
        pytest.param({"loss_positions": "last"}, marks=pytest.mark.slow),
        pytest.param(
            {"accumulation_steps": 2, "rematerialize": True, "compute_dtype": "bfloat16"}, marks=pytest.mark.slow
        ),
        pytest.param({"proposal": co_counts}, marks=pytest.mark.slow),
        pytest.param({"proposal": similarity}, marks=pytest.mark.slow),
        pytest.param({"proposal": NEIGHBOURS}, marks=pytest.mark.slow),
    ],
    ids=["full_softmax", "bpr", "last", "parts", "co_counts", "similarity", "knn"],
)
def test_other_losses_schemes_and_proposals_train(shop_folder, tmp_path, settings):
    results = run(shop_folder, tmp_path / "run", epochs=4, **settings).results
    assert results["test"]["ndcg_at_10"] > results["baselines"]["popularity"]["ndcg_at_10"]


def test_each_proposal_is_made_and_each_set_of_rows_packed_once(shop_folder, tmp_path, monkeypatch):
    from seqrec_jax.data import packing
    from seqrec_jax.training import compile as compile_

    compile_._batches.cache_clear()
    made, packed, pack = [], [], packing.pack

    def proposal(train):
        made.append(train)
        return popularity(train)

    monkeypatch.setattr(packing, "pack", lambda *args: packed.append(args) or pack(*args))
    run(shop_folder, tmp_path / "run", epochs=1, proposal=proposal)
    assert len(made) == 1
    assert len(packed) == 1


@pytest.mark.slow
def test_points_around_the_target_train_but_tell_no_items_apart(shop_folder, tmp_path):
    results = run(shop_folder, tmp_path / "run", epochs=4, proposal=positive_mixing).results
    best = run(shop_folder, tmp_path / "best", epochs=4).results
    assert 0 <= results["test"]["ndcg_at_10"] < best["test"]["ndcg_at_10"]


@pytest.mark.parametrize("encoder", ["id", "text_and_id"])
@pytest.mark.slow
def test_models_with_a_row_for_each_item(shop_folder, tmp_path, encoder):
    fitted = run(shop_folder, tmp_path / "run", {"item_encoder": encoder, "id_dropout": 0.2})
    results = fitted.results
    assert results["test"]["ndcg_at_10"] > 2 * results["baselines"]["popularity"]["ndcg_at_10"]
    again = evaluate(storage.load(tmp_path / "run"), Corpus(shop_folder), ranking=CONFIG.ranking, draws=100)
    assert again.test == results["test"]


@pytest.mark.slow
def test_data_without_text_train_models_of_ids_alone(shop_files, tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    shutil.copy(next(shop_files.glob("*.inter")), raw)
    convert(source=str(raw), output=str(tmp_path / "dataset"), max_tokens={})
    with pytest.raises(InputError, match=r"Architecture.item_encoder reads text, but .*dataset has none"):
        run(tmp_path / "dataset", tmp_path / "run")
    results = run(tmp_path / "dataset", tmp_path / "run", {"item_encoder": "id"}).results
    assert results["test"]["ndcg_at_10"] > 2 * results["baselines"]["popularity"]["ndcg_at_10"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"loss": functools.partial(sampled_softmax, n_negatives=201)},
         "sampled_softmax.n_negatives = 201 is not between 1 and the catalog's 200"),
        ({"loss": functools.partial(sampled_softmax, temperature=0.0)}, "sampled_softmax.temperature = 0.0 is not abo"),
        ({"proposal": functools.partial(popularity, alpha=-1.0)}, "popularity.alpha = -1.0"),
        ({"proposal": functools.partial(knn, pool_size=200)}, "knn.pool_size = 200"),
        ({"proposal": similarity, "train_batch_size": 200}, "TrainConfig.proposal draws from 2 rows of the batch"),
        ({"proposal": knn, "loss": functools.partial(sampled_softmax, n_negatives=20, negatives=shared)},
         "sampled_softmax.negatives = shared"),
        ({"architecture": {"transitions": True}}, "Architecture.transitions = True is weighed on validation"),
        ({"architecture": {"repeat_offset": True}}, "Architecture.repeat_offset = True is learnt from the histories'"),
        ({"architecture": {"embedding_size": 6}, "settings": RunSettings(model_axis=4)},
         "Architecture.embedding_size = 6 does not divide over RunSettings.model_axis = 4"),
        ({"settings": RunSettings(model_axis=3)}, "RunSettings.model_axis = 3 does not divide the 4 devices"),
        ({"train_batch_size": 120}, "= 120 is less than a row for each of 4 devices; set at least 200"),
        ({"train_batch_size": 3, "loss_positions": "last"}, "= 3 is less than a row for each of 4 devices; set at lea"),
        ({"max_tokens": {"colour": 3}}, "max_tokens names 'colour'"),
    ],
)  # fmt: skip
def test_impossible_settings_are_refused_before_anything_is_written(shop_folder, tmp_path, settings, words):
    with pytest.raises(InputError, match=words):
        run(shop_folder, tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_a_run_needs_a_folder_and_a_dataset_that_fits(finished, shop_files, shop_folder, tmp_path):
    with pytest.raises(InputError, match="fit: run_dir = None"):
        fit(finished.model, Corpus(shop_folder))
    convert(source=str(shop_files), output=str(tmp_path / "other"), vocab_size=300)
    with pytest.raises(InputError, match="was made with another tokenizer than the model's"):
        fit(finished.model, Corpus(tmp_path / "other"), CONFIG, tmp_path / "run")


@pytest.mark.slow
def test_training_stops_early(shop_folder, tmp_path):
    train = run(
        shop_folder, tmp_path / "run", epochs=60, eval_every=1, stopping_step=2, valid_metric="mrr_at_5"
    ).results["train"]  # fmt: skip
    assert train["steps"] < 60 * 8
    assert train["best_step"] == train["steps"] - 2 * 8


def test_a_loss_that_is_not_finite_names_the_step(shop_folder, tmp_path):
    with pytest.raises(InputError, match=r"the loss is (nan|inf) at step \d+; lower TrainConfig.learning_rate"):
        run(shop_folder, tmp_path / "run", learning_rate=1e38)


def test_a_run_that_diverges_in_its_last_step_has_no_metrics(shop_folder, tmp_path):
    with pytest.raises(
        InputError, match=r"dataset: the (scores|embeddings) of .* are not finite; the model has diverged"
    ):
        run(shop_folder, tmp_path / "run", learning_rate=1e30, epochs=1, train_batch_size=100_000)
    assert not (tmp_path / "run" / "results.json").exists()


def test_nobody_to_measure_by_is_refused_before_anything_is_written(shop_folder, tmp_path):
    def first_two(data):
        return leave_one_out(data)._replace(valid=Targets(*np.zeros((2, 0), np.int64)))

    corpus = Corpus(shop_folder, split=first_two)
    with pytest.raises(
        InputError, match=r"Corpus\.split leaves no target in valid, so there is nothing to measure: it puts no"
    ):
        fit(Recommender.create(corpus, ARCHITECTURE), corpus, CONFIG, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_holds_a_run_is_not_overwritten_unasked(finished, shop_folder):
    again = run(shop_folder, finished.folder, settings=finished.settings)
    assert again.results == finished.results
    assert parameters.sha256(again.model.params) == finished.results["params_sha256"]
    with pytest.raises(
        InputError,
        match=r"run: holds a run of another configuration, .*Architecture.n_heads = 2 \(now 4\), .*"
        r"TrainConfig.learning_rate = 0.005 \(now 0.001\), adamw.b2 = 0.95 \(now 0.9\), .*TrainConfig.proposal = "
        r"popularity \(now uniform\).*; bind another RUN_DIR, or RunSettings.overwrite = True",
    ):
        run(
            shop_folder, finished.folder, {"n_heads": 4}, proposal=uniform, learning_rate=1e-3,
            optimizer=functools.partial(adamw, b2=0.9),
        )  # fmt: skip
    assert read_results(finished.folder / "results.json", "") == finished.results


def test_four_devices_were_simulated():
    assert jax.device_count() == 4
