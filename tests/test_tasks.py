"""Every task from its Gin file, as a user runs it, on the tiny shop."""

import json
import re
import shutil

import gin
import pyarrow as pa
import pytest

import seqrec_jax as sr
from etl.recbole import convert
from seqrec_jax.errors import InputError
from seqrec_jax.launcher import configure
from seqrec_jax.tasks import registry
from seqrec_jax.tasks.recommend import recommend

SMALL = [
    "Architecture.hidden_size = 32", "Architecture.inner_size = 32", "TrainConfig.train_batch_size = 800",
    "TrainConfig.learning_rate = 5e-3", "sampled_softmax.n_negatives = 64", "Tracker.uri = None",
]  # fmt: skip
SHORT = [*SMALL, "EPOCHS = 2", "TrainConfig.eval_every = 1"]


def run(gin_file, *bindings, **macros):
    """Runs the task of a Gin file."""
    gin.clear_config()
    configure([gin_file], [*bindings, *(f"{name} = {value!r}" for name, value in macros.items())], registry.MOVED)
    registry.run()


@pytest.fixture(scope="module")
def trained(shop_folder, tmp_path_factory):
    """The folder of a run of gin/beauty.gin."""
    folder = tmp_path_factory.mktemp("tasks") / "run"
    run("gin/beauty.gin", *SHORT, "pretrain.max_tokens = None", DATASET=str(shop_folder), RUN_DIR=str(folder))
    return folder


def test_pretrain_prints_what_it_has_written_and_keeps_its_configuration(trained, shop_folder, capsys):
    run("gin/beauty.gin", *SHORT, "pretrain.max_tokens = None", DATASET=str(shop_folder), RUN_DIR=str(trained))
    results = json.loads((trained / "results.json").read_text())
    printed = capsys.readouterr().out
    assert "(interactions at equal times, 0 %: in file order)" in printed
    assert f"{results['test']['ndcg_at_10']:.4f}" in printed
    assert f"{results['baselines']['popularity']['ndcg_at_10']:.4f}" in printed
    assert "Architecture.hidden_size = 32" in (trained / "config.gin").read_text()
    config = json.loads((trained / "config.json").read_text())
    assert config["TrainConfig"]["loss"]["n_negatives"] == 64
    assert config["TrainConfig"]["optimizer"]["b2"] == 0.98


def test_evaluate_gives_the_metrics_of_training(trained, shop_folder, tmp_path, capsys, monkeypatch):
    asked = []
    monkeypatch.setattr("seqrec_jax.tasks.evaluate.trained_sasrec", lambda *of: asked.append(of) or sr.load(trained))
    run(
        "gin/evaluate.gin", CHECKPOINT=str(trained), DATASET=str(shop_folder), RUN_DIR=str(tmp_path / "out"),
        SASREC="sasrec",
    )  # fmt: skip
    ((folder, dataset, split, tracker),) = asked
    assert (folder, str(dataset), split) == ("sasrec", str(shop_folder), sr.leave_one_out)
    assert tracker.uri == "sqlite:///mlruns.sqlite"
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    results = json.loads((trained / "results.json").read_text())
    for part in ("valid", "test"):
        assert found[part] == pytest.approx(results[part])
    assert found["params_sha256"] == results["params_sha256"]
    printed = capsys.readouterr().out
    assert found["dataset"] == results["dataset"]
    assert "(interactions at equal times, 0 %" in printed
    for words in ("Results on test", "SASRec, trained", "this model, on valid", "Slices of test", "% of the", "Gini"):
        assert words in printed


def test_compare_a_checkpoint_with_itself(trained, shop_folder, tmp_path, capsys):
    run(
        "gin/compare.gin", "Tracker.uri = None", "compare.draws = 100", CHECKPOINTS=[str(trained)] * 2,
        DATASET=str(shop_folder), RUN_DIR=str(tmp_path),
    )  # fmt: skip
    found = json.loads((tmp_path / "comparison.json").read_text())
    assert found["checkpoints"] == [str(trained)] * 2
    assert found["metrics"]["ndcg_at_10"]["difference"] == 0
    assert found["dataset"]["ties"]["dataset"]["order"] == "file"
    printed = capsys.readouterr().out
    assert "users better" in printed
    assert "(interactions at equal times, 0 %: in file order)" in printed
    with pytest.raises(InputError, match=r"CHECKPOINTS .* must name two"):
        run("gin/compare.gin", CHECKPOINTS=[str(trained)], DATASET=str(shop_folder))


