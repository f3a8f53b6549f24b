"""Training a recommender: `fit(model, corpus, TrainConfig(...), run_dir="runs/shop")`."""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax

from seqrec_jax.data.corpus import Corpus
from seqrec_jax.data.split import Targets, last_training_targets
from seqrec_jax.describe import describe
from seqrec_jax.devices import device_mesh, replicate
from seqrec_jax.errors import InputError
from seqrec_jax.evaluation.ranking import CorpusRanker, check_ranking
from seqrec_jax.model import parameters, storage
from seqrec_jax.model.recommender import Recommender
from seqrec_jax.model.spec import Spec
from seqrec_jax.runs import costs
from seqrec_jax.runs.reference_params import reference_params
from seqrec_jax.runs.run import Run
from seqrec_jax.runs.settings import RunSettings
from seqrec_jax.training.compile import CompiledStep, StepCompiler, make_catalog
from seqrec_jax.training.config import AUTO, TrainConfig
from seqrec_jax.training.phase import phase_summary, train_phase
from seqrec_jax.training.train_metrics import TrainMetrics


class Fitted(NamedTuple):
    """What a training run gives."""

    model: Recommender  # the one that is best on validation
    results: dict[str, Any]  # what results.json holds


def fit(
    model: Recommender, corpus: Corpus, config: TrainConfig = TrainConfig(), run_dir: str | Path | None = None,
    *, settings: RunSettings = RunSettings(),
) -> Fitted:  # fmt: skip
    """Trains a recommender, keeps the checkpoint that is best on validation, and evaluates that on test.

    Called again on the folder of a run that was interrupted, it goes on from the latest checkpoint; on that of a
    finished run, it reads the results. Writes `RUN_DIR/{checkpoints,tokenizer.model,config.json,metrics.jsonl,
    results.json}`.

    Args:
        model: Recommender to begin with, from Recommender.create or trained before.
        corpus: What to train on, what is validation and what is test.
        settings: Limits and reports of the run; nothing there changes what is learnt.

    Raises:
        InputError: Bad input; one line names the argument and says what to mend.
        Interrupted: The run was asked to stop; its checkpoint is written.
    """
    if run_dir is None:
        raise InputError("fit: run_dir = None; name the folder of the run")
    mesh = device_mesh(model_axis=settings.model_axis)
    _check(model, corpus, settings)
    check_ranking(corpus, config.ranking)
    catalog = make_catalog(model, corpus, config, mesh)
    compiler = StepCompiler(config, corpus, model.spec, catalog, mesh, model.params)
    compiler.check()
    with Run(run_dir, settings) as run:
        compiled = _compile(compiler, run)
        if (finished := run.begin(_identity(model, corpus, config, compiled.batch_size))) is not None:
            return Fitted(storage.load(run.path), finished)
        if run.first:
            storage.write_beside(run.path, model)
        logged = _logged_params(model, compiler, compiled)
        run.track(logged)
        params, results = _train(compiler, compiled, run)
        whole, texts = replicate(mesh, params), {name: str(value) for name, value in logged.items()}
        results |= {"params": texts, "params_sha256": parameters.sha256(whole)}
        run.finish(results)
    local = {name: array.addressable_data(0) for name, array in whole.items()}
    return Fitted(model.replace(params=local, trained_with=corpus.settings()), results)


def _train(compiler: StepCompiler, compiled: CompiledStep, run: Run) -> tuple[parameters.Params, dict[str, Any]]:
    """Trains, and evaluates the best parameters on test; returns them and what results.json says of them."""
    config, corpus, features = compiler.config, compiler.corpus, compiler.catalog.features

    def ranker(targets: Targets) -> CorpusRanker:
        return CorpusRanker(compiler.spec.graph(), corpus, targets, config.ranking, compiler.mesh)

    valid, test, train_metrics = ranker(corpus.division.valid), ranker(corpus.division.test), None
    if users := run.settings.reports.fit_users:
        seen = ranker(last_training_targets(corpus.division, users, config.seed))
        train_metrics = TrainMetrics(compiler, compiled, users, partial(seen.metrics, features=features))
    with run.stop:
        validate = partial(valid.metrics, features=features)
        progress, params = train_phase(compiler, compiled, validate, run, run.path, train_metrics=train_metrics)
    metrics = test.metrics(params, features)
    epoch = progress.best_step // compiled.batches.steps_per_epoch
    run.metrics.add("test", progress.best_step, epoch, {f"test/{name}": value for name, value in metrics.items()})
    return params, {
        "valid": dict(progress.best_metrics), "test": metrics, "baselines": {"popularity": test.popularity()},
        "train": phase_summary(progress, compiled), "dataset": corpus.summary(),
    }  # fmt: skip


def _check(model: Recommender, corpus: Corpus, settings: RunSettings) -> None:
    """Refuses what can be refused before anything is read."""
    model.check(corpus.data)
    if model.architecture.transitions:
        raise InputError(
            "Architecture.transitions = True is weighed on validation once training is over, which finetune does; set "
            "FinetuneConfig.changes = {'transitions': True} there"
        )
    check_model_axis(model.spec, settings.model_axis)


def check_model_axis(spec: Spec, model_axis: int) -> None:
    """Refuses, by an InputError, tables whose columns do not divide over RunSettings.model_axis."""
    architecture = spec.architecture
    widths = {"hidden_size": architecture.hidden_size} if spec.has_rows else {}
    if spec.texts:
        widths["embedding_size"] = architecture.embedding_size or architecture.hidden_size
    for name, width in widths.items():
        if width % model_axis:
            raise InputError(
                f"Architecture.{name} = {width} does not divide over RunSettings.model_axis = {model_axis}"
            )


def _compile(compiler: StepCompiler, run: Run) -> CompiledStep:
    """The step; a run that goes on keeps the batch that it was begun with, whatever is free now."""
    limit, size = costs.device_bytes(run.settings.memory_limit), compiler.config.train_batch_size
    if size == AUTO:
        size = run.recorded("auto.train_batch_size") or AUTO
    compiled = compiler.largest(limit) if size == AUTO else compiler.compile(int(size))
    costs.check_memory(compiled.bytes, limit)
    return compiled


def _identity(model: Recommender, corpus: Corpus, config: TrainConfig, batch_size: int) -> dict[str, Any]:
    """What a run is compared by when it goes on."""
    recommender = {"features": model.spec.to_json()["features"], "params_sha256": parameters.sha256(model.params)}
    identity = {
        "Architecture": describe(model.spec.architecture), "Corpus": corpus.settings(),
        "TrainConfig": describe(config), "Recommender": recommender,
    }  # fmt: skip
    return identity | ({"auto": {"train_batch_size": batch_size}} if config.train_batch_size == AUTO else {})


def _logged_params(model: Recommender, compiler: StepCompiler, compiled: CompiledStep) -> dict[str, Any]:
    """What MLflow keeps of the run's settings and costs."""
    config, batches = compiler.config, compiled.batches
    return reference_params(model, compiler.corpus, describe(config), batches.n_targets, compiled.batch_size) | {
        "epochs": config.epochs, "seed": config.seed, "loss_positions": config.loss_positions,
        "evaluation_mode": config.ranking.mode, "learning_rate": config.learning_rate,
        "users_share": compiler.corpus.users_share,
        "train_step_flops": compiled.flops.model, "train_step_hardware_flops": compiled.flops.hardware,
        "train_step_bytes": compiled.bytes, "peak_flops": compiler.peak_flops, "n_tokens": compiler.epoch_tokens,
        "devices": compiler.mesh.size, "device_kind": jax.devices()[0].device_kind,
    }  # fmt: skip
