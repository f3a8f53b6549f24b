"""Task: train a recommender on a dataset, keep the best checkpoint, and write results.json."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gin
import jax
import optax
from absl import logging
from flax import nnx
from rich.console import Console

from seqrec_jax.data import format
from seqrec_jax.data.batches import PackedBatches
from seqrec_jax.data.joined import Joined
from seqrec_jax.data.split import (
    Split,
    Targets,
    TrainingLog,
    last_training_targets,
    leave_one_out,
    share_of_users,
    training_log,
)
from seqrec_jax.data.store import Dataset
from seqrec_jax.devices import device_mesh, replicate
from seqrec_jax.evaluation.ranking import Ranking
from seqrec_jax.files import copy_file, write_text
from seqrec_jax.losses import full_softmax, pairwise  # noqa: F401  (their names in Gin)
from seqrec_jax.losses.loss import Loss
from seqrec_jax.losses.negatives import AnyProposal
from seqrec_jax.losses.proposals import co_counts, in_batch, knn, mixed  # noqa: F401  (their names in Gin)
from seqrec_jax.losses.proposals.by_count import popularity
from seqrec_jax.losses.sampled_softmax import sampled_softmax
from seqrec_jax.model import parameters
from seqrec_jax.model.recommender import Architecture, graph_of
from seqrec_jax.tasks.compiled_step import CompiledStep, StepCompiler
from seqrec_jax.tasks.fit_report import TrainMetrics
from seqrec_jax.tasks.part_rankers import PartRankers
from seqrec_jax.tasks.reference_params import reference_params
from seqrec_jax.tasks.settings import AUTO, check_columns, check_settings, check_share
from seqrec_jax.tasks.stage import Writing, finished_before, log_size, train_stage, training_summary
from seqrec_jax.tasks.tables import results_table
from seqrec_jax.tasks.training_data import (
    OWN,
    epoch_tokens,
    item_features,
    model_record,
    open_joined,
    without_users_of,
)
from seqrec_jax.training import checkpoint, costs
from seqrec_jax.training.guards import Guards, check_memory
from seqrec_jax.training.metrics_log import METRICS as METRICS_FILE
from seqrec_jax.training.metrics_log import MetricsLog
from seqrec_jax.training.model_record import ModelRecord
from seqrec_jax.training.optimizer import adam
from seqrec_jax.training.progress import Plan, Progress, Reports
from seqrec_jax.training.run_dir import CONFIG, DATA, RESULTS, RunDir, agree
from seqrec_jax.training.schedules import Schedule, one_cycle
from seqrec_jax.training.step import Catalog, Precision
from seqrec_jax.training.stopping import StopRequests
from seqrec_jax.training.tracking import Tracker

AUTO_BATCH = "auto.train_batch_size"


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
        joined: Joined,
        ranking: Ranking,
        folder: RunDir,
        tracker: Tracker,
    ):
        self._compiler, self._compiled, self._record, self._log = compiler, compiled, record, log
        self._joined = joined
        self._ranking, self._folder, self._tracker = ranking, folder, tracker
        self._first = jax.process_index() == 0

    def train(
        self, plan: Plan, checkpoints: checkpoint.Checkpoints, reports: Reports, guards: Guards
    ) -> dict[str, Any]:
        """Trains from the start or from the latest checkpoint, evaluates on test, and writes the results."""
        compiler, compiled, path = self._compiler, self._compiled, self._folder.path
        params_logged = self._params(compiler.param_shapes(), plan)
        if self._first:
            copy_file(self._joined.parts[0].folder / format.TOKENIZER, path / format.TOKENIZER)
            self._tracker.start(path)
            self._tracker.log_artifact(path / CONFIG)
            self._tracker.log_params(params_logged)
        agree(None)
        split, features = compiler.split, compiler.catalog.features
        valid, test = self._rankers(split.valid), self._rankers(split.test)

        def train_metrics(users: int) -> TrainMetrics:
            seen = self._rankers(last_training_targets(split, users, compiler.seed))
            return lambda params: seen.metrics(params, features)

        metrics = MetricsLog(path / METRICS_FILE if self._first else None)
        writing = Writing(path, self._record, checkpoints, reports, metrics)
        with self._tracker.until_closed():
            with StopRequests(guards.max_hours) as stop:
                progress, params = train_stage(
                    compiler, compiled, plan, lambda params: valid.metrics(params, features), train_metrics,
                    self._folder, writing, stop,
                )  # fmt: skip
            results = self._results(progress, test, params, metrics, params_logged)
        if self._first:
            print_results(results, self._ranking)
        return results

    def _rankers(self, targets: Targets) -> PartRankers:
        compiler = self._compiler
        graph = graph_of(compiler.architecture, compiler.vocab_sizes)
        return PartRankers(
            graph, self._joined, targets, self._ranking, compiler.architecture.max_length, compiler.mesh,
            self._log.counts,
        )  # fmt: skip

    def _params(self, params: nnx.State, plan: Plan) -> dict[str, Any]:
        """What MLflow keeps of the run's settings and costs."""
        compiler, compiled = self._compiler, self._compiled
        batches = compiled.batches
        log_size(compiler, compiled, params)
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

    def _results(
        self,
        progress: Progress,
        rankers: PartRankers,
        params: nnx.State,
        metrics: MetricsLog,
        params_logged: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Evaluates the best parameters on test, and writes results.json."""
        batches = self._compiled.batches
        test = rankers.metrics(params, self._compiler.catalog.features)
        popular = rankers.popularity(self._log.counts)
        best_epoch = progress.best_step // batches.steps_per_epoch
        results = collect_results(self._compiler.data, batches, progress, test, popular)
        results["params"] = {name: str(value) for name, value in params_logged.items()}
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
    return {
        "valid": dict(progress.best_metrics),
        "test": dict(test),
        "baselines": {"popularity": dict(popular)},
        "train": training_summary(progress, batches.n_targets, batches.steps_per_epoch),
        "dataset": {"n_users": data.n_users, "n_items": data.n_items, "n_inters": data.n_interactions},
    }


@gin.configurable
def pretrain(
    dataset: str | Sequence[str] = gin.REQUIRED,
    run_dir: str = gin.REQUIRED,
    dataset_shares: Sequence[float] | None = None,
    negatives_from: str = OWN,
    exclude_users_of: Sequence[str] = (),
    users_share: float = 1.0,
    split: Callable[[Dataset], Split] = leave_one_out,
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
        dataset: dataset folder, or several of one tokenizer, each with its own catalog and users.
        run_dir: folder of the run.
        dataset_shares: of an epoch's targets for each of several datasets, in any unit; None takes every interaction
            once.
        negatives_from: of several datasets: `own`, a target competes with the items of its own dataset; `all`.
        exclude_users_of: dataset folders, or text files of an id a line, whose users are left out of training and
            evaluation.
        users_share: of the users to train on, drawn at random; validation and test keep all.
        split: what trains, what is validation and what is test: leave_one_out, by_ratio or global_cut.
        seed: of initialisation, order, dropout, negatives and the share of the users.
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
    check_share("pretrain", users_share)
    check_settings(
        "pretrain", architecture, ranking, objective, valid_metric=valid_metric, compute_dtype=compute_dtype,
        ema_decay=ema_decay,
        train_batch_size=train_batch_size, epochs=epochs, eval_every=eval_every, accumulation_steps=accumulation_steps,
    )  # fmt: skip
    guards, checkpoints, reports, tracker = Guards(), checkpoint.Checkpoints(), Reports(), Tracker()
    mesh = device_mesh(model_axis=model_axis)
    joined = open_joined([dataset] if isinstance(dataset, str) else dataset, dataset_shares, negatives_from)
    data, several = joined.whole, len(joined.parts) > 1
    divided = without_users_of(joined.split(split), data, exclude_users_of)
    if users_share < 1:
        divided = share_of_users(divided, users_share, seed, validates_all=True)
    features = item_features(data, architecture, max_tokens, joined.item_starts)
    log = training_log(data, divided)
    negatives = proposal(log)
    record = model_record(data, architecture, features)
    check_columns(record, architecture, model_axis)
    domains = joined.domains() if several and negatives_from == OWN else None
    compiler = StepCompiler(
        data=data, split=divided, mesh=mesh, architecture=architecture, vocab_sizes=record.vocab_sizes,
        catalog=replicate(mesh, Catalog(features, negatives, domains)), objective=objective, schedule=schedule,
        optimizer=optimizer, precision=Precision(compute_dtype, accumulation_steps), seed=seed, epochs=epochs,
        loss_positions=loss_positions, rematerialize=rematerialize, ema_decay=ema_decay,
        skip_nonfinite=guards.skip_nonfinite > 0, learning_rate_batch_size=learning_rate_batch_size,
        learning_rate_scaling=learning_rate_scaling, groups=joined.groups() if several else None,
        shares=dataset_shares,
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
            return finished_before(folder, tracker, lambda results: print_results(results, ranking))
        logging.info("configuration:\n%s", config)
        run = _Run(compiler, compiled, record, log, joined, ranking, folder, tracker)
        plan = Plan(
            epochs, eval_every, stopping_step, valid_metric, guards.skip_nonfinite, compiled.schedule.learning_rate,
            costs.compiled_flops(compiled.step), costs.matmul_peak(compute_dtype), epoch_tokens(log, features),
        )  # fmt: skip
        return run.train(plan, checkpoints, reports, guards)
