"""The training loop: epochs of steps, evaluation, early stopping, the best checkpoint."""

import sys
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np
from absl import logging
from flax import nnx
from jax.sharding import Mesh
from tqdm import tqdm

from seqrec_jax.data.batches import PackedBatches, prefetch
from seqrec_jax.errors import InputError
from seqrec_jax.training.checkpoint import BestCheckpoint
from seqrec_jax.training.devices import split_rows
from seqrec_jax.training.step import Catalog, TrainState
from seqrec_jax.training.tracking import Tracker

STEPS_BETWEEN_READS = 50


class Progress(NamedTuple):
    """What became of a run.

    Attributes:
        steps: taken.
        targets: trained on.
        seconds: of training, evaluations left out.
        best_step: step of the best checkpoint.
        best_epoch: its epoch.
        best_metrics: of validation, there.
    """

    steps: int
    targets: int
    seconds: float
    best_step: int
    best_epoch: int
    best_metrics: Mapping[str, float]


def _check_finite(losses: list[jax.Array], first_step: int) -> np.ndarray:
    """Reads the losses of the latest steps from the device.

    Raises:
        InputError: one is not finite.
    """
    values = np.array(jax.device_get(losses))
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise InputError(
            f"the loss is {values[bad[0]]} at step {first_step + int(bad[0]) + 1}; "
            "lower one_cycle.learning_rate or bind the optimizer's max_grad_norm"
        )
    return values


def train_epoch(
    step: Callable[[TrainState, Catalog, object], tuple[TrainState, jax.Array]],
    state: TrainState,
    catalog: Catalog,
    batches: PackedBatches,
    mesh: Mesh,
    epoch: int,
    bar: tqdm,
) -> tuple[TrainState, float]:
    """Runs an epoch; the losses are read from the device every 50 steps only.

    Returns:
        The state, and the mean of the steps' losses.

    Raises:
        InputError: the loss is not finite.
    """
    first = epoch * batches.steps_per_epoch
    targets_per_step = batches.n_targets / batches.steps_per_epoch
    total, pending, read = 0.0, [], first

    def to_device(index: int):
        return split_rows(mesh, batches.batch(index))

    for index, batch in enumerate(prefetch(to_device, range(first, first + batches.steps_per_epoch)), first):
        state, loss = step(state, catalog, batch)
        pending.append(loss)
        if len(pending) == STEPS_BETWEEN_READS or index == first + batches.steps_per_epoch - 1:
            values = _check_finite(pending, read)
            total += float(values.sum())
            read, pending = index + 1, []
            bar.set_postfix_str(f"epoch {epoch + 1}, loss {values[-1]:.4f}", refresh=False)
            bar.update(round((index + 1) * targets_per_step) - bar.n)
    return state, total / batches.steps_per_epoch


def fit(
    step: Callable,
    state: TrainState,
    catalog: Catalog,
    batches: PackedBatches,
    mesh: Mesh,
    *,
    epochs: int,
    validate: Callable[[TrainState], Mapping[str, float]],
    learning_rate: np.ndarray,
    eval_every: int,
    stopping_step: int,
    valid_metric: str,
    checkpoint: BestCheckpoint,
    tracker: Tracker,
    refresh: Callable[[nnx.State, Catalog, int], Catalog] | None = None,
) -> tuple[TrainState, Progress]:
    """Trains until `epochs` have passed or validation has stopped improving.

    Args:
        step: from make_train_step.
        state: to start from; its buffers are given up.
        catalog: on the devices.
        batches: of training.
        mesh: of devices.
        epochs: at most.
        validate: metrics of a state, `<metric>_at_<k>`.
        learning_rate: [steps], for the record.
        eval_every: epochs between evaluations; the last epoch is always evaluated.
        stopping_step: evaluations without a gain after which the run stops; 0 for never.
        valid_metric: the one to gain in.
        checkpoint: keeps the best parameters.
        tracker: keeps the metrics.
        refresh: renews the proposal of negatives before every epoch; see make_refresh.

    Raises:
        InputError: the loss is not finite.
    """
    best, best_epoch, since_best, seconds, epoch = -np.inf, 0, 0, 0.0, 0
    best_metrics: Mapping[str, float] = {}
    with tqdm(
        total=epochs * batches.n_targets,
        unit="targets",
        unit_scale=True,
        mininterval=0.5 if sys.stderr.isatty() else 30,
        desc="training",
    ) as bar:
        for epoch in range(1, epochs + 1):
            started, wall = time.perf_counter(), time.time()
            if refresh is not None:
                catalog = refresh(state.params, catalog, epoch)
            refreshed = time.perf_counter()
            state, loss = train_epoch(step, state, catalog, batches, mesh, epoch - 1, bar)
            seconds += time.perf_counter() - started
            record = {
                "train/train_loss": loss,
                "train/learning_rate": learning_rate[epoch * batches.steps_per_epoch - 1],
                "train/epoch": epoch,
                "time_epoch": time.perf_counter() - started,
                "time_on_epoch_start": wall,
            }
            if refresh is not None:
                record["time_refresh"] = refreshed - started
            if epoch % eval_every == 0 or epoch == epochs:
                metrics = validate(state)
                record |= {f"valid/{name}": value for name, value in metrics.items()}
                since_best += 1
                if metrics[valid_metric] > best:
                    best, best_epoch, best_metrics, since_best = metrics[valid_metric], epoch, metrics, 0
                    checkpoint.save(epoch, state.params)
                bar.write(f"epoch {epoch:3d}  loss {loss:.4f}  valid {valid_metric} {metrics[valid_metric]:.4f}")
            tracker.log_metrics(record, step=epoch)
            if stopping_step and since_best >= stopping_step:
                logging.info(
                    "no gain in %s for %d evaluations: stopping after epoch %d", valid_metric, since_best, epoch
                )
                break
    steps = epoch * batches.steps_per_epoch
    return state, Progress(
        steps, epoch * batches.n_targets, seconds, best_epoch * batches.steps_per_epoch, best_epoch, best_metrics
    )
