"""The phases of a fine-tuning: what they share, and how they are trained one after the other."""

import dataclasses
import json
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from absl import logging
from jax.sharding import Mesh

from seqrec_jax.data.corpus import Corpus
from seqrec_jax.data.split import last_training_targets
from seqrec_jax.devices import place, replicate
from seqrec_jax.errors import InputError
from seqrec_jax.evaluation.ranking import CorpusRanker
from seqrec_jax.files import read_json, write_text
from seqrec_jax.finetuning import adapt
from seqrec_jax.finetuning.config import FinetuneConfig
from seqrec_jax.finetuning.methods import Phase
from seqrec_jax.hosts import raise_on_all_hosts
from seqrec_jax.model.parameters import Params
from seqrec_jax.model.recommender import Recommender
from seqrec_jax.model.storage import CHECKPOINTS, check_whole
from seqrec_jax.runs import costs
from seqrec_jax.runs.run import Run
from seqrec_jax.training.compile import StepCompiler
from seqrec_jax.training.phase import best_of_phase, phase_summary, train_phase
from seqrec_jax.training.step import Catalog
from seqrec_jax.training.train_metrics import TrainMetrics
from seqrec_jax.training.tuning import Anchor, Tuning

PHASES = "phases"
SUMMARY = "phase.json"
Summary = dict[str, Any]  # what results.json says of a phase


def _finished(folder: Path, run: Run) -> Summary | None:
    """The summary of a phase that is finished; None where it, or the best checkpoint that it names, is damaged."""
    if not (folder / SUMMARY).exists():
        return None
    try:
        summary = read_json(folder / SUMMARY, "the phase is trained again")
        if not all(isinstance(summary[name], int) for name in ("best_step", "steps", "epochs")):
            raise TypeError("it is no summary")
        check_whole(folder / CHECKPOINTS / str(summary["best_step"]), run.identity)
    except (InputError, OSError, KeyError, TypeError) as error:
        logging.warning("%s: what was finished cannot be used, and is trained again: %s", folder, error)
        return None
    return summary


class FineTuning:
    """What the phases of a fine-tuning share: `start` is the pre-trained model on the target, `training` what it is
    trained on, and `strength` that of the penalty, 0 for none. Parameters and features are on the devices."""

    def __init__(
        self, config: FinetuneConfig, start: Recommender, target: Corpus, training: Corpus, mesh: Mesh, strength: float
    ):
        self.config, self.start, self.target, self.training = config, start, target, training
        self.mesh, self.strength = mesh, strength
        self.train_config = adapt.with_least_steps(config, training, start.architecture.max_length, mesh.size)
        self.start_params = place(mesh, start.params, start.graph.tables)
        self.features = replicate(mesh, start.features(target.data))
        ranking, statistics = config.train.ranking, start.statistics
        self._ranker = partial(CorpusRanker, start.graph, target, ranking=ranking, mesh=mesh, statistics=statistics)
        self.valid, self.test = (self._ranker(targets=of) for of in (target.division.valid, target.division.test))

    @cached_property
    def catalog(self) -> Catalog:
        """Items that are trained on; all phases share it, and with it the proposal."""
        return adapt.training_catalog(self.start, self.target, self.training, self.config, self.mesh)

    def compiler(self, phase: Phase, start: Params, anchor: Anchor = Anchor()) -> StepCompiler:
        """Makes the step of a phase that begins with these parameters; one that begins afresh has no anchor."""
        config = dataclasses.replace(self.train_config, epochs=phase.epochs)
        tuning = Tuning(phase.trains, phase.adapts, phase.rank, self.strength)
        if phase.fresh:
            start, anchor = self.start.graph.init(config.seed), Anchor()
        return StepCompiler(config, self.training, self.start.spec, self.catalog, self.mesh, start, tuning, anchor)

    def check(self, phase: Phase) -> None:
        """Refuses, by an InputError, at once what a phase would refuse later."""
        compiler = self.compiler(phase._replace(fresh=False), self.start_params)
        compiler.check()
        compiler.prepare(int(self.train_config.train_batch_size))

    def train(self, phases: Sequence[Phase], anchor: Anchor, run: Run) -> tuple[dict[str, Params], list[Summary]]:
        """Trains phase after phase, but those that are finished; returns by phase the parameters that are best on
        validation, and a summary of each."""
        params, found = self.start_params, {}
        summaries: list[Summary] = []
        with run.stop:
            for ordinal, phase in enumerate(phases):
                run.metrics.begin_phase(*(sum(of[name] for of in summaries) for name in ("steps", "epochs")))
                folder = run.path / PHASES / f"{ordinal}_{phase.name}"
                if (summary := _finished(folder, run)) is not None:
                    params = best_of_phase(folder, self.start.spec, summary["best_step"], params, run.identity)
                else:
                    summary, params = self._train_phase(phase.name, self.compiler(phase, params, anchor), folder, run)
                found[phase.name] = params
                summaries.append(summary)
        return found, summaries

    def _train_phase(self, name: str, compiler: StepCompiler, folder: Path, run: Run) -> tuple[Summary, Params]:
        """Trains a phase, and writes its summary when it is finished."""
        compiled = compiler.compile(int(self.train_config.train_batch_size))
        costs.check_memory(compiled.bytes, costs.device_bytes(run.settings.memory_limit))
        validate, train_metrics = partial(self.valid.metrics, features=self.features), None
        if users := run.settings.reports.fit_users:
            seen = self._ranker(targets=last_training_targets(self.target.division, users, compiler.config.seed))
            train_metrics = TrainMetrics(compiler, compiled, users, partial(seen.metrics, features=self.features))
        progress, params = train_phase(compiler, compiled, validate, run, folder, train_metrics=train_metrics)
        epochs, of_phase = progress.step // compiled.batches.steps_per_epoch, phase_summary(progress, compiled)
        summary = {"name": name, "epochs": epochs, **of_phase, "valid": progress.best_metrics}
        if run.first:
            write_text(folder / SUMMARY, json.dumps(summary) + "\n")
        raise_on_all_hosts(None)
        return summary, params