def test_a_user_may_be_called_history(shop_files, tmp_path, capsys):
    raw = tmp_path / "raw"
    shutil.copytree(shop_files, raw)
    log = next(raw.glob("*.inter"))
    log.write_text(re.sub(r"^u3\t", "history\t", log.read_text(), flags=re.MULTILINE))
    convert(source=str(raw), output=str(tmp_path / "data"), vocab_size=500)
    data = sr.open_dataset(tmp_path / "data")
    model = sr.Recommender.create(sr.Corpus([data]), sr.Architecture(n_layers=1, hidden_size=16, inner_size=16))
    model.save(tmp_path / "model")
    items = data.items_table["item_id"][1:3].to_pylist()
    found = recommend(str(tmp_path / "model"), str(data.folder), users=["history", "u4"], history=items, k=2)
    assert list(found) == ["history", "u4", None]
    assert all(len(best) == 2 for best in found.values())
    printed = capsys.readouterr().out
    assert all(title in printed for title in ("user history", "user u4", "typed history"))


def test_recommend_for_users_and_for_a_typed_history(trained, shop, capsys):
    gin.clear_config()
    items = shop.items_table["item_id"][1:4].to_pylist()
    best = sr.load(trained).index(shop).recommend(histories=[items], k=3)
    run("gin/recommend.gin", CHECKPOINT=str(trained), DATASET=str(shop.folder), USERS=["u3", "u5"], HISTORY=items, K=3)
    printed = capsys.readouterr().out
    for words in ("user u3", "user u5", "typed history", "score", *items, *best["item"].to_pylist()):
        assert words in printed
    for macros, words in (
        ({}, "bind USERS"),
        ({"USERS": ["nobody"]}, "'nobody' is not in"),
        ({"HISTORY": ["nothing"]}, "'nothing' is not in"),
        ({"USERS": ["u3"], "K": 0}, "k = 0 is no number from 1"),
    ):
        with pytest.raises(InputError, match=words):
            run("gin/recommend.gin", CHECKPOINT=str(trained), DATASET=str(shop.folder), **macros)


def test_finetune_reports_before_and_after(trained, shop_folder, tmp_path, capsys):
    run(
        "gin/finetune_full.gin", *SHORT[1:], "Tracker.uri = None", CHECKPOINT=str(trained), DATASET=str(shop_folder),
        RUN_DIR=str(tmp_path / "tuned"), PRETRAINING_DATASET=str(shop_folder),
    )  # fmt: skip
    results = json.loads((tmp_path / "tuned" / "results.json").read_text())
    printed = capsys.readouterr().out
    shown = f"{results['test']['ndcg_at_10']:.4f}"
    for words in ("(interactions at equal times", "zero-shot", "Transfer", "pre-training datasets", shown):
        assert words in printed


def test_weights_are_exported_and_imported(trained, shop_folder, tmp_path):
    run("gin/export.gin", CHECKPOINT=str(trained), OUTPUT=str(tmp_path / "m.safetensors"))
    run(
        "gin/import.gin", SOURCE=str(tmp_path / "m.safetensors"), DATASET=str(shop_folder),
        RUN_DIR=str(tmp_path / "again"),
    )  # fmt: skip
    first, again = sr.load(trained), sr.load(tmp_path / "again")
    assert first.spec == again.spec
    for name, array in first.params.items():
        assert (array == again.params[name]).all()


@pytest.mark.slow
def test_the_ligr_recipe_trains(shop_folder, tmp_path):
    run("gin/ligr.gin", *SHORT, DATASET=str(shop_folder), RUN_DIR=str(tmp_path / "run"))
    assert sr.load(tmp_path / "run").architecture.block == "ligr"


def test_quickstart_from_raw_files_to_recommendations(shop_files, tmp_path, capsys):
    run(
        "gin/quickstart.gin", *SMALL, "EPOCHS = 1", "convert.vocab_size = 500", SOURCE=str(shop_files),
        RUN_DIR=str(tmp_path / "run"),
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert printed.index("this model") < printed.index("user u0") < printed.index("user u1") < printed.index("user u2")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["dataset"]["n_items"] == 200
    assert sr.load(tmp_path / "run").spec.texts


def test_the_api_takes_what_the_tasks_have_made(trained, shop):
    served = sr.load(trained).index(shop).recommend(users=["u3"], k=4)
    assert isinstance(served, pa.Table)
    assert served.column_names == ["user", "rank", "item", "score"]
