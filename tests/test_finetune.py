"""Fine-tuning from end to end: what is reported, what goes on after an interruption, what is refused."""

import json
import shutil

import gin
import jax
import numpy as np
import pytest

from etl.recbole import convert
from etl.synthetic_shop import make_shop
from seqrec_jax.data.store import open_dataset
from seqrec_jax.errors import InputError, Interrupted
from seqrec_jax.model import parameters
from seqrec_jax.tasks import finetune_stages as module
from seqrec_jax.tasks.evaluate import evaluate
from seqrec_jax.tasks.finetune import finetune
from seqrec_jax.tasks.pretrain import pretrain
from seqrec_jax.training.checkpoint import restore
from seqrec_jax.training.stopping import StopRequests
from seqrec_jax.training.transfer import ewc, from_scratch, full, l2_sp, progressive, untrained

BINDINGS = {
    "pretrain.epochs": 4,
    "pretrain.train_batch_size": 800,
    "pretrain.loss": "@full_softmax",
    "Architecture.n_layers": 1,
    "Architecture.hidden_size": 16,
    "Architecture.inner_size": 16,
    "Architecture.max_length": 20,
    "Architecture.lexical_size": 16,
    "Architecture.repeat_offset": True,
    "one_cycle.learning_rate": 1e-2,
    "Ranking.rows": 16,
    "Ranking.ks": (10,),
    "Tracker.uri": None,
}


def bind(**more):
    gin.clear_config()
    gin.parse_config([f"{name} = {value}" for name, value in (BINDINGS | more).items()])


@pytest.fixture(scope="session")
def market(shop_folder, tmp_path_factory):
    """A small shop whose items have titles and makers, made with the tokenizer of the large one."""
    folder = tmp_path_factory.mktemp("market")
    make_shop(folder / "raw", n_users=60, n_items=50, brands_per_activity=1, seed=9)
    item_file = next((folder / "raw").glob("*.item"))
    item_file.write_text(item_file.read_text().replace("brand:token_seq", "maker:token_seq"))
    tokens = {"title": 20, "maker": 4}
    convert(str(folder / "raw"), str(folder / "market"), tokenizer_from=str(shop_folder), max_tokens=tokens)
    return str(folder / "market")


@pytest.fixture(scope="session")
def checkpoint(shop_folder, tmp_path_factory):
    """A model of titles and brands."""
    bind()
    run_dir = str(tmp_path_factory.mktemp("pretrained") / "run")
    pretrain(dataset=str(shop_folder), run_dir=run_dir)
    gin.clear_config()
    return run_dir


def tuned(checkpoint, market, run_dir, **settings):
    bind()
    return finetune(checkpoint=checkpoint, dataset=market, run_dir=str(run_dir), train_batch_size=400, **settings)


def two_stages(n_layers):
    return progressive(n_layers, epochs_per_layer=1, final_epochs=2)[-2:]


def arrays_of(run_dir):
    return {name: np.asarray(array) for name, array in parameters.named(restore(run_dir).params).items()}


def test_a_report_of_what_was_gained_and_forgotten(checkpoint, market, shop_folder, tmp_path):
    results = tuned(
        checkpoint, market, tmp_path / "run", method=two_stages, pretraining_dataset=str(shop_folder),
        changes={"item_encoder": "text_and_id", "transitions": True}, averages=(0.5,), replay_share=0.2,
    )  # fmt: skip
    assert [stage["name"] for stage in results["stages"]] == ["top_1", "everything"]
    assert results["chosen"]["transitions"] >= 0
    data = open_dataset(market)
    assert results["slices"]["short_histories"]["users"] <= data.n_users
    assert results["zero_shot"]["test"]["ndcg_at_10"] > 0.1  # the texts of both shops are alike
    assert results["test"]["ndcg_at_10"] > 1.5 * results["zero_shot"]["test"]["ndcg_at_10"]
    bind()
    before = evaluate(checkpoint=checkpoint, dataset=str(shop_folder))["test"]
    assert results["pretraining"]["before"] == pytest.approx(before)
    assert results["pretraining"]["after"] != pytest.approx(before)
    record = restore(tmp_path / "run").record
    assert record.architecture.item_encoder == "text_and_id"
    assert dict(record.appended) == {"maker": open_dataset(market).tokens("maker").shape[1]}
    assert list(record.max_tokens) == ["title", "brand"]
    again = evaluate(checkpoint=str(tmp_path / "run"), dataset=market)
    assert again["test"] == pytest.approx(results["test"])
    assert again["params_sha256"] == results["params_sha256"]
    kinds = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["kind"], line["epoch"]) for line in kinds if line["kind"] != "step"] == [
        ("zero_shot", 0), ("epoch", 1), ("epoch", 2), ("epoch", 3), ("test", 3),
    ]  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "run").iterdir() if not path.name.startswith(".")) == [
        "checkpoints", "config.gin", "metrics.jsonl", "results.json", "tokenizer.model", "transitions.npz",
    ]  # fmt: skip


def test_transitions_are_added_to_a_trained_model_without_training_it(checkpoint, shop_folder, tmp_path):
    results = tuned(checkpoint, str(shop_folder), tmp_path / "run", method=untrained, changes={"transitions": True})
    assert results["stages"] == []
    before, after = arrays_of(checkpoint), arrays_of(tmp_path / "run")
    assert after.keys() - before.keys() == {"transitions"}
    assert after["transitions"] > 0
    for name, array in before.items():
        assert np.array_equal(array, after[name]) or name in ("repeat", "lexical/trust")
    bind()
    plain = evaluate(checkpoint=checkpoint, dataset=str(shop_folder))
    assert results["zero_shot"]["test"] == pytest.approx(plain["test"])
    assert results["valid"]["ndcg_at_10"] >= plain["valid"]["ndcg_at_10"]
    again = evaluate(checkpoint=str(tmp_path / "run"), dataset=str(shop_folder))
    assert again["test"] == pytest.approx(results["test"])


