"""A stage of training: from a compiled step to the best parameters on validation. A run of pre-training has one."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import logging
from flax import nnx

from seqrec_jax.model import parameters
from seqrec_jax.tasks.compiled_step import CompiledStep, StepCompiler
from seqrec_jax.tasks.fit_report import FitReport, TrainMetrics
from seqrec_jax.training import checkpoint
from seqrec_jax.training.loop import Trainer
from seqrec_jax.training.metrics_log import MetricsLog
from seqrec_jax.training.model_record import ModelRecord
from seqrec_jax.training.progress import Plan, Progress, Reports
from seqrec_jax.training.refresh import make_refresh
from seqrec_jax.training.run_dir import CONFIG, RESULTS, RunDir
from seqrec_jax.training.stopping import StopRequests
from seqrec_jax.training.tracking import Tracker

Validate = Callable[[nnx.State], Mapping[str, float]]


class Writing(NamedTuple):
    """What a stage writes.

    Attributes:
        path: folder that receives `checkpoints/`.
        record: of the model.
        checkpoints: when to write them.
        reports: what to tell.
        metrics: keeps the metrics.
    """

    path: Path
    record: ModelRecord
    checkpoints: checkpoint.Checkpoints
    reports: Reports
    metrics: MetricsLog


def train_stage(
    compiler: StepCompiler,
    compiled: CompiledStep,
    plan: Plan,
    validate: Validate,
    train_metrics: Callable[[int], TrainMetrics],
    folder: RunDir,
    writing: Writing,
    stop: StopRequests,
) -> tuple[Progress, nnx.State]:
    """Trains from the start or from the latest checkpoint.

    Args:
        compiler: what the step was compiled with.
        compiled: the step.
        plan: what to do.
        validate: metrics of parameters.
        train_metrics: the same on the training targets of at most so many users.
        folder: of the run.
        writing: what to write, and where.
        stop: asks to stop before.

    Returns:
        Where it ended, and the parameters that are best on validation.

    Raises:
        InputError: the checkpoints do not fit on the disk or cannot be written, or the loss is not finite.
        Interrupted: the run was asked to stop, and a checkpoint is written.
    """
    graph, state = compiler.init(compiled.optimizer)
    state_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    folder.check_disk(state_bytes, writing.checkpoints.keep + 2)
    if jax.process_index() == 0:
        checkpoint.put_damaged_aside(writing.path)
    writer = checkpoint.CheckpointWriter(writing.path, writing.record, writing.checkpoints)
    users = writing.reports.fit_users
    fit = FitReport(compiler, graph, compiled.batches.rows, users, train_metrics(users)) if users else None
    trainer = Trainer(
        step=compiled.step, state=state, catalog=compiler.catalog, batches=compiled.batches, mesh=compiler.mesh,
        plan=plan, validate=validate, fit=fit,
        refresh=make_refresh(graph, compiler.catalog, compiler.mesh, compiler.seed),
        writer=writer, checkpoints=writing.checkpoints, reports=writing.reports, log=writing.metrics,
        run_dir=writing.path, tuning=compiler.tuning,
    )  # fmt: skip
    try:
        trainer.resume()
        progress = trainer.run(stop)
        return progress, writer.best_params(progress.best_step, trainer.params)
    finally:
        writer.close()


def log_size(compiler: StepCompiler, compiled: CompiledStep, params: nnx.State) -> None:
    """Says what is trained on, and with what."""
    batches = compiled.batches
    logging.info(
        "%s: %d targets an epoch in %d steps, %.1f %% of positions filled; %d parameters, %d outside the tables; "
        "%.3g GB a device",
        compiler.data.name, batches.n_targets, batches.steps_per_epoch, 100 * batches.packing.fill,
        parameters.count(params), parameters.count(params, with_tables=False), compiled.bytes / 1e9,
    )  # fmt: skip


def training_summary(progress: Progress, targets_an_epoch: int, steps_per_epoch: int) -> dict[str, float]:
    """What results.json says of a stage."""
    targets = progress.step // steps_per_epoch * targets_an_epoch
    return {
        "seconds": progress.seconds,
        "steps": progress.step,
        "skipped_steps": progress.skipped,
        "targets": targets,
        "targets_per_second": targets / progress.seconds,
        "seconds_waiting_for_data": progress.waiting,
        "seconds_waiting_for_checkpoints": progress.saving,
        "best_step": progress.best_step,
    }


def finished_before(
    folder: RunDir, tracker: Tracker, show: Callable[[Mapping[str, Any]], None], task: str = "pretrain"
) -> dict[str, Any]:
    """The results of a finished run; sends to the tracking store what it lacks."""
    results = json.loads((folder.path / RESULTS).read_text())
    if jax.process_index() == 0:
        logging.info("%s: the run is finished; %s.overwrite = True starts it afresh", folder.path, task)
        tracker.start(folder.path)
        tracker.log_artifact(folder.path / CONFIG)
        tracker.log_artifact(folder.path / RESULTS)
        tracker.close("FINISHED")
        show(results)
    return results
