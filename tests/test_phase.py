"""A phase that trains additions of low rank, with a running average and a penalty, goes on bit for bit."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from seqrec_jax.data.corpus import Corpus
from seqrec_jax.describe import identity_of
from seqrec_jax.devices import device_mesh
from seqrec_jax.errors import Interrupted
from seqrec_jax.model import parameters
from seqrec_jax.model.recommender import Recommender
from seqrec_jax.model.spec import Architecture
from seqrec_jax.runs.run import Run
from seqrec_jax.runs.stopping import StopRequests
from seqrec_jax.training.compile import StepCompiler, make_catalog
from seqrec_jax.training.config import TrainConfig
from seqrec_jax.training.optimizers import adamw
from seqrec_jax.training.phase import best_of_phase, phase_summary, train_phase
from seqrec_jax.training.tuning import Anchor, Tuning

CONFIG = TrainConfig(epochs=2, train_batch_size=400, learning_rate=5e-3, optimizer=adamw, ema_decay=0.9, eval_every=2)
TUNING = Tuning(
    lambda name: name.startswith("norm/"), lambda name: name.endswith("/kernel") and "blocks/" in name, 2, 0.1
)


@pytest.fixture(scope="module")
def compiled(shop_folder):
    """The step's compiler and the step."""
    corpus, mesh = Corpus(shop_folder), device_mesh()
    model = Recommender.create(corpus, Architecture(hidden_size=16, n_layers=1))
    catalog = make_catalog(model, corpus, CONFIG, mesh)
    compiler = StepCompiler(CONFIG, corpus, model.spec, catalog, mesh, model.params, TUNING, Anchor(model.params))
    return compiler, compiler.compile(CONFIG.train_batch_size)


def train(compiled, folder):
    """What the phase ended with; evaluations are of no consequence here."""
    evaluated = []

    def validate(params):
        evaluated.append(set(params))
        return {CONFIG.valid_metric: float(jnp.abs(params["norm/scale"]).sum())}

    with Run(folder) as run:
        run.begin({})
        with run.stop:
            progress, params = train_phase(*compiled, validate, run, folder)
    assert evaluated == [set(compiled[0].start)]
    return progress, params


def test_a_phase_of_adapters_goes_on_bit_for_bit(compiled, tmp_path, monkeypatch):
    compiler, step = compiled
    start = parameters.sha256(compiler.start)
    progress, params = train(compiled, tmp_path / "undisturbed")
    assert parameters.sha256(compiler.start) == start
    kernel = "blocks/0/attention/query/kernel"
    change = np.asarray(params[kernel]) - np.asarray(compiler.start[kernel])
    assert np.linalg.matrix_rank(change, tol=1e-5) == 2
    np.testing.assert_array_equal(params["position_table"], compiler.start["position_table"])

    asked = itertools.count(1)
    with monkeypatch.context() as patch:
        patch.setattr(StopRequests, "asked", property(lambda self: next(asked) >= 5))
        with pytest.raises(Interrupted, match="after step 5;"):
            train(compiled, tmp_path / "run")
    again, resumed = train(compiled, tmp_path / "run")
    assert parameters.sha256(resumed) == parameters.sha256(params)
    assert again.best_metrics == progress.best_metrics
    summary = phase_summary(again, step)
    assert summary["steps"] == summary["best_step"] == 2 * step.batches.steps_per_epoch
    best = best_of_phase(tmp_path / "run", compiler.spec, summary["best_step"], compiler.start, identity_of({}))
    assert parameters.sha256(best) == parameters.sha256(params)