class StopAfter(StopRequests):
    """Asks to stop when it has been looked at so many times."""

    looks = 0
    limit = 10**9

    @property
    def asked(self):
        StopAfter.looks += 1
        return StopAfter.looks >= StopAfter.limit

    def reason(self, number, what="step"):
        return Interrupted(f"after {what} {number}", 143)


@pytest.mark.slow
@pytest.mark.parametrize("stop_at", [2, 9])
def test_what_was_interrupted_ends_as_what_was_not(checkpoint, market, shop_folder, tmp_path, monkeypatch, stop_at):
    settings = {"method": two_stages, "penalty": ewc, "pretraining_dataset": str(shop_folder), "ema_decay": 0.5}
    monkeypatch.setattr(module, "StopRequests", StopAfter)
    StopAfter.looks, StopAfter.limit = 0, 10**9
    gin.parse_config("ewc.n_batches = 2")
    undisturbed = tuned(checkpoint, market, tmp_path / "whole", **settings)
    StopAfter.looks, StopAfter.limit = 0, stop_at
    with pytest.raises(Interrupted):
        tuned(checkpoint, market, tmp_path / "parts", **settings)
    StopAfter.limit = 10**9
    assert tuned(checkpoint, market, tmp_path / "parts", **settings)["params_sha256"] == undisturbed["params_sha256"]
    assert tuned(checkpoint, market, tmp_path / "parts", **settings) == json.loads(
        (tmp_path / "parts" / "results.json").read_text()
    )


@pytest.mark.slow
def test_a_share_of_the_users_and_a_penalty(checkpoint, market, tmp_path):
    part = tuned(checkpoint, market, tmp_path / "part", users_share=0.5, penalty=l2_sp, method=two_stages)
    assert part["dataset"]["training_users"] == 30
    assert part["slices"]["cold_items"]["users"] > 0


@pytest.mark.slow
def test_from_scratch_starts_from_nothing(checkpoint, market, tmp_path):
    def once(n_layers):
        return full(n_layers, epochs=1)

    def scratch(n_layers):
        return from_scratch(n_layers, epochs=1)

    scratched = tuned(checkpoint, market, tmp_path / "scratch", method=scratch)
    assert scratched["zero_shot"] == tuned(checkpoint, market, tmp_path / "full", method=once)["zero_shot"]
    start, fresh, tuned_once = (arrays_of(path) for path in (checkpoint, tmp_path / "scratch", tmp_path / "full"))

    def far(arrays):
        return np.linalg.norm(arrays["item_encoder/tables/title"] - start["item_encoder/tables/title"])

    assert far(fresh) > 2 * far(tuned_once)


def test_bad_input_is_told_in_a_line_before_anything_is_written(checkpoint, market, shop_files, tmp_path):
    other = str(tmp_path / "other")
    convert(str(shop_files), other, vocab_size=300)
    few = tmp_path / "few"
    few.mkdir()
    (few / "few.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\nu\ta\t1\nu\tb\t2\n")
    (few / "few.item").write_text("item_id:token\ttitle:token_seq\na\tone\nb\ttwo\n")
    convert(str(few), str(tmp_path / "nobody"), tokenizer_from=checkpoint)
    newer = tmp_path / "newer"
    shutil.copytree(checkpoint, newer)
    cases = {
        r"holds no checkpoints folder; bind CHECKPOINT": {"checkpoint": str(tmp_path)},
        r"another tokenizer than the checkpoint's; make it again with": {"dataset": other},
        r"no user has anything to train on": {"dataset": str(tmp_path / "nobody")},
        r"bind PRETRAINING_DATASET": {"penalty": ewc},
        r"full.unfreeze_n_layers = 9, but the checkpoint's model has 1": {
            "method": lambda n: full(n, unfreeze_n_layers=9)
        },
        r"users_share = 0 is not in": {"users_share": 0},
        r"finetune.changes names 'n_layers'": {"changes": {"n_layers": 3}},
        r"replay_share needs pre-training data": {"replay_share": 0.5},
        r"finetune.averages = \(1.5,\)": {"averages": (1.5,)},
        r"finetune.train_batch_size = 3 does not divide": {"train_batch_size": 3},
        r"finetune.valid_metric = 'mrr' is not one of": {"valid_metric": "mrr"},
    }
    for message, settings in cases.items():
        bind()
        places = {"checkpoint": checkpoint, "dataset": market, "run_dir": str(tmp_path / "run")}
        with pytest.raises(InputError, match=message):
            finetune(**(places | {"train_batch_size": 400} | settings))
        assert not (tmp_path / "run").exists(), message


def test_one_user_is_enough(checkpoint, market, tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    rows = "".join(f"u\t{item}\t{time}\n" for time, item in enumerate("abcab"))
    (raw / "one.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\n" + rows)
    (raw / "one.item").write_text("item_id:token\ttitle:token_seq\na\tpen\nb\tink\nc\tpaper\n")
    convert(str(raw), str(tmp_path / "one"), tokenizer_from=checkpoint)
    results = tuned(checkpoint, str(tmp_path / "one"), tmp_path / "run", method=lambda n: full(n, epochs=1))
    assert results["dataset"] == {"n_users": 1, "n_items": 3, "n_inters": 5, "training_users": 1}
    assert len(jax.devices()) == 4
