"""The stages of a fine-tuning in its folder, what is chosen of them, and what is reported."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import optax
from absl import logging
from flax import nnx
from jax.sharding import Mesh

from seqrec_jax.data.split import Targets, TrainingLog, last_training_targets
from seqrec_jax.data.transitions import count_transitions
from seqrec_jax.devices import place, replicate
from seqrec_jax.errors import InputError
from seqrec_jax.evaluation.baselines import popularity_ranks
from seqrec_jax.evaluation.metrics import standard_error, summarize
from seqrec_jax.evaluation.ranking import Ranking, TargetRanker
from seqrec_jax.files import write_text
from seqrec_jax.losses.loss import Loss
from seqrec_jax.losses.negatives import AnyProposal
from seqrec_jax.model import parameters
from seqrec_jax.model.recommender import graph_of
from seqrec_jax.tasks.compiled_step import StepCompiler
from seqrec_jax.tasks.domain import Domain, TrainingSet
from seqrec_jax.tasks.fit_report import TrainMetrics
from seqrec_jax.tasks.stage import Writing, log_size, train_stage, training_summary
from seqrec_jax.tasks.training_data import epoch_tokens
from seqrec_jax.tasks.transfer_report import DomainReport, Origin
from seqrec_jax.tasks.validated_choice import Choice, average, calibrate, weigh_transitions
from seqrec_jax.training import costs
from seqrec_jax.training.checkpoint import Checkpoints, CheckpointWriter
from seqrec_jax.training.guards import Guards, check_memory
from seqrec_jax.training.metrics_log import MetricsLog
from seqrec_jax.training.progress import Plan, Reports
from seqrec_jax.training.run_dir import RunDir, agree
from seqrec_jax.training.schedules import Schedule
from seqrec_jax.training.step import Catalog, Precision
from seqrec_jax.training.stopping import StopRequests
from seqrec_jax.training.transfer import Penalty, Stage
from seqrec_jax.training.tuning import Held, Tuning

STAGES = "stages"
SUMMARY = "stage.json"


def with_something_to_train(stages: Sequence[Stage], params: nnx.State) -> list[Stage]:
    """The stages without those whose parameters the model does not have, such as a lexical head.

    Raises:
        InputError: there were some, and none is left.
    """
    names = parameters.named(params)
    left = [stage for stage in stages if any(stage.trains(name) or stage.adapts(name) for name in names)]
    for stage in stages:
        if stage not in left:
            logging.info("stage %r is left out: the model has none of its parameters", stage.name)
    if stages and not left:
        raise InputError("finetune.method trains no parameter of the checkpoint's model; bind another")
    return left


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


class FineTuning:
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
        architecture = domain.record.architecture
        self.transitions = None
        if architecture.transitions:
            self.transitions = count_transitions(domain.log, domain.data.catalog_sha256())
        self._ranking = ranking
        self._valid, self.test_ranker = self._ranker(domain.split.valid), self._ranker(domain.split.test)
        self._report = DomainReport(domain.data, domain.split.test, domain.log.counts, self.test_ranker, ranking)
        self.first = jax.process_index() == 0

    def _ranker(self, targets: Targets) -> TargetRanker:
        domain, max_length = self._domain, self._domain.record.architecture.max_length
        return TargetRanker(
            self._graph, domain.data, targets, self._ranking, max_length, self._mesh, self.transitions,
            domain.log.counts,
        )  # fmt: skip

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

    def train_metrics(self, users: int) -> TrainMetrics:
        """Metrics on the training targets of at most so many users."""
        seen = self._ranker(last_training_targets(self._domain.split, users, self._settings.seed))
        return lambda params: summarize(seen.ranks(params, self._features), self._ranking.ks)

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
                    progress, params = train_stage(
                        compiler, compiled, plan, self.validate, self.train_metrics, folder, writing, stop
                    )
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

        Where chance may have made the difference the earlier one is taken, as validation is on users whose histories
        were trained on, and flatters what was trained longer; see weigh_transitions.

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
            ranks = self._valid.ranks(params, self._features)
            choice = Choice(params, summarize(ranks, self._ranking.ks)[s.valid_metric], {"stage": name})
            if transferred and name != "checkpoint":
                choice = average(choice, start, s.averages, figure)
            if s.calibrates:
                noise = standard_error(ranks, s.valid_metric)
                choice = calibrate(weigh_transitions(choice, figure, noise), figure)
            choices.append(choice)
            logging.info("%s: valid %s %.4f", name, s.valid_metric, choices[-1].figure)
        best = max(choices, key=lambda choice: choice.figure)
        noise = standard_error(self._valid.ranks(best.params, self._features), s.valid_metric)
        return next(choice for choice in choices if choice.figure >= best.figure - noise)


def _best_of(writing: Writing, step: int, like: nnx.State) -> nnx.State:
    writer = CheckpointWriter(writing.path, writing.record, writing.checkpoints)
    try:
        return writer.best_params(step, like)
    finally:
        writer.close()
