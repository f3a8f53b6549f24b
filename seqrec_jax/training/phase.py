"""A phase of training: from a compiled step to the best parameters on validation. Fine-tuning has one or several."""

import contextlib
from pathlib import Path

from absl import logging

from seqrec_jax.hosts import raise_on_all_hosts
from seqrec_jax.model import parameters
from seqrec_jax.model.spec import Spec
from seqrec_jax.runs.run import Run
from seqrec_jax.training.checkpoint import CheckpointWriter, put_damaged_aside
from seqrec_jax.training.compile import CompiledStep, StepCompiler
from seqrec_jax.training.loop import MetricsOf, Progress, Trainer


def train_phase(
    compiler: StepCompiler, compiled: CompiledStep, validate: MetricsOf, run: Run, folder: Path,
    *, train_metrics: MetricsOf | None = None,
) -> tuple[Progress, parameters.Params]:  # fmt: skip
    """Trains from the start or from the latest checkpoint of `folder`, while `run.stop` is entered.

    Returns where it ended, and the parameters that are best on validation, on the devices. Arguments as for Trainer.

    Raises:
        InputError: The checkpoints do not fit on the disk or cannot be written, or the loss is not finite.
        Interrupted: The run was asked to stop, and a checkpoint is written.
    """
    batches, start, keep = compiled.batches, compiler.start, run.settings.checkpoints.keep
    logging.info(
        "%s: %d targets an epoch in %d steps, %.1f %% of positions filled; %d parameters, %d outside the tables; "
        "%.3g GB a device",
        compiler.corpus.data.name, batches.n_targets, batches.steps_per_epoch, 100 * batches.packing.fill,
        parameters.count(start), parameters.count(start, compiler.graph.tables), compiled.bytes / 1e9,
    )  # fmt: skip
    raise_on_all_hosts(put_damaged_aside(folder, run.identity) if run.first else None)
    with contextlib.closing(CheckpointWriter(folder, compiler.spec, keep, run.identity)) as writer:
        trainer = Trainer(compiler, compiled, validate, run, writer, train_metrics)
        trainer.resume()
        progress = trainer.train()
        return progress, writer.best_params(progress.best_step, trainer.params)


def best_of_phase(folder: Path, spec: Spec, step: int, like: parameters.Params, run: str) -> parameters.Params:
    """The best parameters of a phase that is finished, where `like` lie; its summary names the step.

    `run` is the identity of its run. An InputError where they are damaged, or another run's.
    """
    with contextlib.closing(CheckpointWriter(folder, spec, 2, run)) as writer:
        return writer.best_params(step, like)


def phase_summary(progress: Progress, compiled: CompiledStep) -> dict[str, float]:
    """What results.json says of a phase."""
    targets = progress.step // compiled.batches.steps_per_epoch * compiled.batches.n_targets
    return {
        "seconds": progress.seconds, "steps": progress.step, "skipped_steps": progress.skipped,
        "targets": targets, "targets_per_second": targets / progress.seconds,
        "seconds_waiting_for_data": progress.waiting, "seconds_waiting_for_checkpoints": progress.saving,
        "best_step": progress.best_step,
    }  # fmt: skip
