"""Task: fine-tune a checkpoint on another dataset, and report what that gained and what it forgot."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gin
import jax
import numpy as np
import optax
from absl import logging
from flax import nnx
from jax.sharding import Mesh
from rich.console import Console

from seqrec_jax.data import format
from seqrec_jax.data.batches import prefetch
from seqrec_jax.data.joined import Joined
from seqrec_jax.data.split import TrainingLog, leave_one_out, training_log
from seqrec_jax.devices import device_mesh, local_shards, place, replicate, split_rows
from seqrec_jax.errors import InputError
from seqrec_jax.evaluation.baselines import popularity_ranks
from seqrec_jax.evaluation.metrics import summarize
from seqrec_jax.evaluation.ranking import Ranking, TargetRanker
from seqrec_jax.files import copy_file, write_arrays, write_text
from seqrec_jax.losses.full_softmax import full_softmax
from seqrec_jax.losses.loss import Loss
from seqrec_jax.losses.negatives import AnyProposal
from seqrec_jax.losses.proposals.by_count import popularity
from seqrec_jax.model import parameters
from seqrec_jax.model.recommender import graph_of
from seqrec_jax.tasks.compiled_step import StepCompiler
from seqrec_jax.tasks.domain import Domain, TrainingSet, apart_from_cold, open_domain, with_replay
from seqrec_jax.tasks.reference_params import reference_params
from seqrec_jax.tasks.restored import check_tokenizer
from seqrec_jax.tasks.settings import check_settings
from seqrec_jax.tasks.stage import Writing, finished_before, log_size, train_stage, training_summary
from seqrec_jax.tasks.tables import results_table
from seqrec_jax.tasks.training_data import epoch_tokens, features_of_record, open_joined, training_batches
from seqrec_jax.tasks.transfer_report import DomainReport, Origin, report_table
from seqrec_jax.tasks.validated_choice import Choice, average, calibrate
from seqrec_jax.training import costs
from seqrec_jax.training.carry import renamed
from seqrec_jax.training.checkpoint import Checkpoints, CheckpointWriter, Restored, restore, write_model
from seqrec_jax.training.fisher import fisher
from seqrec_jax.training.guards import Guards, check_memory
from seqrec_jax.training.metrics_log import METRICS as METRICS_FILE
from seqrec_jax.training.metrics_log import MetricsLog
from seqrec_jax.training.optimizer import adamw
from seqrec_jax.training.progress import Plan, Reports
from seqrec_jax.training.run_dir import CONFIG, DATA, RESULTS, RunDir, agree
from seqrec_jax.training.schedules import Schedule, one_cycle
from seqrec_jax.training.step import Catalog, Precision, make_loss_and_grads
from seqrec_jax.training.stopping import StopRequests
from seqrec_jax.training.tracking import Tracker
from seqrec_jax.training.transfer import Penalty, Stage, full
from seqrec_jax.training.tuning import Held, Tuning

STAGES = "stages"
SUMMARY = "stage.json"
FISHER = "fisher.npz"


@dataclasses.dataclass(frozen=True)
class Settings:
    """How the stages train; see finetune."""

    seed: int
    train_batch_size: int
    objective: Loss
    proposal: Callable[[TrainingLog], AnyProposal]
    schedule: Callable[[int], Schedule]
    optimizer: Callable[[Schedule], optax.GradientTransformation]
    penalty: Penalty | None
    ema_decay: float | None
    eval_every: int
    stopping_step: int
    valid_metric: str
    compute_dtype: str
    averages: Sequence[float]
    calibrates: bool


class _FineTuning:
    """A fine-tuning in its folder."""

    def __init__(
        self,
        settings: Settings,
        domain: Domain,
        training: TrainingSet,
        ranking: Ranking,
        mesh: Mesh,
        guards: Guards,
    ):
        self._settings, self._domain, self._mesh, self._guards = settings, domain, mesh, guards
        self.held: Held | None = None
        self._training = training
        self._features = replicate(mesh, domain.features)
        self._catalog = replicate(mesh, Catalog(training.features, settings.proposal(training.log), training.domains))
        self._graph = graph_of(domain.record.architecture, domain.record.vocab_sizes)
        max_length = domain.record.architecture.max_length
        valid, test = (
            TargetRanker(self._graph, domain.data, targets, ranking, max_length, mesh)
            for targets in (domain.split.valid, domain.split.test)
        )
        self._ranking, self._valid, self.test_ranker = ranking, valid, test
        self._report = DomainReport(domain.data, domain.split.test, domain.log.counts, test, ranking)
        self.first = jax.process_index() == 0

    def compiler(self, stage: Stage, start: nnx.State) -> StepCompiler:
        """Makes the step of a stage that begins with these parameters."""
        s, record = self._settings, self._domain.record
        strength = 0.0 if s.penalty is None else s.penalty.strength
        tuning = Tuning(start, stage.trains, stage.adapts, stage.rank, strength)
        return StepCompiler(
            data=self._training.data, split=self._training.split, mesh=self._mesh, architecture=record.architecture,
            vocab_sizes=record.vocab_sizes, catalog=self._catalog, objective=s.objective, schedule=s.schedule,
            optimizer=s.optimizer, precision=Precision(s.compute_dtype), seed=s.seed, epochs=stage.epochs,
            loss_positions="all", rematerialize=False, ema_decay=s.ema_decay,
            skip_nonfinite=self._guards.skip_nonfinite > 0, learning_rate_batch_size=None,
            learning_rate_scaling="sqrt", start=None if stage.fresh else start, tuning=tuning,
            held=None if stage.fresh else self.held, groups=self._training.groups, shares=self._training.shares,
            task="finetune",
        )  # fmt: skip

    def validate(self, params: nnx.State) -> dict[str, float]:
        """Metrics on the validation targets."""
        return summarize(self._valid.ranks(params, self._features), self._ranking.ks)

    def report(self, params: nnx.State) -> dict[str, Any]:
        """Metrics on test, whole and in slices."""
        return self._report.of(params, self._features)

    def train(
        self, stages: Sequence[Stage], folder: RunDir, checkpoints: Checkpoints, reports: Reports, metrics: MetricsLog
    ) -> tuple[list[nnx.State], list[dict[str, Any]]]:
        """Trains stage after stage, those that are finished left out.

        Returns:
            The parameters of each stage that are best on validation, and a summary of each.
        """
        s, path = self._settings, folder.path
        params = place(self._mesh, self._domain.start)
        found: list[nnx.State] = []
        summaries: list[dict[str, Any]] = []
        with StopRequests(self._guards.max_hours) as stop:
            for ordinal, stage in enumerate(stages):
                steps, epochs = (sum(summary[name] for summary in summaries) for name in ("steps", "epochs"))
                metrics.begin_stage(steps, epochs)
                of_stage = path / STAGES / f"{ordinal}_{stage.name}"
                writing = Writing(of_stage, self._domain.record, checkpoints, reports, metrics)
                if (of_stage / SUMMARY).exists():
                    summary = json.loads((of_stage / SUMMARY).read_text())
                    params = _best_of(writing, summary["best_step"], params)
                else:
                    compiler = self.compiler(stage, params)
                    compiled = compiler.compile(s.train_batch_size)
                    check_memory(compiled.bytes, self._guards.device_limit())
                    log_size(compiler, compiled, params)
                    plan = Plan(
                        stage.epochs, s.eval_every, s.stopping_step, s.valid_metric, self._guards.skip_nonfinite,
                        compiled.schedule.learning_rate, costs.compiled_flops(compiled.step),
                        costs.matmul_peak(s.compute_dtype), epoch_tokens(self._training.log, self._training.features),
                    )  # fmt: skip
                    progress, params = train_stage(compiler, compiled, plan, self.validate, folder, writing, stop)
                    per_epoch = compiled.batches.steps_per_epoch
                    summary = {"name": stage.name, "epochs": progress.step // per_epoch}
                    summary |= training_summary(progress, compiled.batches.n_targets, per_epoch)
                    summary["valid"] = progress.best_metrics
                    if self.first:
                        write_text(of_stage / SUMMARY, json.dumps(summary) + "\n")
                    agree(None)
                summaries.append(summary)
                found.append(params)
        return found, summaries

    def results(
        self,
        choice: Choice,
        before: Mapping[str, Any],
        summaries: Sequence[Mapping[str, Any]],
        origin: Origin | None,
    ) -> dict[str, Any]:
        """What results.json holds.

        Args:
            choice: the fine-tuned model.
            before: the report before.
            summaries: of the stages.
            origin: the pre-training domain.
        """
        data, domain, params = self._domain.data, self._domain, choice.params
        popular = summarize(popularity_ranks(self.test_ranker, domain.log.counts), self._ranking.ks)
        results = {"valid": self.validate(params)} | self.report(params)
        results |= {"zero_shot": dict(before), "baselines": {"popularity": popular}, "stages": list(summaries)}
        results["chosen"] = dict(choice.told)
        if origin is not None:
            architecture = domain.record.architecture
            results["pretraining"] = {
                "before": origin.test(domain.start, architecture),
                "after": origin.test(params, architecture),
            }
        results["train"] = {
            name: sum(of[name] for of in summaries) for name in ("seconds", "steps", "targets", "skipped_steps")
        }
        results["dataset"] = {
            "n_users": data.n_users, "n_items": data.n_items, "n_inters": data.n_interactions,
            "training_users": int((domain.split.train_lengths > 0).sum()),
        }  # fmt: skip
        results["params_sha256"] = parameters.sha256(replicate(self._mesh, params))
        return results

    def choose(self, stages: Sequence[Stage], found: Sequence[nnx.State]) -> Choice:
        """What is best on validation: of the checkpoint and what each stage found, each calibrated and averaged.

        Args:
            stages: of the method.
            found: the best parameters of each.
        """
        s, start = self._settings, place(self._mesh, self._domain.start)

        def figure(params: nnx.State) -> float:
            return self.validate(params)[s.valid_metric]

        candidates = {stage.name: params for stage, params in zip(stages, found, strict=True)}
        transferred = not any(stage.fresh for stage in stages)
        if transferred:
            candidates = {"checkpoint": start, **candidates}
        choices = []
        for name, params in candidates.items():
            choice = Choice(params, figure(params), {"stage": name})
            if transferred and name != "checkpoint":
                choice = average(choice, start, s.averages, figure)
            choices.append(calibrate(choice, figure) if s.calibrates else choice)
            logging.info("%s: valid %s %.4f", name, s.valid_metric, choices[-1].figure)
        return max(choices, key=lambda choice: choice.figure)


def _tracked(domain: Domain, stages: Sequence[Stage], settings: Settings) -> dict[str, Any]:
    """What MLflow keeps of the settings."""
    n_targets = int((domain.split.train_lengths - 1).clip(0).sum())
    params = reference_params(
        domain.data, domain.record, domain.start, n_targets, settings.train_batch_size, task="finetune"
    )
    return params | {"method": "+".join(stage.name for stage in stages), "seed": settings.seed}


def _best_of(writing: Writing, step: int, like: nnx.State) -> nnx.State:
    writer = CheckpointWriter(writing.path, writing.record, writing.checkpoints)
    try:
        return writer.best_params(step, like)
    finally:
        writer.close()


def importance_of(
    restored: Restored, joined: Joined, domain: Domain, settings: Settings, mesh: Mesh, n_batches: int
) -> dict[str, jax.Array]:
    """The Fisher information of a checkpoint's parameters on its pre-training dataset, by their names in the domain's
    model; see fisher."""
    record, data = restored.record, joined.whole
    split = leave_one_out(data)
    features = features_of_record(data, record, joined.item_starts)
    domains = joined.domains() if len(joined.parts) > 1 else None
    catalog = replicate(mesh, Catalog(features, settings.proposal(training_log(data, split)), domains))
    batches = training_batches(
        data, split, train_batch_size=settings.train_batch_size, loss_positions="all",
        max_length=record.architecture.max_length, shards=mesh.size, seed=settings.seed, task="finetune",
    )  # fmt: skip
    local = local_shards(mesh, batches.shards)
    graph = graph_of(record.architecture, record.vocab_sizes)
    logging.info("Fisher information over %d batches of %s", n_batches, data.folder)
    values = fisher(
        make_loss_and_grads(graph, settings.objective, mesh),
        replicate(mesh, restored.params),
        catalog,
        prefetch(lambda index: split_rows(mesh, batches.batch(index, local)), range(n_batches)),
        settings.seed,
    )
    return renamed(values, record.architecture, domain.record.architecture)


def _held(
    restored: Restored, pretraining: Joined | None, domain: Domain, settings: Settings, mesh: Mesh, path: Path
) -> Held | None:
    """What the penalty holds the parameters to; the Fisher information is kept in the run's folder."""
    penalty = settings.penalty
    if penalty is None:
        return None
    start = renamed(parameters.named(restored.params), restored.record.architecture, domain.record.architecture)
    if not penalty.fisher_batches:
        return Held(replicate(mesh, start), {})
    assert pretraining is not None
    file = path / FISHER
    if not file.exists():
        values = importance_of(restored, pretraining, domain, settings, mesh, penalty.fisher_batches)
        if jax.process_index() == 0:
            write_arrays(file, values)
        agree(None)
    with np.load(file, allow_pickle=False) as values:
        importance = {name: values[name] for name in values.files}
    return Held(replicate(mesh, start), replicate(mesh, importance))


