"""What is checked before the first step, and what may go wrong after it."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import pytest

from seqrec_jax.data.corpus import Corpus
from seqrec_jax.errors import InputError
from seqrec_jax.losses.sampled_softmax import sampled_softmax
from seqrec_jax.model.recommender import Recommender
from seqrec_jax.model.spec import Architecture
from seqrec_jax.runs.costs import compiled_bytes
from seqrec_jax.runs.settings import Reports, RunSettings
from seqrec_jax.training.compile import StepCompiler
from seqrec_jax.training.config import TrainConfig
from seqrec_jax.training.fit import fit

CONFIG = TrainConfig(
    train_batch_size=400, epochs=2, learning_rate=5e-3, loss=functools.partial(sampled_softmax, n_negatives=20)
)


REPORTS = RunSettings(reports=Reports(every_steps=5))


def run(shop, run_dir, settings=REPORTS, hidden_size=16, **changes):
    corpus = Corpus(shop)
    model = Recommender.create(corpus, Architecture(hidden_size=hidden_size, n_layers=1))
    return fit(model, corpus, dataclasses.replace(CONFIG, **changes), run_dir, settings=settings).results


def broken_now_and_then():
    """A loss that is infinite in about a third of the steps."""
    whole = sampled_softmax(n_negatives=20)

    def losses(keys, predictions, proposal):
        broken = jax.random.uniform(jax.random.fold_in(keys.common, 7)) < 1 / 3
        return whole.losses(keys, predictions, proposal) * jnp.where(broken, jnp.inf, 1.0)

    return whole._replace(losses=losses)


def records(run_dir, kind):
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


@pytest.mark.slow
def test_steps_that_are_not_finite_are_skipped_as_asked(shop, tmp_path):
    results = run(shop, tmp_path / "run", loss=broken_now_and_then, epochs=3, skip_nonfinite=100)
    skipped = results["train"]["skipped_steps"]
    assert 2 <= skipped <= 16
    assert results["test"]["ndcg_at_10"] > results["baselines"]["popularity"]["ndcg_at_10"]
    epochs = [record["metrics"] for record in records(tmp_path / "run", "epoch")]
    assert epochs[-1]["train/skipped_steps"] == skipped
    assert all(0 < epoch["train/train_loss"] < 10 for epoch in epochs)


def test_more_of_them_than_asked_stop_the_run(shop, tmp_path):
    with pytest.raises(InputError, match=r"the loss is inf at step \d+; .* TrainConfig.skip_nonfinite = 3 to skip it"):
        run(shop, tmp_path / "run", loss=broken_now_and_then, skip_nonfinite=2)


@pytest.mark.slow
def test_the_automatic_batch_trains_and_a_larger_one_does_not_fit(shop, tmp_path, monkeypatch):
    tried = {}
    compile_ = StepCompiler.compile

    def recorded(self, batch_size):
        made = compile_(self, batch_size)
        tried[batch_size] = made.bytes
        assert made.bytes >= compiled_bytes(made.step)
        return made

    monkeypatch.setattr(StepCompiler, "compile", recorded)
    results = run(shop, tmp_path / "run", RunSettings(memory_limit="2MB"), train_batch_size="auto")
    assert results["train"]["steps"] > 0
    chosen = max(size for size, needed in tried.items() if needed <= 2_000_000)
    assert 200 < chosen < results["train"]["targets"] / 2
    (tmp_path / "run" / "results.json").unlink()
    again = run(shop, tmp_path / "run", RunSettings(memory_limit="4MB"), train_batch_size="auto")
    assert again["params_sha256"] == results["params_sha256"]  # it goes on with the batch that it was begun with
    with pytest.raises(InputError, match=r"a step needs 0.002\d* GB of memory, but a device has 0.002 GB; bind"):
        run(shop, tmp_path / "more", RunSettings(memory_limit="2MB"), train_batch_size=int(1.3 * chosen))
    with pytest.raises(InputError, match=r"RunSettings\.memory_limit = '100kB': is no amount of memory"):
        run(shop, tmp_path / "none", RunSettings(memory_limit="100kB"), train_batch_size="auto")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"skip_nonfinite": -1}, "TrainConfig.skip_nonfinite = -1 is below 0"),
        ({"ema_decay": 1.0}, r"TrainConfig.ema_decay = 1.0 is not in \(0, 1\)"),
        ({"train_batch_size": "all"}, "TrainConfig.train_batch_size = 'all' is neither a number nor 'auto'"),
        ({"max_grad_norm": 0.0}, "TrainConfig.max_grad_norm = 0.0 is not above 0"),
    ],
)
def test_senseless_settings_are_refused(settings, words):
    with pytest.raises(InputError, match=words):
        TrainConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"memory_limit": "1MB"}, "a step needs 0.00.* GB of memory, but a device has 0.001 GB"),
        ({"model_axis": 3}, "RunSettings.model_axis = 3 does not divide the 4 devices"),
    ],
)
def test_what_does_not_fit_the_machine_is_refused_and_nothing_is_left(shop, tmp_path, settings, words):
    with pytest.raises(InputError, match=words):
        run(shop, tmp_path / "run", RunSettings(**settings), hidden_size=24)
    assert not (tmp_path / "run").exists()


def test_a_table_that_does_not_divide_over_the_devices_is_refused(shop, tmp_path):
    corpus = Corpus(shop)
    model = Recommender.create(corpus, Architecture(hidden_size=16, n_layers=1, embedding_size=6))
    with pytest.raises(InputError, match=r"Architecture\.embedding_size = 6 does not divide"):
        fit(model, corpus, CONFIG, tmp_path / "run", settings=RunSettings(model_axis=4))


def test_metrics_report_what_the_run_costs_and_a_trace_what_was_asked_for(shop, tmp_path):
    results = run(shop, tmp_path / "run", RunSettings(reports=Reports(every_steps=5, trace=(3, 5))))
    steps = records(tmp_path / "run", "step")
    assert [record["step"] for record in steps] == [5, 10, 15]
    for record in steps:
        metrics = record["metrics"]
        assert metrics["step/targets_per_second"] > 0
        assert 0 < metrics["step/mfu"] < 2
        assert 0 <= metrics["step/waiting_share"] <= 1
        assert 0.05 < metrics["step/host_memory_gb"] <= metrics["step/host_memory_peak_gb"]
        assert metrics["step/grad_norm"] > 0
    last = records(tmp_path / "run", "epoch")[-1]["metrics"]
    assert last["train/targets"] == results["train"]["targets"]
    assert last["train/tokens"] > last["train/targets"]
    for name in ("*.trace.json.gz", "*.xplane.pb"):
        assert list((tmp_path / "run" / "trace").rglob(name))
