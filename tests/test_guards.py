"""What is checked before the first step, and what may go wrong after it."""

import json

import gin
import jax
import jax.numpy as jnp
import pytest

from seqrec_jax.errors import InputError
from seqrec_jax.losses.sampled_softmax import sampled_softmax
from seqrec_jax.tasks.pretrain import pretrain
from seqrec_jax.training.costs import compiled_bytes

SETTINGS = """
Architecture.hidden_size = 16
Architecture.n_layers = 1
sampled_softmax.n_negatives = 20
one_cycle.learning_rate = 5e-3
Reports.every_steps = 5
Tracker.uri = None
"""


@pytest.fixture(autouse=True)
def small():
    gin.parse_config(SETTINGS)


def run(shop_folder, tmp_path, **settings):
    settings = {"train_batch_size": 400, "epochs": 2} | settings
    return pretrain(dataset=str(shop_folder), run_dir=str(tmp_path / "run"), **settings)


def broken_now_and_then():
    """A loss that is infinite in about a third of the steps."""
    whole = sampled_softmax()

    def losses(keys, predictions, proposal):
        broken = jax.random.uniform(jax.random.fold_in(keys.common, 7)) < 1 / 3
        return whole.losses(keys, predictions, proposal) * jnp.where(broken, jnp.inf, 1.0)

    return whole._replace(losses=losses)


def test_steps_that_are_not_finite_are_skipped_as_bound(shop_folder, tmp_path):
    gin.parse_config("Guards.skip_nonfinite = 100")
    results = run(shop_folder, tmp_path, loss=broken_now_and_then, epochs=3)
    skipped = results["train"]["skipped_steps"]
    assert 2 <= skipped <= 16
    assert results["test"]["ndcg_at_10"] > results["baselines"]["popularity"]["ndcg_at_10"]
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    epochs = [record["metrics"] for record in records if record["kind"] == "epoch"]
    assert epochs[-1]["train/skipped_steps"] == skipped
    assert all(0 < epoch["train/train_loss"] < 10 for epoch in epochs)


def test_more_of_them_than_bound_stop_the_run(shop_folder, tmp_path):
    gin.parse_config("Guards.skip_nonfinite = 2")
    with pytest.raises(InputError, match=r"the loss is inf at step \d+; .* Guards.skip_nonfinite = 3 to skip it"):
        run(shop_folder, tmp_path, loss=broken_now_and_then)


def test_the_automatic_batch_trains_and_a_larger_one_does_not_fit(shop_folder, tmp_path, monkeypatch):
    from seqrec_jax.tasks import compiled_step

    tried = {}
    compile_ = compiled_step.StepCompiler.compile

    def recorded(self, batch_size):
        made = compile_(self, batch_size)
        tried[batch_size] = made.bytes
        assert made.bytes >= compiled_bytes(made.step)
        return made

    monkeypatch.setattr(compiled_step.StepCompiler, "compile", recorded)
    gin.parse_config("Guards.memory_limit = '2MB'")
    results = run(shop_folder, tmp_path, train_batch_size="auto")
    assert results["train"]["steps"] > 0
    chosen = max(size for size, needed in tried.items() if needed <= 2_000_000)
    assert 200 < chosen < results["train"]["targets"] / 2
    (tmp_path / "run" / "results.json").unlink()
    gin.parse_config("Guards.memory_limit = '4MB'")
    again = run(shop_folder, tmp_path, train_batch_size="auto")  # goes on with the batch that it was begun with
    assert again["params_sha256"] == results["params_sha256"]
    gin.parse_config("Guards.memory_limit = '2MB'")
    with pytest.raises(InputError, match=r"a step needs 0.002\d* GB of memory, but a device has 0.002 GB; bind"):
        run(shop_folder, tmp_path / "more", train_batch_size=int(1.3 * chosen))
    gin.parse_config("Guards.memory_limit = '100kB'")
    with pytest.raises(InputError, match=r"Guards\.memory_limit = '100kB': is no amount of memory"):
        run(shop_folder, tmp_path / "none", train_batch_size="auto")


@pytest.mark.parametrize(
    ("bindings", "words"),
    [
        ("Guards.max_hours = 0", "MAX_HOURS = 0 is not above 0"),
        ("Guards.skip_nonfinite = -1", "Guards.skip_nonfinite = -1 is below 0"),
        ("Guards.memory_limit = '1MB'", "a step needs 0.00.* GB of memory, but a device has 0.001 GB"),
        ("Checkpoints.keep = 1", "Checkpoints.keep = 1 is below 2"),
        ("Checkpoints.every_minutes = 0.0", "Checkpoints.every_minutes = 0.0 is not above 0"),
        ("Reports.every_steps = 0", "Reports.every_steps = 0 is below 1"),
        ("Reports.trace = (5, 3)", r"Reports.trace = \(5, 3\) is no pair of a first and a last step"),
        ("pretrain.ema_decay = 1.0", r"pretrain.ema_decay = 1.0 is not in \(0, 1\)"),
        ("pretrain.train_batch_size = 'all'", "pretrain.train_batch_size = 'all' is neither a number nor 'auto'"),
        ("pretrain.model_axis = 3", "pretrain.model_axis = 3 does not divide the 4 devices"),
        ("pretrain.model_axis = 4\nArchitecture.embedding_size = 6", "Architecture.embedding_size = 6 does not divide"),
        ("warmup_linear.warmup = 2.0\npretrain.schedule = @warmup_linear", "warmup_linear.warmup = 2.0"),
        ("adam.max_grad_norm = 0.0", "max_grad_norm = 0.0 is not above 0"),
    ],
)
def test_senseless_bindings_are_refused_and_nothing_is_left(shop_folder, tmp_path, bindings, words):
    gin.parse_config(bindings)
    with pytest.raises(InputError, match=words):
        pretrain(dataset=str(shop_folder), run_dir=str(tmp_path / "run"), epochs=2, **(
            {} if "train_batch_size" in bindings else {"train_batch_size": 400}))  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_a_trace_of_the_steps_that_were_asked_for(shop_folder, tmp_path):
    gin.parse_config("Reports.trace = (3, 5)")
    run(shop_folder, tmp_path)
    traces = list((tmp_path / "run" / "trace").rglob("*.trace.json.gz"))
    assert traces
    assert list((tmp_path / "run" / "trace").rglob("*.xplane.pb"))


def test_metrics_tell_what_the_run_costs(shop_folder, tmp_path):
    results = run(shop_folder, tmp_path)
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if record["kind"] == "step"]
    assert [record["step"] for record in steps] == [5, 10, 15]
    for record in steps:
        metrics = record["metrics"]
        assert metrics["step/targets_per_second"] > 0
        assert 0 < metrics["step/mfu"] < 2
        assert 0 <= metrics["step/waiting_share"] <= 1
        assert 0.05 < metrics["step/host_memory_gb"] <= metrics["step/host_memory_peak_gb"]
        assert metrics["step/grad_norm"] > 0
    last = [record["metrics"] for record in records if record["kind"] == "epoch"][-1]
    assert last["train/targets"] == results["train"]["targets"]
    assert last["train/tokens"] > last["train/targets"]
