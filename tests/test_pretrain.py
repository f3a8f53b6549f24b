"""A whole run on the tiny shop: results, checkpoint, evaluation, recommendations, MLflow, and what is refused."""

import hashlib
import json
import shutil
import sqlite3

import gin
import jax
import pytest

from etl.recbole import convert
from seqrec_jax.errors import InputError
from seqrec_jax.evaluation.metrics import METRICS
from seqrec_jax.losses.full_softmax import full_softmax
from seqrec_jax.losses.pairwise import bpr
from seqrec_jax.losses.proposals.by_count import popularity, uniform
from seqrec_jax.tasks.evaluate import evaluate
from seqrec_jax.tasks.pretrain import pretrain
from seqrec_jax.tasks.recommend import recommend
from seqrec_jax.training import checkpoint

SETTINGS = """
pretrain.optimizer = @adamw
Architecture.hidden_size = 32
Architecture.n_layers = 1
Architecture.hidden_dropout = 0.1
Architecture.attention_dropout = 0.1
one_cycle.learning_rate = 5e-3
pretrain.train_batch_size = 400
sampled_softmax.n_negatives = 64
Ranking.rows = 8
Tracker.uri = None
"""


@pytest.fixture(autouse=True)
def small():
    """Settings of a run of seconds, on the four simulated devices."""
    gin.parse_config(SETTINGS)


def run(dataset, run_dir, **settings):
    return pretrain(
        dataset=str(dataset),
        run_dir=str(run_dir),
        **{"train_batch_size": 400, "epochs": 12, "eval_every": 4} | settings,
    )


@pytest.fixture(scope="module")
def finished(shop_folder, tmp_path_factory):
    """A finished run, tracked in MLflow: its folder and its results."""
    folder = tmp_path_factory.mktemp("finished")
    gin.clear_config()
    gin.parse_config(SETTINGS + f"\nTracker.uri = 'sqlite:///{folder}/mlruns.sqlite'")
    results = run(shop_folder, folder / "run")
    return folder / "run", results