def _print(results: Mapping[str, Any], ranking: Ranking) -> None:
    rows = {
        "popularity": results["baselines"]["popularity"],
        "zero-shot": results["zero_shot"]["test"],
        "this model": results["test"],
    }
    Console().print(results_table(rows, ranking.ks))
    Console().print(report_table(results, ranking.ks))


@gin.configurable
def finetune(
    checkpoint: str = gin.REQUIRED,
    dataset: str = gin.REQUIRED,
    run_dir: str = gin.REQUIRED,
    method: Callable[[int], Sequence[Stage]] = full,
    pretraining_dataset: str | Sequence[str] | None = None,
    seed: int = 2020,
    users_share: float = 1.0,
    changes: Mapping[str, Any] | None = None,
    penalty: Callable[[], Penalty] | None = None,
    averages: Sequence[float] = (),
    calibrates: bool = True,
    replay_share: float = 0.0,
    cold_negatives: bool = True,
    train_batch_size: int = 3200,
    loss: Callable[[], Loss] = full_softmax,
    proposal: Callable[[TrainingLog], AnyProposal] = popularity,
    schedule: Callable[[int], Schedule] = one_cycle,
    optimizer: Callable[[Schedule], optax.GradientTransformation] = adamw,
    ema_decay: float | None = None,
    eval_every: int = 1,
    stopping_step: int = 5,
    valid_metric: str = "ndcg_at_10",
    compute_dtype: str = "float32",
    overwrite: bool = False,
) -> dict[str, Any]:
    """Fine-tunes a checkpoint on another dataset, keeps what is best on validation, and reports gains and losses.

    The checkpoint says by itself what model it holds. Called again on the folder of a run that was interrupted, it goes
    on from the latest checkpoint; on that of a finished run, it prints the results. Writes the same files as
    `pretrain`.

    Args:
        checkpoint: the RUN_DIR of a training run.
        dataset: dataset folder of the small domain, made with the checkpoint's tokenizer.
        run_dir: folder of the run.
        method: what is trained, stage after stage: `full`, `progressive`, `only_embeddings`, `low_rank` or
            `from_scratch`.
        pretraining_dataset: that of the checkpoint, or several, to see there what is forgotten; `ewc` and replay_share
            need it.
        seed: of the users' share, order, dropout, negatives, and what the checkpoint lacks.
        users_share: of the domain's users, for training and validation; test keeps all.
        changes: fields of Architecture to change: item_encoder, repeat_offset, hidden_dropout, attention_dropout,
            id_dropout, attention.
        penalty: holds the parameters near the checkpoint's: `l2_sp` or `ewc`; None for none.
        averages: shares of the tuned parameters, in (0, 1), in averages with the checkpoint's to try in the end on
            validation.
        calibrates: choose the weights of what was learnt against words, and of repeats, on validation.
        replay_share: of each batch's targets that are of the pre-training dataset, on average, against forgetting.
        cold_negatives: let targets compete with items that nobody has in training, too; see apart_from_cold.
        train_batch_size: targets of a step, about, over all devices.
        loss: of the targets.
        proposal: of the negatives, from the training log.
        schedule: learning rates of a stage, from its number of steps.
        optimizer: of a stage, from the schedule.
        ema_decay: see pretrain.
        eval_every: epochs between evaluations.
        stopping_step: evaluations without a gain before a stage stops; 0 for never.
        valid_metric: `<metric>_at_<k>`.
        compute_dtype: of matrix products and activations, `float32` or `bfloat16`.
        overwrite: remove the run that the folder holds and start afresh.

    Returns:
        What results.json holds.

    Raises:
        InputError: bad input; one line says what to mend.
        Interrupted: the run was asked to stop; its checkpoint is written.
    """
    ranking, settings = Ranking(), Settings(
        seed, train_batch_size, loss(), proposal, schedule, optimizer, None if penalty is None else penalty(),
        ema_decay, eval_every, stopping_step, valid_metric, compute_dtype, averages, calibrates,
    )  # fmt: skip
    if settings.penalty is not None and settings.penalty.fisher_batches and pretraining_dataset is None:
        raise InputError(
            "finetune.penalty = @ewc weighs parameters by what they mean to the pre-training dataset; bind "
            "PRETRAINING_DATASET to its folder"
        )
    if not 0 <= replay_share < 1:
        raise InputError(f"finetune.replay_share = {replay_share} is not in [0, 1)")
    if replay_share and pretraining_dataset is None:
        raise InputError("finetune.replay_share needs pre-training data; bind PRETRAINING_DATASET to its folder")
    if any(not 0 < share < 1 for share in averages):
        raise InputError(f"finetune.averages = {tuple(averages)} must hold shares in (0, 1)")
    guards, checkpoints, reports, tracker = Guards(), Checkpoints(), Reports(), Tracker()
    mesh, restored = device_mesh(), restore(checkpoint)
    domain = open_domain(dataset, checkpoint, restored, changes or {}, users_share, seed)
    check_settings(
        "finetune", domain.record.architecture, ranking, settings.objective, valid_metric=valid_metric,
        compute_dtype=compute_dtype, ema_decay=ema_decay, train_batch_size=train_batch_size, eval_every=eval_every,
    )  # fmt: skip
    pretraining = None
    if pretraining_dataset is not None:
        folders = [pretraining_dataset] if isinstance(pretraining_dataset, str) else pretraining_dataset
        pretraining = open_joined(folders)
        check_tokenizer(pretraining.whole, restored.record, checkpoint)
    training = TrainingSet(domain.data, domain.split, domain.log, domain.features)
    if pretraining is not None and replay_share:
        training = with_replay(domain, pretraining, restored.record, replay_share)
    if not cold_negatives:
        training = apart_from_cold(training)
    settings.objective.check(settings.proposal(training.log), training.data.n_items, 2)
    stages = method(domain.record.architecture.n_layers)
    folder = RunDir(run_dir, (STAGES, FISHER))
    with folder.held() as path:
        config = gin.operative_config_str() + f"{DATA}dataset.sha256 = {domain.data.digest()}\n"
        config += f"{DATA}checkpoint.sha256 = {parameters.sha256(restored.params)}\n"
        work = _FineTuning(settings, domain, training, ranking, mesh, guards)
        for stage in stages:
            work.compiler(stage, domain.start).prepare(train_batch_size)
        if folder.begin(config, overwrite):
            return finished_before(folder, tracker, lambda results: _print(results, ranking), "finetune")
        logging.info("configuration:\n%s", config)
        if work.first:
            copy_file(Path(checkpoint) / format.TOKENIZER, path / format.TOKENIZER)
            tracker.start(path)
            tracker.log_artifact(path / CONFIG)
            tracker.log_params(
                _tracked(domain, stages, settings) | {"checkpoint": checkpoint, "users_share": users_share}
            )
        metrics = MetricsLog(path / METRICS_FILE if work.first else None)
        origin = None if pretraining is None else Origin(pretraining, restored.record, ranking, mesh)
        with tracker.until_closed():
            before = work.report(place(mesh, domain.start))
            metrics.add("zero_shot", 0, 0, {f"zero_shot/{name}": value for name, value in before["test"].items()})
            logging.info("zero-shot: test %s %.4f", valid_metric, before["test"][valid_metric])
            work.held = _held(restored, pretraining, domain, settings, mesh, path)
            found, summaries = work.train(stages, folder, checkpoints, reports, metrics)
            choice = work.choose(stages, found)
            results = work.results(choice, before, summaries, origin)
            last = summaries[-1]
            flat = {f"test/{name}": value for name, value in results["test"].items()}
            for name, figures in results["slices"].items():
                flat |= {f"{name}/{metric}": value for metric, value in figures.items()}
            metrics.add("test", last["steps"], last["epochs"], flat)
            if work.first:
                write_model(path, domain.record, choice.params, sum(of["steps"] for of in summaries))
                write_text(path / RESULTS, json.dumps(results, indent=2) + "\n")
                tracker.log_artifact(path / RESULTS)
                shutil.rmtree(path / STAGES)
    if work.first:
        _print(results, ranking)
    return results
