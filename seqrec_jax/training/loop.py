"""The training loop: steps, evaluations, checkpoints, early stopping; it goes on from any step."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from absl import logging
from flax import nnx
from jax.sharding import Mesh

from seqrec_jax.data.batches import Batch, PackedBatches, prefetch
from seqrec_jax.devices import greatest_of_hosts, local_shards, split_rows
from seqrec_jax.errors import InputError
from seqrec_jax.training.checkpoint import Checkpoints, CheckpointWriter
from seqrec_jax.training.costs import memory_in_use
from seqrec_jax.training.metrics_log import MetricsLog
from seqrec_jax.training.progress import Plan, Progress, Reports
from seqrec_jax.training.step import Catalog, Measures, TrainState
from seqrec_jax.training.stopping import StopRequests
from seqrec_jax.training.tuning import Tuning

TRACE = "trace"


class Trainer:
    """A run's loop.

    Args:
        step: from make_train_step, compiled.
        state: to start from; its buffers are given up.
        catalog: on the devices.
        batches: of training.
        mesh: of devices.
        plan: what to do.
        validate: metrics of parameters, `<metric>_at_<k>`.
        fit: what else an evaluation tells of parameters; None for nothing.
        refresh: renews the proposal of negatives before every epoch; see make_refresh.
        writer: of checkpoints.
        checkpoints: when to write them.
        reports: what to tell.
        log: keeps the metrics.
        run_dir: of the run.
        tuning: that the step was made with; None where it trains the whole model.
    """

    def __init__(
        self,
        *,
        step: Callable[[TrainState, Catalog, Batch], tuple[TrainState, Measures]],
        state: TrainState,
        catalog: Catalog,
        batches: PackedBatches,
        mesh: Mesh,
        plan: Plan,
        validate: Callable[[nnx.State], Mapping[str, float]],
        fit: Callable[[nnx.State], Mapping[str, float]] | None,
        refresh: Callable[[nnx.State, Catalog, int], Catalog] | None,
        writer: CheckpointWriter,
        checkpoints: Checkpoints,
        reports: Reports,
        log: MetricsLog,
        run_dir: Path,
        tuning: Tuning | None = None,
    ):
        self._step, self._state, self._catalog, self._batches = step, state, catalog, batches
        self._mesh, self._plan, self._validate, self._refresh = mesh, plan, validate, refresh
        self._fit = fit
        self._writer, self._checkpoints, self._reports, self._log = writer, checkpoints, reports, log
        self._run_dir, self._tuning = run_dir, tuning
        self.progress = Progress()
        self._pending: list[Measures] = []
        self._since_report = (0, 0.0, 0.0)  # step, seconds of training, seconds of waiting
        self._saved_step, self._epoch_seconds, self._tracing = 0, 0.0, False
        self._saved = time.monotonic()

    # Going on

    def _kept(self) -> dict[str, Any]:
        """The arrays that a checkpoint holds beside the parameters that are evaluated."""
        state = self._state
        kept: dict[str, Any] = {"optimizer": state.optimizer, "step": state.step}
        if state.averaged is not None or self._tuning is not None:
            kept["params"] = state.params
        if state.averaged is not None and self._tuning is not None:
            kept["averaged"] = state.averaged
        if self._refresh is not None:
            kept["proposal"] = self._catalog.proposal
        return kept

    def resume(self) -> None:
        """Goes on from the latest checkpoint, if there is one.

        Raises:
            InputError: it was written over another number of steps an epoch.
        """
        latest = self._writer.latest()
        if latest is None:
            return
        record = self._writer.progress(latest)
        devices, rows, steps = (record.pop(name) for name in ("devices", "batch_rows", "steps_per_epoch"))
        if steps != self._batches.steps_per_epoch:
            raise InputError(
                f"{self._run_dir}: its checkpoint has {steps} steps an epoch on {devices} devices, but "
                f"{self._mesh.size} devices make it {self._batches.steps_per_epoch}; use a number of devices that "
                "divides the rows of a batch"
            )
        if devices != self._mesh.size:
            logging.warning(
                "the checkpoint was written on %d devices, and there are %d now: the numbers will be the same up to %s",
                devices, self._mesh.size, "rounding, not bit for bit" if rows == self._batches.rows else
                "rounding and the make-up of the batches, as the rows of a batch do not divide alike",
            )  # fmt: skip
        params, kept = self._writer.restore(latest, self.params, self._kept())
        averaged = None if self._state.averaged is None else kept.get("averaged", params)
        trained = kept.get("params", params)
        self._state = TrainState(trained, kept["optimizer"], kept["step"], averaged, self._state.fixed)
        self._catalog = self._catalog._replace(proposal=kept.get("proposal", self._catalog.proposal))
        self.progress = Progress(**record)
        self._since_report = (self.progress.step, self.progress.seconds, self.progress.waiting)
        self._saved_step = latest
        logging.info("going on from the checkpoint of step %s in %s", f"{latest:,}", self._run_dir)

    def _save(self) -> None:
        """Writes a checkpoint in the background, unless there is one of this step."""
        self._read_losses()
        p = self.progress
        if p.step in (0, self._saved_step):
            return
        started = time.perf_counter()
        record = dataclasses.asdict(p) | {"devices": self._mesh.size}
        record |= {"batch_rows": self._batches.rows, "steps_per_epoch": self._batches.steps_per_epoch}
        self._writer.save(p.step, self.params, self._kept(), record, p.best_step)
        self._saved_step, self._saved = p.step, time.monotonic()
        p.saving += time.perf_counter() - started

    @property
    def params(self) -> nnx.State:
        """The model that is evaluated, as it is now."""
        best, fixed = self._state.best_params, self._state.fixed
        return best if self._tuning is None or fixed is None else self._tuning.whole(best, fixed)

    # Steps

    def _read_losses(self) -> float:
        """Reads what the latest steps told, and looks at it; returns the last norm of the gradient.

        Raises:
            InputError: a loss or a gradient is not finite, and no more steps may be skipped.
        """
        norm = float("nan")
        first = self.progress.step - len(self._pending)
        for ordinal, measures in enumerate(jax.device_get(self._pending), first + 1):
            if np.isfinite(measures.loss) and np.isfinite(measures.grad_norm):
                self.progress.epoch_loss += float(measures.loss)
                norm = float(measures.grad_norm)
                continue
            self.progress.epoch_skipped += 1
            self.progress.skipped += 1
            if self.progress.skipped > self._plan.skip_nonfinite:
                what = "loss" if not np.isfinite(measures.loss) else "gradient's norm"
                value = measures.loss if not np.isfinite(measures.loss) else measures.grad_norm
                raise InputError(
                    f"the {what} is {value} at step {ordinal}; lower the schedule's learning_rate, bind the "
                    f"optimizer's max_grad_norm, or Guards.skip_nonfinite = {self._plan.skip_nonfinite + 1} to skip it"
                )
            logging.warning("step %d: loss %s, gradient %s; skipped", ordinal, measures.loss, measures.grad_norm)
        self._pending = []
        return norm

    def _epoch_mean(self, epoch_steps: int) -> float:
        return self.progress.epoch_loss / max(1, epoch_steps - self.progress.epoch_skipped)

    def _report(self) -> None:
        """A line of the log and of metrics.jsonl."""
        norm, p, plan = self._read_losses(), self.progress, self._plan
        per_epoch = self._batches.steps_per_epoch
        since, seconds, waiting = self._since_report
        took = max(p.seconds - seconds, 1e-9)
        rate = (p.step - since) / took
        epoch = (p.step - 1) // per_epoch + 1
        metrics = {
            "step/loss": self._epoch_mean((p.step - 1) % per_epoch + 1),
            "step/grad_norm": norm,
            "step/learning_rate": float(plan.learning_rate[p.step - 1]),
            "step/targets_per_second": rate * self._batches.n_targets / per_epoch,
            "step/mfu": rate * plan.step_flops / plan.peak_flops,
            "step/waiting_share": (p.waiting - waiting) / took,
        } | {f"step/{name}": value for name, value in memory_in_use().items()}
        self._log.add("step", p.step, epoch, metrics)
        left = (plan.epochs * per_epoch - p.step) / rate
        logging.info(
            "step %s of %s, epoch %d: loss %.4f, gradient %.3g, learning rate %.2e, %s targets/s, MFU %.0f %%, "
            "%.2f GB, waiting %.1f %%, %s left",
            f"{p.step:,}", f"{plan.epochs * per_epoch:,}", epoch, metrics["step/loss"], norm,
            metrics["step/learning_rate"], f"{metrics['step/targets_per_second']:,.0f}", 100 * metrics["step/mfu"],
            metrics["step/host_memory_gb"], 100 * metrics["step/waiting_share"], f"{left / 3600:.1f} h"
            if left > 7200 else f"{left / 60:.1f} min",
        )  # fmt: skip
        self._since_report = (p.step, p.seconds, p.waiting)

    def _trace(self) -> None:
        """Starts or ends the profile before the next step."""
        trace, upcoming = self._reports.trace, self.progress.step + 1
        if not trace:
            return
        if upcoming == trace[0]:
            jax.profiler.start_trace(str(self._run_dir / TRACE), create_perfetto_trace=True)
            self._tracing = True
        elif self._tracing and upcoming > trace[1]:
            jax.block_until_ready(self._state.step)
            jax.profiler.stop_trace()
            self._tracing = False

    def _take(self, batches: Iterator[Batch]) -> None:
        """One step."""
        self._trace()
        started = time.perf_counter()
        batch = next(batches)
        if (
            not self._pending or cast(Any, self._pending[-1].loss).is_ready()
        ):  # else the devices are at work all the while
            self.progress.waiting += time.perf_counter() - started
        self._state, measures = self._step(self._state, self._catalog, batch)
        self._pending.append(measures)
        self.progress.step += 1
        if self.progress.step % self._reports.every_steps == 0:
            jax.block_until_ready(measures)
        ended = time.perf_counter()
        self.progress.seconds += ended - started
        self._epoch_seconds += ended - started

    # Epochs

    def _begin_epoch(self, epoch: int) -> float:
        """Renews the negatives; returns the seconds that it took."""
        started, self._epoch_seconds = time.perf_counter(), 0.0
        if self._refresh is not None:
            self._catalog = self._refresh(self.params, self._catalog, epoch)
        return time.perf_counter() - started

    def _end_epoch(self, epoch: int, refresh_seconds: float) -> None:
        """Evaluates where it is time for it, records the epoch, and decides whether to stop."""
        started = time.perf_counter()
        jax.block_until_ready(self._state.step)
        self._read_losses()
        self.progress.seconds += time.perf_counter() - started
        self._epoch_seconds += time.perf_counter() - started
        p, plan, per_epoch = self.progress, self._plan, self._batches.steps_per_epoch
        record = {
            "train/train_loss": self._epoch_mean(per_epoch),
            "train/learning_rate": float(plan.learning_rate[p.step - 1]),
            "train/epoch": epoch,
            "train/targets": epoch * self._batches.n_targets,
            "train/tokens": epoch * plan.epoch_tokens,
            "train/skipped_steps": p.skipped,
            "time_epoch": self._epoch_seconds + refresh_seconds,
            "time_on_epoch_start": time.time() - self._epoch_seconds - refresh_seconds,
            "time_waiting_for_data": p.waiting,
            "time_waiting_for_checkpoints": p.saving,
        }
        if self._refresh is not None:
            record["time_refresh"] = refresh_seconds
        p.epoch_loss, p.epoch_skipped = 0.0, 0
        evaluated = epoch % plan.eval_every == 0 or epoch == plan.epochs
        if evaluated:
            metrics = self._validate(self.params)
            record |= {f"valid/{name}": value for name, value in metrics.items()}
            record |= {} if self._fit is None else self._fit(self.params)
            p.since_best += 1
            if not p.best_step or metrics[plan.valid_metric] > p.best_metrics[plan.valid_metric]:
                p.best_step, p.best_metrics, p.since_best = p.step, dict(metrics), 0
            logging.info(
                "epoch %d: loss %.4f, valid %s %.4f%s", epoch, record["train/train_loss"], plan.valid_metric,
                metrics[plan.valid_metric], ", the best so far" if p.best_step == p.step else "",
            )  # fmt: skip
        p.ended = epoch == plan.epochs
        if plan.stopping_step and p.since_best >= plan.stopping_step:
            logging.info("no gain in %s for %d evaluations: stopping", plan.valid_metric, p.since_best)
            p.ended = True
        self._log.add("epoch", p.step, epoch, record)
        if evaluated:
            self._save()

    def _stop_or_save(self, stop: StopRequests, step_ended_epoch: bool) -> None:
        """Looks whether the run is to stop, or to write a checkpoint; several hosts decide together, at each report."""
        steps, minutes = self._checkpoints.every_steps, self._checkpoints.every_minutes
        asked, due = stop.asked, minutes is not None and time.monotonic() - self._saved > 60 * minutes
        if jax.process_count() > 1:
            together = step_ended_epoch or self.progress.step % self._reports.every_steps == 0
            asked, due = greatest_of_hosts(np.array([asked, due], np.int32)) if together else (False, False)
        if asked:
            self._save()
            self._writer.wait()
            raise stop.reason(self.progress.step)
        if due or (steps is not None and self.progress.step % steps == 0):
            self._save()

    def run(self, stop: StopRequests) -> Progress:
        """Trains until the epochs have passed or validation has stopped improving.

        Args:
            stop: asks to stop before.

        Raises:
            Interrupted: the run was asked to stop, and a checkpoint is written.
            InputError: the loss is not finite, or a checkpoint could not be written.
        """
        p, per_epoch = self.progress, self._batches.steps_per_epoch
        local, self._saved = local_shards(self._mesh, self._batches.shards), time.monotonic()
        steps = range(p.step, 0 if p.ended else self._plan.epochs * per_epoch)
        batches = prefetch(lambda index: split_rows(self._mesh, self._batches.batch(index, local)), steps)
        refresh_seconds = 0.0
        try:
            for index in steps:
                epoch = index // per_epoch + 1
                if index % per_epoch == 0:
                    refresh_seconds = self._begin_epoch(epoch)
                self._take(batches)
                if p.step % self._reports.every_steps == 0:
                    self._report()
                if p.step % per_epoch == 0:
                    self._end_epoch(epoch, refresh_seconds)
                    if p.ended:
                        break
                self._stop_or_save(stop, p.step % per_epoch == 0)
        finally:
            batches.close()
            if self._tracing:
                jax.profiler.stop_trace()
        self._writer.wait()
        if stop.asked and jax.process_count() == 1:
            raise stop.reason(p.step)
        return p