def test_results_hold_what_is_promised_and_beat_popularity(finished):
    folder, results = finished
    stored = json.loads((folder / "results.json").read_text())
    assert stored == results
    names = {f"{metric}_at_{k}" for metric in METRICS for k in (5, 10, 20)}
    assert set(stored["valid"]) == set(stored["test"]) == set(stored["baselines"]["popularity"]) == names
    assert set(stored["train"]) == {
        "seconds", "steps", "targets", "targets_per_second", "best_step", "skipped_steps", "seconds_waiting_for_data",
        "seconds_waiting_for_checkpoints",
    }  # fmt: skip
    assert stored["dataset"] == {"n_users": 300, "n_items": 200, "n_inters": stored["dataset"]["n_inters"]}
    assert len(stored["params_sha256"]) == 64
    assert stored["test"]["ndcg_at_10"] > 2 * stored["baselines"]["popularity"]["ndcg_at_10"]
    assert "Architecture.hidden_size = 32" in (folder / "config.gin").read_text()
    kept = {int(path.name) for path in (folder / "checkpoints").iterdir()}
    steps = stored["train"]["steps"]
    assert kept == {steps * 8 // 12, steps, stored["train"]["best_step"]}


def test_evaluating_the_checkpoint_gives_the_same_figures(finished, shop_folder, tmp_path):
    folder, results = finished
    again = evaluate(checkpoint=str(folder), dataset=str(shop_folder), run_dir=str(tmp_path / "evaluation"))
    for part in ("valid", "test", "params_sha256"):
        assert again[part] == results[part]
    assert again["baselines"]["popularity"] == results["baselines"]["popularity"]
    assert json.loads((tmp_path / "evaluation" / "results.json").read_text()) == again


def test_recommendations_for_users_and_for_a_typed_history(finished, shop_folder, shop, capsys):
    folder, _ = finished
    ids = shop.items_table["item_id"].to_pylist()
    had = [ids[item] for item in shop.user_items(3)]
    best = recommend(checkpoint=str(folder), dataset=str(shop_folder), users=["u3"], history=had, k=7)
    assert best["u3"] == best["history"]
    assert len(best["u3"]) == 7
    assert not set(best["u3"]) & set(had)
    printed = capsys.readouterr().out
    assert shop.text([ids.index(best["u3"][0])], "title")[0].split()[0] in printed


def test_a_run_repeats_bit_for_bit_and_the_seed_matters(finished, shop_folder, tmp_path):
    _, results = finished
    again = run(shop_folder, tmp_path / "again")
    assert again["params_sha256"] == results["params_sha256"]
    assert again["test"] == results["test"]
    assert run(shop_folder, tmp_path / "other", seed=1)["params_sha256"] != results["params_sha256"]


def test_mlflow_holds_the_references_names(finished):
    folder, results = finished
    database = sqlite3.connect(folder.parent / "mlruns.sqlite")
    params = dict(database.execute("select key, value from params"))
    assert {
        "dataset", "n_items", "n_inters", "n_layers", "hidden_size", "inner_size", "embedding_size", "n_heads",
        "train_batch_size", "epochs", "learning_rate", "weight_decay", "nce_num_negatives", "nce_sampling_strategy",
        "nce_global_negatives", "nce_temperature", "model_total_params", "model_non_emb_params", "forward_flops",
        "total_flops", "train_step_flops",
    } <= set(params)  # fmt: skip
    assert params["nce_num_negatives"] == "64"
    assert params["weight_decay"] == "0.01"
    assert float(params["train_step_flops"]) > 1e6
    metrics = {}
    for key, value, step in database.execute("select key, value, step from metrics order by step"):
        metrics.setdefault(key, []).append((step, value))
    assert len(metrics["train/train_loss"]) == 12
    assert [step for step, _ in metrics["valid/ndcg_at_10"]] == [4, 8, 12]
    assert metrics["test/ndcg_at_10"][0][1] == results["test"]["ndcg_at_10"]
    assert {"train/learning_rate", "train/epoch", "time_epoch", "time_on_epoch_start"} <= set(metrics)
    assert database.execute("select status from runs").fetchall() == [("FINISHED",)]
    artifacts = {path.name for path in (folder.parent / "mlartifacts").rglob("*") if path.is_file()}
    assert artifacts == {"config.gin", "results.json"}


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": full_softmax},
        {"loss": bpr, "proposal": uniform},
        {"loss_positions": "last"},
        {"accumulation_steps": 2, "rematerialize": True, "compute_dtype": "bfloat16"},
    ],
)
def test_other_losses_and_schemes_train(shop_folder, tmp_path, settings):
    results = run(shop_folder, tmp_path / "run", epochs=4, **settings)
    assert results["test"]["ndcg_at_10"] > results["baselines"]["popularity"]["ndcg_at_10"]


@pytest.mark.parametrize("proposal", ["@co_counts", "@similarity", "@knn", "@mixed"])
def test_every_proposal_trains(shop_folder, tmp_path, proposal):
    gin.parse_config(f"pretrain.proposal = {proposal}")
    gin.parse_config("knn.pool_size = 20\nmixed.proposals = (@popularity, @knn)\nmixed.shares = (0.5, 0.5)")
    results = run(shop_folder, tmp_path / "run", epochs=4)
    assert results["test"]["ndcg_at_10"] > results["baselines"]["popularity"]["ndcg_at_10"]


@pytest.mark.slow
def test_points_around_the_target_train_but_tell_no_items_apart(shop_folder, tmp_path):
    gin.parse_config("pretrain.proposal = @positive_mixing")
    results = run(shop_folder, tmp_path / "run", epochs=4)
    best = run(shop_folder, tmp_path / "best", epochs=4, proposal=popularity)
    assert 0 <= results["test"]["ndcg_at_10"] < best["test"]["ndcg_at_10"]


@pytest.mark.parametrize("encoder", ["id", "text_and_id"])
def test_models_with_a_row_for_each_item(shop_folder, shop_files, tmp_path, encoder):
    gin.parse_config(f"Architecture.item_encoder = '{encoder}'\nArchitecture.id_dropout = 0.2")
    results = run(shop_folder, tmp_path / "run")
    assert results["test"]["ndcg_at_10"] > 2 * results["baselines"]["popularity"]["ndcg_at_10"]
    assert evaluate(checkpoint=str(tmp_path / "run"), dataset=str(shop_folder))["test"] == results["test"]

    smaller = shutil.copytree(shop_files, tmp_path / "raw")
    lines = next(smaller.glob("*.item")).read_text().splitlines(keepends=True)
    next(smaller.glob("*.item")).write_text("".join([lines[0], *reversed(lines[1:])]))
    convert(source=str(smaller), output=str(tmp_path / "other"), tokenizer_from=str(tmp_path / "run"))
    with pytest.raises(InputError, match=r"another catalog than the checkpoint's.*Architecture.item_encoder = '"):
        evaluate(checkpoint=str(tmp_path / "run"), dataset=str(tmp_path / "other"))


