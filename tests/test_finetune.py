"""Fine-tuning from end to end: what is reported, what goes on after an interruption, what is refused."""

import functools
import json

import jax
import numpy as np
import pytest

from etl.recbole import convert
from etl.synthetic_shop import make_shop
from seqrec_jax.data.corpus import Corpus
from seqrec_jax.data.store import open_dataset
from seqrec_jax.errors import InputError, Interrupted
from seqrec_jax.evaluation.evaluate import evaluate
from seqrec_jax.evaluation.ranking import Ranking
from seqrec_jax.finetuning.config import FinetuneConfig
from seqrec_jax.finetuning.finetune import finetune
from seqrec_jax.finetuning.methods import from_scratch, full, progressive, untrained
from seqrec_jax.finetuning.penalties import ewc, l2_sp
from seqrec_jax.losses.full_softmax import full_softmax
from seqrec_jax.model.recommender import Recommender
from seqrec_jax.model.spec import Architecture
from seqrec_jax.model.storage import load
from seqrec_jax.runs import run as runs
from seqrec_jax.runs.results import read_results
from seqrec_jax.runs.stopping import StopRequests
from seqrec_jax.training.config import TrainConfig
from seqrec_jax.training.fit import fit
from seqrec_jax.training.optimizers import adamw

RANKING = Ranking(ks=(10,), batch_size=64)
ARCHITECTURE = Architecture(
    n_layers=1, hidden_size=16, inner_size=16, max_length=20, lexical_size=16, repeat_offset=True
)
TRAIN = TrainConfig(
    train_batch_size=400, loss=full_softmax, optimizer=adamw, learning_rate=1e-2, stopping_step=5, ranking=RANKING
)
ONCE = functools.partial(full, epochs=1)


@pytest.fixture(scope="session")
def market(shop_folder, tmp_path_factory):
    """A small shop whose items have titles and makers, made with the tokenizer of the large one."""
    folder = tmp_path_factory.mktemp("market")
    make_shop(folder / "raw", n_users=60, n_items=50, brands_per_activity=1, seed=9)
    item_file = next((folder / "raw").glob("*.item"))
    item_file.write_text(item_file.read_text().replace("brand:token_seq", "maker:token_seq"))
    tokens = {"title": 20, "maker": 4}
    convert(str(folder / "raw"), str(folder / "market"), tokenizer_from=str(shop_folder), max_tokens=tokens)
    return folder / "market"


@pytest.fixture(scope="session")
def pretrained(shop_folder, tmp_path_factory):
    """A model of titles and brands."""
    corpus, config = Corpus(shop_folder), TrainConfig(
        epochs=4, train_batch_size=800, loss=full_softmax, learning_rate=1e-2, ranking=RANKING
    )  # fmt: skip
    run_dir = tmp_path_factory.mktemp("pretrained") / "run"
    return fit(Recommender.create(corpus, ARCHITECTURE), corpus, config, run_dir).model


def tuned(model, target, run_dir, pretraining=None, **settings):
    target = target if isinstance(target, Corpus) else Corpus(target)
    return finetune(model, target, FinetuneConfig(train=TRAIN, **settings), run_dir, pretraining=pretraining)


def two_phases(n_layers):
    return progressive(n_layers, epochs_per_layer=1, final_epochs=2)[-2:]


