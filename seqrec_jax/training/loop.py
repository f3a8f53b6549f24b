"""The training loop: steps, evaluations, checkpoints, early stopping; it goes on from any step."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import jax
import numpy as np
from absl import logging

from seqrec_jax.data.batches import Batch, prefetch
from seqrec_jax.describe import check_types
from seqrec_jax.devices import greatest_of_hosts, local_shards, split_rows
from seqrec_jax.errors import InputError, in_short
from seqrec_jax.model.parameters import Params
from seqrec_jax.runs.costs import memory_in_use
from seqrec_jax.runs.folder import TRACE
from seqrec_jax.runs.run import Run
from seqrec_jax.training.checkpoint import CheckpointWriter
from seqrec_jax.training.compile import CompiledStep, StepCompiler
from seqrec_jax.training.refresh import make_refresh
from seqrec_jax.training.step import StepMetrics, TrainState

MetricsOf = Callable[[Params], Mapping[str, float]]


@dataclasses.dataclass
class Progress:
    """Where training stands: with the arrays, all that it needs in order to go on."""

    step: int = 0  # steps taken
    epoch_loss: float = 0.0  # sum of the losses of the present epoch's steps, without those that were skipped
    epoch_skipped: int = 0  # steps of the present epoch whose loss or gradient was not finite
    skipped: int = 0  # such steps in all
    seconds: float = 0.0  # of training, without evaluations and checkpoints
    waiting: float = 0.0  # seconds of those that the devices waited for data
    saving: float = 0.0  # seconds that the loop waited for checkpoints
    best_step: int = 0  # of the best evaluation; 0 before the first
    best_metrics: dict[str, float] = dataclasses.field(default_factory=dict)  # on validation there
    since_best: int = 0  # evaluations since then
    ended: bool = False


class Trainer:
    """The loop of a phase of training; an InputError where its checkpoints do not fit on the disk.

    The run keeps the metrics and says when to report, to write checkpoints and to stop. `validate` gives the metrics of
    parameters on validation, `<metric>_at_<k>`; `train_metrics`, what else an evaluation reports of them.
    """

    def __init__(
        self, compiler: StepCompiler, compiled: CompiledStep, validate: MetricsOf, run: Run, writer: CheckpointWriter,
        train_metrics: MetricsOf | None = None,
    ):  # fmt: skip
        self._compiler, self._config = compiler, compiler.config
        self._compiled, self._batches = compiled, compiled.batches
        self._validate, self._train_metrics, self._writer = validate, train_metrics, writer
        self._run, self._reports, self._checkpoints = run, run.settings.reports, run.settings.checkpoints
        self._state, self._catalog = compiler.init(compiled.optimizer), compiler.catalog
        self._refresh, self._peak_flops = make_refresh(compiler), compiler.peak_flops
        self.progress, self._reported = Progress(), Progress()
        self._pending: list[StepMetrics] = []
        self._saved_step, self._saved, self._seconds_before_epoch, self._tracing = 0, time.monotonic(), 0.0, False
        run.check_disk(self._state.bytes, self._checkpoints.keep + 2)

    @property
    def params(self) -> Params:
        """The model that is evaluated, as it is now."""
        return self._compiler.tuning.whole(self._state.best_params, self._state.fixed)

    def _kept(self) -> dict[str, Any]:
        """The arrays that a checkpoint holds beside the parameters that are evaluated."""
        state = self._state
        adapted = not state.params.keys() <= self._compiler.start.keys()  # The model alone does not tell the additions.
        return {
            "optimizer": state.optimizer, "step": state.step,
            "params": None if state.averaged is None and not adapted else state.params,
            "averaged": state.averaged if adapted else None,
            "proposal": None if self._refresh is None else self._catalog.proposal,
        }  # fmt: skip

    def resume(self) -> None:
        """Goes on from the latest checkpoint, if any."""
        if (latest := self._writer.latest()) is None:
            return
        record, mesh = self._writer.progress(latest), self._compiler.mesh
        try:
            devices, progress = record.pop("devices"), Progress(**record)
            check_types(progress)
        except (InputError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{self._run.path}: checkpoint {latest} has no record of a training ({in_short(error)}); "
                             "move it away to use the one before it") from error  # fmt: skip
        if devices != mesh.size:
            logging.warning("the checkpoint was written on %s devices, and there are %d now: the numbers will be the "
                            "same up to rounding, not bit for bit", devices, mesh.size)  # fmt: skip
        params, kept = self._writer.restore(latest, self.params, self._kept())
        evaluated: Any = {name: params.get(name) for name in self._state.params}
        averaged = None if self._state.averaged is None else kept["averaged"] or evaluated
        trained = kept["params"] or evaluated
        self._state = TrainState(trained, kept["optimizer"], kept["step"], averaged, self._state.fixed)
        if self._refresh is not None:
            self._catalog = dataclasses.replace(self._catalog, proposal=kept["proposal"])
        self.progress, self._reported, self._saved_step = progress, dataclasses.replace(progress), latest
        self._seconds_before_epoch = self.progress.seconds
        logging.info("going on from the checkpoint of step %s in %s", f"{latest:,}", self._run.path)

    def _save(self) -> None:
        """Writes a checkpoint in the background, unless there is one of this step."""
        self._read_losses()
        p, started = self.progress, time.perf_counter()
        if p.step in (0, self._saved_step):
            return
        record = dataclasses.asdict(p) | {"devices": self._compiler.mesh.size}
        self._writer.save(p.step, self.params, self._kept(), record, p.best_step)
        self._saved_step, self._saved = p.step, time.monotonic()
        p.saving += time.perf_counter() - started

    def _read_losses(self) -> float:
        """Reads the latest losses, refuses one too many that are not finite; returns the last norm of the gradient."""
        last_norm, p, most = float("nan"), self.progress, self._config.skip_nonfinite
        for ordinal, (loss, norm) in enumerate(jax.device_get(self._pending), p.step - len(self._pending) + 1):
            if np.isfinite(loss) and np.isfinite(norm):
                p.epoch_loss, last_norm = p.epoch_loss + float(loss), float(norm)
                continue
            p.epoch_skipped, p.skipped = p.epoch_skipped + 1, p.skipped + 1
            if p.skipped > most:
                what, value = ("gradient's norm", norm) if np.isfinite(loss) else ("loss", loss)
                raise InputError(
                    f"the {what} is {value} at step {ordinal}; lower TrainConfig.learning_rate, set "
                    f"TrainConfig.max_grad_norm, or TrainConfig.skip_nonfinite = {most + 1} to skip it"
                )
            logging.warning("step %d: loss %s, gradient %s; skipped", ordinal, loss, norm)
        self._pending = []
        return last_norm

    def _epoch_mean(self, epoch_steps: int) -> float:
        return self.progress.epoch_loss / max(1, epoch_steps - self.progress.epoch_skipped)

    def _report(self) -> None:
        """Writes a line of the log and of metrics.jsonl."""
        norm, p, compiled, per_epoch = self._read_losses(), self.progress, self._compiled, self._batches.steps_per_epoch
        before, steps, epoch = self._reported, self._config.epochs * per_epoch, (p.step - 1) // per_epoch + 1
        took = max(p.seconds - before.seconds, 1e-9)
        rate = (p.step - before.step) / took
        metrics = {
            "step/loss": self._epoch_mean((p.step - 1) % per_epoch + 1),
            "step/grad_norm": norm,
            "step/learning_rate": float(compiled.schedule.learning_rate[p.step - 1]),
            "step/targets_per_second": rate * self._batches.n_targets / per_epoch,
            "step/mfu": rate * compiled.flops.model / self._peak_flops,
            "step/waiting_share": (p.waiting - before.waiting) / took,
        } | {f"step/{name}": value for name, value in memory_in_use().items()}
        self._run.metrics.add("step", p.step, epoch, metrics)
        left = (steps - p.step) / rate
        logging.info(
            "step %s of %s, epoch %d: loss %.4f, gradient %.3g, learning rate %.2e, %s targets/s, MFU %.0f %%, "
            "%.2f GB, waiting %.1f %%, %s left",
            f"{p.step:,}", f"{steps:,}", epoch, metrics["step/loss"], norm, metrics["step/learning_rate"],
            f"{metrics['step/targets_per_second']:,.0f}", 100 * metrics["step/mfu"], metrics["step/host_memory_gb"],
            100 * metrics["step/waiting_share"], f"{left / 3600:.1f} h" if left > 7200 else f"{left / 60:.1f} min",
        )  # fmt: skip
        self._reported = dataclasses.replace(p)

    def _trace(self) -> None:
        """Starts or ends the profile before the next step."""
        trace, upcoming = self._reports.trace, self.progress.step + 1
        if trace and upcoming == trace[0]:
            jax.profiler.start_trace(str(self._run.path / TRACE), create_perfetto_trace=True)
            self._tracing = True
        elif self._tracing and upcoming > trace[1]:
            jax.block_until_ready(self._state.step)
            jax.profiler.stop_trace()
            self._tracing = False

    def _take(self, batches: Iterator[Batch]) -> None:
        """Takes one step."""
        self._trace()
        started = time.perf_counter()
        batch = next(batches)
        if not self._pending or cast(Any, self._pending[-1].loss).is_ready():  # Else the devices are at work.
            self.progress.waiting += time.perf_counter() - started
        self._state, metrics = self._compiled.step(self._state, self._catalog, batch)
        self._pending.append(metrics)
        self.progress.step += 1
        if self.progress.step % self._reports.every_steps == 0:
            jax.block_until_ready(metrics)
        self.progress.seconds += time.perf_counter() - started

    def _end_epoch(self, epoch: int, refresh_seconds: float) -> None:
        """Evaluates where it is time for it, records the epoch, and decides whether to stop."""
        p, config, started = self.progress, self._config, time.perf_counter()
        jax.block_until_ready(self._state.step)
        self._read_losses()
        p.seconds += time.perf_counter() - started
        seconds = p.seconds - self._seconds_before_epoch + refresh_seconds
        record = {
            "train/train_loss": self._epoch_mean(self._batches.steps_per_epoch),
            "train/learning_rate": float(self._compiled.schedule.learning_rate[p.step - 1]),
            "train/epoch": epoch, "train/targets": epoch * self._batches.n_targets,
            "train/tokens": epoch * self._compiler.epoch_tokens, "train/skipped_steps": p.skipped,
            "time_epoch": seconds, "time_on_epoch_start": time.time() - seconds,
            "time_waiting_for_data": p.waiting, "time_waiting_for_checkpoints": p.saving,
        } | ({} if self._refresh is None else {"time_refresh": refresh_seconds})  # fmt: skip
        p.epoch_loss, p.epoch_skipped = 0.0, 0
        evaluated = epoch % config.eval_every == 0 or epoch == config.epochs
        if evaluated:
            record |= self._evaluate(epoch, record["train/train_loss"])
        p.ended = epoch == config.epochs
        if config.stopping_step and p.since_best >= config.stopping_step:
            logging.info("no gain in %s for %d evaluations: stopping", config.valid_metric, p.since_best)
            p.ended = True
        self._run.metrics.add("epoch", p.step, epoch, record)
        if evaluated:
            self._save()

    def _evaluate(self, epoch: int, loss: float) -> dict[str, float]:
        """Evaluates the parameters, and keeps the metrics where they are the best so far; returns what to record."""
        p, name, metrics = self.progress, self._config.valid_metric, self._validate(self.params)
        record = {f"valid/{metric}": value for metric, value in metrics.items()}
        if self._train_metrics is not None:
            record |= self._train_metrics(self.params)
        p.since_best, best = p.since_best + 1, ""
        if not p.best_step or metrics[name] > p.best_metrics[name]:
            p.best_step, p.best_metrics, p.since_best, best = p.step, dict(metrics), 0, ", the best so far"
        logging.info("epoch %d: loss %.4f, valid %s %.4f%s", epoch, loss, name, metrics[name], best)
        return record

    def _stop_or_save(self, step_ended_epoch: bool) -> None:
        """Looks whether to stop, or to write a checkpoint; several hosts decide together, at each report."""
        steps, minutes, stop = self._checkpoints.every_steps, self._checkpoints.every_minutes, self._run.stop
        asked, due = stop.asked, minutes is not None and time.monotonic() - self._saved > 60 * minutes
        if jax.process_count() > 1:
            decide = step_ended_epoch or self.progress.step % self._reports.every_steps == 0
            asked, due = greatest_of_hosts(np.array([asked, due], np.int32)) if decide else (False, False)
        if asked:
            self._save()
            self._writer.wait()
            raise stop.reason(self.progress.step)
        if due or (steps is not None and self.progress.step % steps == 0):
            self._save()

    def train(self) -> Progress:
        """Trains until the epochs have passed or validation has stopped improving.

        Raises Interrupted where it was asked to stop, once a checkpoint is written; an InputError where the loss is not
        finite or a checkpoint could not be written.
        """
        p, mesh, per_epoch, stop = self.progress, self._compiler.mesh, self._batches.steps_per_epoch, self._run.stop
        local, self._saved = local_shards(mesh, self._batches.shards), time.monotonic()
        steps = range(p.step, 0 if p.ended else self._config.epochs * per_epoch)
        batches = prefetch(lambda index: split_rows(mesh, self._batches.batch(index, local)), steps)
        refresh_seconds = 0.0
        try:
            for index in steps:
                epoch = index // per_epoch + 1
                if index % per_epoch == 0:
                    started, self._seconds_before_epoch = time.perf_counter(), p.seconds
                    if self._refresh is not None:
                        self._catalog = self._refresh(self.params, self._catalog, epoch)
                    refresh_seconds = time.perf_counter() - started
                self._take(batches)
                if p.step % self._reports.every_steps == 0:
                    self._report()
                if p.step % per_epoch == 0:
                    self._end_epoch(epoch, refresh_seconds)
                    if p.ended:
                        break
                self._stop_or_save(p.step % per_epoch == 0)
        finally:
            batches.close()
            if self._tracing:
                jax.profiler.stop_trace()
        self._writer.wait()
        if stop.asked and jax.process_count() == 1:
            raise stop.reason(p.step)
        return p