def test_data_without_text_train_models_of_ids_alone(shop_files, tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    shutil.copy(next(shop_files.glob("*.inter")), raw)
    convert(source=str(raw), output=str(tmp_path / "dataset"), max_tokens={})
    with pytest.raises(InputError, match=r"Architecture.item_encoder = 'text' reads text, but .*dataset has none"):
        run(tmp_path / "dataset", tmp_path / "run")
    assert not (tmp_path / "run").exists()
    gin.parse_config("Architecture.item_encoder = 'id'")
    results = run(tmp_path / "dataset", tmp_path / "run")
    assert results["test"]["ndcg_at_10"] > 2 * results["baselines"]["popularity"]["ndcg_at_10"]
    assert len(recommend(checkpoint=str(tmp_path / "run"), dataset=str(tmp_path / "dataset"), users=["u3"])["u3"]) == 10


@pytest.mark.parametrize(
    ("bindings", "words"),
    [
        (
            "sampled_softmax.n_negatives = 201",
            "sampled_softmax.n_negatives = 201 is not between 1 and the catalog's 200",
        ),
        ("sampled_softmax.temperature = 0.0", "sampled_softmax.temperature = 0.0 is not above 0"),
        ("popularity.alpha = -1.0", "popularity.alpha = -1.0"),
        ("pretrain.proposal = @knn\nknn.pool_size = 200", "knn.pool_size = 200"),
        ("pretrain.proposal = @similarity\npretrain.train_batch_size = 200", "pretrain.proposal = @similarity"),
        ("pretrain.proposal = @knn\nsampled_softmax.negatives = @shared", "sampled_softmax.negatives = @shared"),
        (
            "pretrain.proposal = @mixed\nmixed.proposals = (@popularity, @uniform)\nmixed.shares = (0.5, 0.6)",
            r"mixed.shares = \(0.5, 0.6\) sum to 1.1",
        ),
        ("Architecture.transitions = True", "Architecture.transitions = True is weighed on validation"),
        ("Architecture.repeat_offset = True", "Architecture.repeat_offset = True is learnt from the histories' items"),
        ("pretrain.compute_dtype = 'float8'", "pretrain.compute_dtype = 'float8'"),
        ("Architecture.item_encoder = 'image'", "Architecture.item_encoder = 'image' is not one of text, id"),
        ("Architecture.attention = 'cudnn'", "Architecture.attention = 'cudnn' drops no weights"),
    ],
)
def test_senseless_bindings_are_refused_by_name(shop_folder, tmp_path, bindings, words):
    gin.parse_config(bindings)
    with pytest.raises(InputError, match=words):
        pretrain(dataset=str(shop_folder), run_dir=str(tmp_path / "run"), epochs=2)
    assert not (tmp_path / "run").exists()


def test_training_stops_early(shop_folder, tmp_path):
    results = run(shop_folder, tmp_path / "run", epochs=60, eval_every=1, stopping_step=2, valid_metric="mrr_at_5")
    steps_per_epoch = results["train"]["steps"] // 60 or 1
    assert results["train"]["steps"] < 60 * 8
    assert results["train"]["best_step"] <= results["train"]["steps"] - 2 * steps_per_epoch


def test_a_loss_that_is_not_finite_names_the_step(shop_folder, tmp_path):
    gin.parse_config("one_cycle.learning_rate = 1e38")
    with pytest.raises(InputError, match=r"the loss is (nan|inf) at step \d+"):
        run(shop_folder, tmp_path / "run")


def test_a_folder_that_holds_a_run_is_not_overwritten_unasked(finished, shop_folder):
    folder, results = finished
    assert run(shop_folder, folder) == results
    gin.parse_config("one_cycle.learning_rate = 1e-3\nArchitecture.n_layers = 2")
    with pytest.raises(
        InputError,
        match=r"run: holds a run of another configuration, Architecture.n_layers = 1 \(now 2\), "
        r"one_cycle.learning_rate = 0.005 \(now 0.001\); bind another RUN_DIR, or pretrain.overwrite = True",
    ):
        run(shop_folder, folder)
    assert json.loads((folder / "results.json").read_text()) == results


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"train_batch_size": 120}, "does not divide over 4 devices in rows of 50 targets; bind at least 200"),
        ({"train_batch_size": 130, "loss_positions": "last"}, "pretrain.train_batch_size = 130 does not divide over 4"),
        ({"loss_positions": "some"}, "pretrain.loss_positions = 'some'"),
        ({"valid_metric": "auc"}, "pretrain.valid_metric = 'auc' is not one of recall_at_5"),
        ({"valid_metric": "ndcg_at_7"}, "pretrain.valid_metric = 'ndcg_at_7'"),
        ({"epochs": 0}, "pretrain.epochs = 0"),
        ({"max_tokens": {"colour": 3}}, "pretrain.max_tokens names 'colour'"),
    ],
)
def test_impossible_settings_are_refused_before_anything_is_written(shop_folder, tmp_path, settings, words):
    with pytest.raises(InputError, match=words):
        run(shop_folder, tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the finished run."""
    return shutil.copytree(finished[0], tmp_path / "copy")


def checkpoint_folder(run_dir):
    return run_dir / checkpoint.CHECKPOINTS / str(checkpoint.best_step(run_dir))


def test_a_dataset_of_another_tokenizer_is_refused(copied, shop_files, tmp_path):
    convert(source=str(shop_files), output=str(tmp_path / "other"), vocab_size=300)
    with pytest.raises(InputError, match=r"another tokenizer.*etl\.main.*TOKENIZER='.*tokenizer\.model'"):
        evaluate(checkpoint=str(copied), dataset=str(tmp_path / "other"))
    convert(source=str(shop_files), output=str(tmp_path / "same"), tokenizer_from=str(copied))
    assert evaluate(checkpoint=str(copied), dataset=str(tmp_path / "same"))["test"]


def test_a_checkpoint_of_another_shape_is_refused(copied, shop_folder):
    path = checkpoint_folder(copied) / "model" / "metadata"
    record = json.loads(path.read_text())
    record["architecture"]["inner_size"] = 48
    path.write_text(json.dumps(record))
    sums = path.parent.parent / checkpoint.CHECKSUMS
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    sums.write_text(json.dumps(json.loads(sums.read_text()) | {"model/metadata": digest}))
    with pytest.raises(InputError, match=r"parameter blocks/0/feed_forward/inner/bias has shape \(64,\).*\(48,\)"):
        evaluate(checkpoint=str(copied), dataset=str(shop_folder))


def test_missing_and_damaged_checkpoints_are_refused(copied, shop_folder, tmp_path):
    with pytest.raises(InputError, match="holds no checkpoints folder"):
        evaluate(checkpoint=str(tmp_path), dataset=str(shop_folder))
    shutil.rmtree(checkpoint_folder(copied) / "params")
    with pytest.raises(InputError, match=r"the checkpoint is damaged \(params/.* is missing\); move the folder away"):
        evaluate(checkpoint=str(copied), dataset=str(shop_folder))
    shutil.rmtree(copied / checkpoint.CHECKPOINTS)
    (copied / checkpoint.CHECKPOINTS).mkdir()
    with pytest.raises(InputError, match="holds no finished checkpoint"):
        evaluate(checkpoint=str(copied), dataset=str(shop_folder))


def test_unknown_users_and_items_are_named(copied, shop_folder):
    for settings, words in (
        ({"users": ["nobody"]}, "recommend.users: 'nobody'"),
        ({"history": ["nothing"]}, "recommend.history: 'nothing'"),
        ({}, "bind USERS"),
        ({"users": ["u1"], "k": 0}, "recommend.k = 0"),
    ):
        with pytest.raises(InputError, match=words):
            recommend(checkpoint=str(copied), dataset=str(shop_folder), **settings)


def test_four_devices_were_simulated():
    assert jax.device_count() == 4