def lines_of(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_a_report_of_what_was_gained_and_forgotten(pretrained, market, shop_folder, tmp_path):
    model, results = tuned(
        pretrained, market, tmp_path / "run", method=two_phases, pretraining=Corpus(shop_folder),
        changes={"item_encoder": "text_and_id", "transitions": True}, averages=(0.5,), replay_share=0.2,
    )  # fmt: skip
    assert [phase["name"] for phase in results["phases"]] == ["top_1", "everything"]
    assert results["chosen"]["transitions/weight"] >= 0
    data = open_dataset(market)
    assert results["slices"]["short_histories"]["users"] <= data.n_users
    assert results["zero_shot"]["test"]["ndcg_at_10"] > 0.1  # the texts of both shops are alike
    assert results["test"]["ndcg_at_10"] > 1.5 * results["zero_shot"]["test"]["ndcg_at_10"]
    before = evaluate(pretrained, Corpus(shop_folder), ranking=RANKING, draws=100).test
    assert results["pretraining"]["before"] == pytest.approx(before)
    assert results["pretraining"]["after"] != pytest.approx(before)
    assert model.architecture.item_encoder == "text_and_id"
    assert [text.name for text in model.spec.texts] == ["title", "brand"]
    assert dict(model.spec.texts[0].appended) == {"maker": data.tokens("maker").shape[1]}
    again = evaluate(model, Corpus(market), ranking=RANKING, draws=100)
    assert again.test == pytest.approx(results["test"])
    assert again.params_sha256 == results["params_sha256"]
    assert [(line["kind"], line["epoch"]) for line in lines_of(tmp_path / "run") if line["kind"] != "step"] == [
        ("zero_shot", 0), ("epoch", 1), ("epoch", 2), ("epoch", 3), ("test", 3),
    ]  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "run").iterdir() if not path.name.startswith(".")) == [
        "checkpoints", "config.json", "metrics.jsonl", "results.json", "tokenizer.model", "transitions.npz",
    ]  # fmt: skip


def test_transitions_are_added_to_a_trained_model_without_training_it(pretrained, shop_folder, tmp_path, monkeypatch):
    corpus, logged = Corpus(shop_folder), {}
    monkeypatch.setattr(runs.Run, "track", lambda run, params=None, artifacts=(): logged.update(params or {}))
    model, results = tuned(pretrained, corpus, tmp_path / "run", method=untrained, changes={"transitions": True})
    assert results["phases"] == []
    known = {"loss": "full_softmax", "nce_num_negatives": 200, "method": "untrained", "users_share": 1.0}
    assert {name: logged[name] for name in known} == known
    assert model.params.keys() - pretrained.params.keys() == {"terms/transitions/weight"}
    assert model.params["terms/transitions/weight"] > 0
    for name, array in pretrained.params.items():
        assert np.array_equal(array, model.params[name]) or name in ("terms/repeat/offset", "terms/lexical/trust")
    plain = evaluate(pretrained, corpus, ranking=RANKING, draws=100)
    assert results["zero_shot"]["test"] == pytest.approx(plain.test)
    assert results["valid"]["ndcg_at_10"] >= plain.valid["ndcg_at_10"]
    assert evaluate(model, corpus, ranking=RANKING, draws=100).test == pytest.approx(results["test"])


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
def test_what_was_interrupted_ends_as_what_was_not(pretrained, market, shop_folder, tmp_path, monkeypatch, stop_at):
    settings = {
        "method": two_phases, "penalty": functools.partial(ewc, n_batches=2), "pretraining": Corpus(shop_folder)
    }  # fmt: skip
    monkeypatch.setattr(runs, "StopRequests", StopAfter)
    StopAfter.looks, StopAfter.limit = 0, 10**9
    undisturbed = tuned(pretrained, market, tmp_path / "whole", **settings).results
    StopAfter.looks, StopAfter.limit = 0, stop_at
    with pytest.raises(Interrupted):
        tuned(pretrained, market, tmp_path / "parts", **settings)
    StopAfter.limit = 10**9
    parts = tuned(pretrained, market, tmp_path / "parts", **settings)
    assert parts.results["params_sha256"] == undisturbed["params_sha256"]
    finished = tuned(pretrained, market, tmp_path / "parts", **settings)
    assert finished.results == read_results(tmp_path / "parts" / "results.json", "") == parts.results
    assert load(tmp_path / "parts").spec == finished.model.spec


def test_another_configuration_does_not_go_on_in_the_same_folder(pretrained, market, tmp_path):
    tuned(pretrained, market, tmp_path / "run", method=untrained)
    with pytest.raises(InputError, match=r"FinetuneConfig.row_interactions = 5 \(now 6\)"):
        tuned(pretrained, market, tmp_path / "run", method=untrained, row_interactions=6)


