"""Task: train a recommender on a dataset, keep the best checkpoint, and write results.json."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import gin
import jax
import numpy as np
import optax
from absl import logging
from flax import nnx
from rich.console import Console

from seqrec_jax.data import format
from seqrec_jax.data.batches import PackedBatches
from seqrec_jax.data.split import TrainingLog, leave_one_out, training_log
from seqrec_jax.data.store import Dataset, open_dataset
from seqrec_jax.devices import device_mesh, replicate
from seqrec_jax.errors import InputError, Interrupted
from seqrec_jax.evaluation.baselines import popularity_ranks
from seqrec_jax.evaluation.metrics import METRICS, summarize
from seqrec_jax.evaluation.ranking import Ranking, TargetRanker
from seqrec_jax.files import copy_file, write_text
from seqrec_jax.losses import full_softmax, pairwise  # noqa: F401  (their names in Gin)
from seqrec_jax.losses.loss import Loss
from seqrec_jax.losses.negatives import AnyProposal
from seqrec_jax.losses.proposals import co_counts, in_batch, knn, mixed  # noqa: F401  (their names in Gin)
from seqrec_jax.losses.proposals.by_count import popularity
from seqrec_jax.losses.sampled_softmax import sampled_softmax
from seqrec_jax.model import parameters
from seqrec_jax.model.item_encoder import ITEM_ID
from seqrec_jax.model.recommender import Architecture
from seqrec_jax.tasks.compiled_step import CompiledStep, StepCompiler
from seqrec_jax.tasks.reference_params import reference_params
from seqrec_jax.tasks.tables import results_table
from seqrec_jax.tasks.training_data import item_features, model_record
from seqrec_jax.training import checkpoint, costs
from seqrec_jax.training.guards import Guards, check_memory
from seqrec_jax.training.loop import Trainer
from seqrec_jax.training.metrics_log import METRICS as METRICS_FILE
from seqrec_jax.training.metrics_log import MetricsLog
from seqrec_jax.training.model_record import ModelRecord
from seqrec_jax.training.optimizer import adam
from seqrec_jax.training.progress import Plan, Progress, Reports
from seqrec_jax.training.refresh import make_refresh
from seqrec_jax.training.run_dir import CONFIG, DATA, RESULTS, RunDir, agree
from seqrec_jax.training.schedules import Schedule, one_cycle
from seqrec_jax.training.step import COMPUTE_DTYPES, Catalog, Precision
from seqrec_jax.training.stopping import StopRequests
from seqrec_jax.training.tracking import Tracker

AUTO = "auto"
AUTO_BATCH = "auto.train_batch_size"


def check_at_least_one(**settings: int) -> None:
    """Refuses settings of `pretrain` that are below 1.

    Raises:
        InputError: naming the binding.
    """
    for name, value in settings.items():
        if value < 1:
            raise InputError(f"pretrain.{name} = {value} is below 1")


def check_metric(name: str, ranking: Ranking) -> None:
    """Refuses a valid_metric that the ranking does not give.

    Raises:
        InputError: it is not `<metric>_at_<k>` with a known metric and a cut-off of the ranking.
    """
    known = [f"{metric}_at_{k}" for k in ranking.ks for metric in METRICS]
    if name not in known:
        raise InputError(f"pretrain.valid_metric = {name!r} is not one of {', '.join(known)}")


def check_settings(
    architecture: Architecture,
    ranking: Ranking,
    objective: Loss,
    *,
    valid_metric: str,
    compute_dtype: str,
    ema_decay: float | None,
    train_batch_size: int | str,
    **at_least_one: int,
) -> None:
    """Refuses what can be refused before anything is read.

    Raises:
        InputError: naming the binding.
    """
    if isinstance(train_batch_size, str):
        if train_batch_size != AUTO:
            raise InputError(f"pretrain.train_batch_size = {train_batch_size!r} is neither a number nor 'auto'")
    else:
        at_least_one["train_batch_size"] = train_batch_size
    check_at_least_one(**at_least_one)
    if compute_dtype not in COMPUTE_DTYPES:
        raise InputError(f"pretrain.compute_dtype = {compute_dtype!r} is not one of {', '.join(COMPUTE_DTYPES)}")
    if ema_decay is not None and not 0 < ema_decay < 1:
        raise InputError(f"pretrain.ema_decay = {ema_decay} is not in (0, 1)")
    check_metric(valid_metric, ranking)
    if architecture.repeat_offset and not objective.whole_catalog:
        raise InputError(
            "Architecture.repeat_offset = True is learnt from the whole catalog; bind pretrain.loss = @full_softmax"
        )


def check_columns(record: ModelRecord, architecture: Architecture, model_axis: int) -> None:
    """Refuses to divide tables whose columns do not divide.

    Raises:
        InputError: naming the binding.
    """
    widths = {"Architecture.hidden_size": architecture.hidden_size} if record.catalog_sha256 else {}
    if record.max_tokens:
        widths["Architecture.embedding_size"] = architecture.embedding_size or architecture.hidden_size
    for name, width in widths.items():
        if width % model_axis:
            raise InputError(f"{name} = {width} does not divide over pretrain.model_axis = {model_axis}")


def epoch_tokens(log: TrainingLog, features: Mapping[str, np.ndarray]) -> int:
    """Text tokens of all training interactions."""
    texts = [tokens for name, tokens in features.items() if name != ITEM_ID]
    return int(sum(((tokens != 0).sum(1) * log.counts).sum() for tokens in texts))


def finished_before(folder: RunDir, tracker: Tracker, ranking: Ranking) -> dict[str, Any]:
    """The results of a finished run; sends to the tracking store what it lacks."""
    results = json.loads((folder.path / RESULTS).read_text())
    if jax.process_index() == 0:
        logging.info("%s: the run is finished; pretrain.overwrite = True starts it afresh", folder.path)
        tracker.start(folder.path)
        tracker.log_artifact(folder.path / CONFIG)
        tracker.log_artifact(folder.path / RESULTS)
        tracker.close("FINISHED")
        print_results(results, ranking)
    return results


def print_results(results: Mapping[str, Any], ranking: Ranking) -> None:
    """The table that a run ends with."""
    rows = {"popularity": results["baselines"]["popularity"], "this model": results["test"]}
    Console().print(results_table(rows, ranking.ks))


class _Run:
    """A run in its folder: from the compiled step to the results."""

    def __init__(
        self,
        compiler: StepCompiler,
        compiled: CompiledStep,
        record: ModelRecord,
        log: TrainingLog,
        ranking: Ranking,
        folder: RunDir,
        tracker: Tracker,
    ):
        self._compiler, self._compiled, self._record, self._log = compiler, compiled, record, log
        self._ranking, self._folder, self._tracker = ranking, folder, tracker
        self._first = jax.process_index() == 0

    def train(
        self, plan: Plan, checkpoints: checkpoint.Checkpoints, reports: Reports, guards: Guards
    ) -> dict[str, Any]:
        """Trains from the start or from the latest checkpoint, evaluates on test, and writes the results."""
        compiler, compiled, path = self._compiler, self._compiled, self._folder.path
        graph, state = compiler.init(compiled.optimizer)
        state_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
        self._folder.check_disk(state_bytes, checkpoints.keep + 2)
        if self._first:
            copy_file(compiler.data.folder / format.TOKENIZER, path / format.TOKENIZER)
            checkpoint.put_damaged_aside(path)
            self._tracker.start(path)
            self._tracker.log_artifact(path / CONFIG)
            self._tracker.log_params(self._params(state.params, plan))
        agree(None)
        rankers = {
            name: TargetRanker(
                graph, compiler.data, targets, self._ranking, compiler.architecture.max_length, compiler.mesh
            )
            for name, targets in (("valid", compiler.split.valid), ("test", compiler.split.test))
        }
        writer = checkpoint.CheckpointWriter(path, self._record, checkpoints)
        metrics = MetricsLog(path / METRICS_FILE if self._first else None)
        trainer = Trainer(
            step=compiled.step, state=state, catalog=compiler.catalog, batches=compiled.batches, mesh=compiler.mesh,
            plan=plan, validate=lambda params: self._ranked(rankers["valid"], params),
            refresh=make_refresh(graph, compiler.catalog, compiler.mesh, compiler.seed), writer=writer,
            checkpoints=checkpoints, reports=reports, log=metrics, run_dir=path,
        )  # fmt: skip
        status = "FAILED"
        try:
            trainer.resume()
            with StopRequests(guards.max_hours) as stop:
                progress = trainer.run(stop)
            params = writer.best_params(progress.best_step, trainer.params)
            results = self._results(progress, rankers["test"], params, metrics)
            status = "FINISHED"
        except Interrupted:
            status = "KILLED"
            raise
        finally:
            writer.close()
            if self._first:
                self._tracker.close(status)
        if self._first:
            print_results(results, self._ranking)
        return results

    def _params(self, params: nnx.State, plan: Plan) -> dict[str, Any]:
        """What MLflow keeps of the run's settings and costs."""
        compiler, compiled = self._compiler, self._compiled
        batches = compiled.batches
        logging.info(
            "%s: %d targets an epoch in %d steps, %.1f %% of positions filled; %d parameters, %d outside the tables; "
            "%.3g GB a device",
            compiler.data.name, batches.n_targets, batches.steps_per_epoch, 100 * batches.packing.fill,
            parameters.count(params), parameters.count(params, with_tables=False), compiled.bytes / 1e9,
        )  # fmt: skip
        return reference_params(compiler.data, self._record, params, batches.n_targets, compiled.batch_size) | {
            "epochs": plan.epochs,
            "seed": compiler.seed,
            "loss_positions": compiler.loss_positions,
            "evaluation_mode": self._ranking.mode,
            "learning_rate": float(plan.learning_rate.max()),
            "train_step_flops": plan.step_flops,
            "train_step_bytes": compiled.bytes,
            "peak_flops": plan.peak_flops,
            "n_tokens": plan.epoch_tokens,
            "devices": compiler.mesh.size,
            "device_kind": jax.devices()[0].device_kind,
        }

    def _ranked(self, ranker: TargetRanker, params: nnx.State) -> dict[str, float]:
        return summarize(ranker.ranks(params, self._compiler.catalog.features), self._ranking.ks)

    def _results(
        self, progress: Progress, ranker: TargetRanker, params: nnx.State, metrics: MetricsLog
    ) -> dict[str, Any]:
        """Evaluates the best parameters on test, and writes results.json."""
        batches = self._compiled.batches
        test = self._ranked(ranker, params)
        popular = summarize(popularity_ranks(ranker, self._log.counts), self._ranking.ks)
        best_epoch = progress.best_step // batches.steps_per_epoch
        results = collect_results(self._compiler.data, batches, progress, test, popular)
        results["params_sha256"] = parameters.sha256(replicate(self._compiler.mesh, params))
        metrics.add("test", progress.best_step, best_epoch, {f"test/{name}": value for name, value in test.items()})
        if self._first:
            write_text(self._folder.path / RESULTS, json.dumps(results, indent=2) + "\n")
            self._tracker.log_artifact(self._folder.path / RESULTS)
        return results


def collect_results(
    data: Dataset,
    batches: PackedBatches,
    progress: Progress,
    test: Mapping[str, float],
    popular: Mapping[str, float],
) -> dict[str, Any]:
    """What results.json holds, but for the parameters' digest."""
    targets = progress.step // batches.steps_per_epoch * batches.n_targets
    return {
        "valid": dict(progress.best_metrics),
        "test": dict(test),
        "baselines": {"popularity": dict(popular)},
        "train": {
            "seconds": progress.seconds,
            "steps": progress.step,
            "skipped_steps": progress.skipped,
            "targets": targets,
            "targets_per_second": targets / progress.seconds,
            "seconds_waiting_for_data": progress.waiting,
            "seconds_waiting_for_checkpoints": progress.saving,
            "best_step": progress.best_step,
        },
        "dataset": {"n_users": data.n_users, "n_items": data.n_items, "n_inters": data.n_interactions},
    }


@gin.configurable
def pretrain(
    dataset: str = gin.REQUIRED,
    run_dir: str = gin.REQUIRED,
    seed: int = 2020,
    epochs: int = 50,
    train_batch_size: int | str = 128,
    learning_rate_batch_size: int | None = None,
    learning_rate_scaling: str = "sqrt",
    loss_positions: str = "all",
    max_tokens: Mapping[str, int] | None = None,
    loss: Callable[[], Loss] = sampled_softmax,
    proposal: Callable[[TrainingLog], AnyProposal] = popularity,
    schedule: Callable[[int], Schedule] = one_cycle,
    optimizer: Callable[[Schedule], optax.GradientTransformation] = adam,
    ema_decay: float | None = None,
    eval_every: int = 1,
    stopping_step: int = 10,
    valid_metric: str = "ndcg_at_10",
    compute_dtype: str = "float32",
    rematerialize: bool = False,
    accumulation_steps: int = 1,
    model_axis: int = 1,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Trains a recommender, keeps the checkpoint that is best on validation, and evaluates that on test.

    Called again on the folder of a run that was interrupted, it goes on from the latest checkpoint; on that of a
    finished run, it prints the results. Writes `RUN_DIR/{checkpoints,tokenizer.model,config.gin,metrics.jsonl,
    tracking.json,results.json}`.

    Args:
        dataset: dataset folder.
        run_dir: folder of the run.
        seed: of initialisation, order, dropout and negatives.
        epochs: at most.
        train_batch_size: targets of a step, about, over all devices; `auto` for the most that fit.
        learning_rate_batch_size: targets of a step that the schedule's learning rate is meant for; other batch sizes
            scale it. None takes it as it is.
        learning_rate_scaling: `sqrt` or `linear`.
        loss_positions: `all` or `last`; see training_batches.
        max_tokens: text features to read and the most tokens of each; None reads all that the dataset holds.
        loss: of the targets.
        proposal: of the negatives, from the training log.
        schedule: learning rates, from the number of steps.
        optimizer: from the schedule.
        ema_decay: of a running average of the parameters, which is then what is evaluated and kept; None for none.
        eval_every: epochs between evaluations.
        stopping_step: evaluations without a gain before the run stops; 0 for never.
        valid_metric: `<metric>_at_<k>`.
        compute_dtype: of matrix products and activations, `float32` or `bfloat16`; parameters stay float32.
        rematerialize: make activations again for the gradient instead of keeping them: less memory, more time.
        accumulation_steps: parts that a step is made in, one after the other, for batches that do not fit in memory.
        model_axis: devices among which the columns of the token and item tables are divided, with their optimizer
            state; the number of devices is a multiple of it.
        overwrite: remove the run that the folder holds and start afresh.

    Returns:
        What results.json holds.

    Raises:
        InputError: bad input; one line says what to mend.
        Interrupted: the run was asked to stop; its checkpoint is written.
    """
    architecture, ranking, objective = Architecture(), Ranking(), loss()
    check_settings(
        architecture, ranking, objective, valid_metric=valid_metric, compute_dtype=compute_dtype, ema_decay=ema_decay,
        train_batch_size=train_batch_size, epochs=epochs, eval_every=eval_every, accumulation_steps=accumulation_steps,
    )  # fmt: skip
    guards, checkpoints, reports, tracker = Guards(), checkpoint.Checkpoints(), Reports(), Tracker()
    mesh = device_mesh(model_axis=model_axis)
    data = open_dataset(dataset, verify=True)
    split = leave_one_out(data)
    features = item_features(data, architecture, max_tokens)
    log = training_log(data, split)
    negatives = proposal(log)
    record = model_record(data, architecture, features)
    check_columns(record, architecture, model_axis)
    compiler = StepCompiler(
        data=data, split=split, mesh=mesh, architecture=architecture, vocab_sizes=record.vocab_sizes,
        catalog=replicate(mesh, Catalog(features, negatives)), objective=objective, schedule=schedule,
        optimizer=optimizer, precision=Precision(compute_dtype, accumulation_steps), seed=seed, epochs=epochs,
        loss_positions=loss_positions, rematerialize=rematerialize, ema_decay=ema_decay,
        skip_nonfinite=guards.skip_nonfinite > 0, learning_rate_batch_size=learning_rate_batch_size,
        learning_rate_scaling=learning_rate_scaling,
    )  # fmt: skip
    rows = 2 if train_batch_size == AUTO else compiler.batches(int(train_batch_size)).rows // mesh.size
    objective.check(negatives, data.n_items, rows // accumulation_steps)
    folder = RunDir(run_dir)
    with folder.held():
        limit = guards.device_limit()
        size: int | str = train_batch_size
        if size == AUTO and not overwrite:  # Goes on with the batch that it was begun with, whatever is free now.
            size = folder.recorded(AUTO_BATCH) or AUTO
        compiled = compiler.largest(limit) if size == AUTO else compiler.compile(int(size))
        check_memory(compiled.bytes, limit)
        config = gin.operative_config_str() + f"{DATA}dataset.sha256 = {data.digest()}\n"
        if train_batch_size == AUTO:
            config += f"{DATA}{AUTO_BATCH} = {compiled.batch_size}\n"
        if folder.begin(config, overwrite):
            return finished_before(folder, tracker, ranking)
        logging.info("configuration:\n%s", config)
        run = _Run(compiler, compiled, record, log, ranking, folder, tracker)
        plan = Plan(
            epochs, eval_every, stopping_step, valid_metric, guards.skip_nonfinite, compiled.schedule.learning_rate,
            costs.compiled_flops(compiled.step), costs.matmul_peak(compute_dtype), epoch_tokens(log, features),
        )  # fmt: skip
        return run.train(plan, checkpoints, reports, guards)