@pytest.mark.slow
def test_a_share_of_the_users_and_a_penalty(pretrained, market, tmp_path):
    half = Corpus(market, users_share=0.5, validate_all=False)
    results = tuned(pretrained, half, tmp_path / "part", penalty=l2_sp, method=two_phases).results
    assert results["dataset"]["training_users"] == 30
    assert results["slices"]["cold_items"]["users"] > 0


@pytest.mark.slow
def test_from_scratch_starts_from_nothing(pretrained, market, tmp_path):
    scratch = tuned(pretrained, market, tmp_path / "scratch", method=functools.partial(from_scratch, epochs=1))
    once = tuned(pretrained, market, tmp_path / "full", method=ONCE)
    assert scratch.results["zero_shot"] == once.results["zero_shot"]

    def far(fitted):
        name = "item_encoder/tables/title"
        return np.linalg.norm(fitted.model.params[name] - pretrained.params[name])

    assert far(scratch) > 2 * far(once)


def test_bad_input_is_told_in_a_line_before_anything_is_written(pretrained, market, shop_files, tmp_path):
    convert(str(shop_files), str(tmp_path / "other"), vocab_size=300)
    few = tmp_path / "few"
    few.mkdir()
    (few / "few.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\nu\ta\t1\nu\tb\t2\n")
    (few / "few.item").write_text("item_id:token\ttitle:token_seq\na\tone\nb\ttwo\n")
    convert(str(few), str(tmp_path / "nobody"), tokenizer_from=str(market))
    cases = {
        r"another tokenizer than the model's; make it again with": {"target": tmp_path / "other"},
        r"leaves no target in valid, so there is nothing to measure": {"target": tmp_path / "nobody"},
        r"finetune takes one target dataset": {"target": Corpus([market, tmp_path / "nobody"])},
        r"FinetuneConfig.penalty = ewc needs .*; give finetune.pretraining, or bind PRET": {"penalty": ewc},
        r"full.unfreeze_n_layers = 9, but the model has 1": {"method": functools.partial(full, unfreeze_n_layers=9)},
        r"changes names 'n_layers'": {"changes": {"n_layers": 3}},
        r"FinetuneConfig.replay_share needs the pre-training datasets": {"replay_share": 0.5},
        r"another tokenizer than": {"pretraining": Corpus(tmp_path / "other")},
    }
    for message, settings in cases.items():
        with pytest.raises(InputError, match=message):
            tuned(pretrained, run_dir=tmp_path / "run", **({"target": market} | settings))
        assert not (tmp_path / "run").exists(), message
    small = FinetuneConfig(train=TrainConfig(train_batch_size=3, loss=full_softmax))
    with pytest.raises(InputError, match=r"TrainConfig.train_batch_size = 3 is less than a row"):
        finetune(pretrained, Corpus(market), small, tmp_path / "run")
    with pytest.raises(InputError, match="run_dir = None"):
        finetune(pretrained, Corpus(market))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("settings", "message"), [
    ({"averages": (1.5,)}, r"FinetuneConfig.averages = \(1.5,\)"),
    ({"replay_share": 1.0}, r"FinetuneConfig.replay_share = 1.0 is not in \[0, 1\)"),
    ({"least_steps": 0}, r"FinetuneConfig.least_steps = 0 is below 1"),
    ({"train": TrainConfig(train_batch_size="auto")}, r"TrainConfig.train_batch_size = 'auto' is for training"),
])  # fmt: skip
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        FinetuneConfig(**settings)


@pytest.mark.slow
def test_one_user_is_enough(pretrained, market, tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    rows = "".join(f"u\t{item}\t{time}\n" for time, item in enumerate("abcab"))
    (raw / "one.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\n" + rows)
    (raw / "one.item").write_text("item_id:token\ttitle:token_seq\na\tpen\nb\tink\nc\tpaper\n")
    convert(str(raw), str(tmp_path / "one"), tokenizer_from=str(market))
    results = tuned(pretrained, tmp_path / "one", tmp_path / "run", method=ONCE).results
    ties = {"one": {"order": "file", "neighbours": 0, "of": 4}}
    assert results["dataset"] == {"n_users": 1, "n_items": 3, "n_inters": 5, "ties": ties, "training_users": 1}
    assert len(jax.devices()) == 4
