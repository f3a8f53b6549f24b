"""Fine-tuning a recommender: `finetune(model, corpus, FinetuneConfig(method=head_first), run_dir="runs/market")`."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from absl import logging

from seqrec_jax.data.corpus import Corpus
from seqrec_jax.describe import describe
from seqrec_jax.devices import device_mesh, replicate
from seqrec_jax.errors import InputError
from seqrec_jax.finetuning import adapt, report
from seqrec_jax.finetuning.config import FinetuneConfig
from seqrec_jax.finetuning.methods import Phase, with_something_to_train
from seqrec_jax.finetuning.model_selection import Candidate, select
from seqrec_jax.finetuning.penalties import Penalty, anchor_of
from seqrec_jax.finetuning.phases import PHASES, FineTuning
from seqrec_jax.hosts import raise_on_all_hosts
from seqrec_jax.model import parameters, storage
from seqrec_jax.model.recommender import Recommender
from seqrec_jax.runs.reference_params import reference_params
from seqrec_jax.runs.run import Run
from seqrec_jax.runs.settings import RunSettings
from seqrec_jax.training.fit import Fitted, check_model_axis

FISHER = "fisher.npz"


def finetune(
    model: Recommender, corpus: Corpus, config: FinetuneConfig = FinetuneConfig(), run_dir: str | Path | None = None,
    *, pretraining: Corpus | None = None, settings: RunSettings = RunSettings(),
) -> Fitted:  # fmt: skip
    """Fine-tunes a recommender on another dataset, keeps what is best on validation, and reports gains and losses.

    Called again on the folder of a run that was interrupted, it goes on from the latest checkpoint; on that of a
    finished run, it reads the results. Writes the same files as `fit`.

    Args:
        corpus: The target: one dataset, made with the model's tokenizer. Corpus.users_share with validate_all = False
            trains and validates on a share of its users; test keeps all.
        pretraining: What the model was pre-trained on, to see there what is forgotten; `ewc` and replay need it.

    Raises InputError for bad input, and Interrupted where the run was asked to stop; its checkpoint is written then.
    """
    if run_dir is None:
        raise InputError("finetune: run_dir = None; name the folder of the run")
    penalty = _checked_penalty(model, config, pretraining)
    adapt.check_target(corpus, config.train.ranking)
    start, training = adapt.adapt_to(corpus, model, config), adapt.training_corpus(corpus, pretraining, config)
    mesh, ranking = device_mesh(model_axis=settings.model_axis), config.train.ranking
    for on_mesh in (start,) if pretraining is None else (start, model):
        check_model_axis(on_mesh.spec, settings.model_axis)
    work = FineTuning(config, start, corpus, training, mesh, 0.0 if penalty is None else penalty.strength)
    phases = with_something_to_train(config.method(start.architecture.n_layers), start.params)
    for phase in phases:
        work.check(phase)
    on_pretraining = report.metrics_on_pretraining(model, pretraining, ranking, mesh)
    on_target = report.report_on(corpus, ranking.ks)
    with Run(run_dir, settings, (PHASES, FISHER, "transitions.npz")) as run:
        finished = run.begin(_identity(model, work, pretraining))
        if finished is not None:
            return Fitted(storage.load(run.path), finished)
        run.track(_logged_params(model, work, phases))
        before = on_target(work.test.ranks(work.start_params, work.features))
        run.metrics.add("zero_shot", 0, 0, {f"zero_shot/{name}": value for name, value in before["test"].items()})
        logging.info("zero-shot: test %s %.4f", config.train.valid_metric, before["test"][config.train.valid_metric])
        anchor = anchor_of(model, penalty, pretraining, config.train, mesh, run.path / FISHER)
        found, summaries = work.train(phases, anchor, run)
        transferred = None if any(phase.fresh for phase in phases) else work.start_params
        chosen = select(found, transferred, partial(work.valid.ranks, features=work.features), config)
        tuned = start.replace(params=chosen.params)
        after = on_target(work.test.ranks(chosen.params, work.features))
        results = _results(work, chosen, summaries) | after | {"zero_shot": before} | on_pretraining(start, tuned)
        last = summaries[-1] if summaries else {"steps": 0, "epochs": 0}
        run.metrics.add("test", last["steps"], last["epochs"], report.logged_metrics(after))
        _write(run, tuned, results)
    return Fitted(storage.load(run.path), results)


def _checked_penalty(model: Recommender, config: FinetuneConfig, pretraining: Corpus | None) -> Penalty | None:
    """The penalty; refuses settings that need a pre-training corpus that is not there, and one that is another's."""
    penalty = None if config.penalty is None else config.penalty()
    if pretraining is not None:
        model.check(pretraining.data)
        return penalty
    needing = {"penalty = ewc": penalty and penalty.fisher_batches, "replay_share": config.replay_share}
    for setting, needs in needing.items():
        if needs:
            raise InputError(
                f"FinetuneConfig.{setting} needs the pre-training datasets; give finetune.pretraining, or bind "
                "PRETRAINING_DATASET"
            )
    return penalty


def _identity(model: Recommender, work: FineTuning, pretraining: Corpus | None) -> dict[str, Any]:
    """What a run is compared by when it goes on."""
    described = describe(work.config)
    return {
        "Architecture": describe(work.start.architecture), "Corpus": work.target.settings(),
        "Pretraining": None if pretraining is None else pretraining.settings(),
        "TrainConfig": described.pop("train"), "FinetuneConfig": described,
        "Recommender": {"params_sha256": parameters.sha256(model.params)},
    }  # fmt: skip


def _logged_params(model: Recommender, work: FineTuning, phases: Sequence[Phase]) -> dict[str, Any]:
    """What MLflow keeps of the settings."""
    target, config = work.target, work.train_config
    n_targets = int((target.division.train_lengths - 1).clip(0).sum())
    return reference_params(work.start, target, describe(config), n_targets, int(config.train_batch_size)) | {
        "method": "+".join(phase.name for phase in phases) or "untrained", "seed": config.seed,
        "users_share": target.users_share, "checkpoint_sha256": parameters.sha256(model.params),
    }  # fmt: skip


def _results(work: FineTuning, chosen: Candidate, summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What results.json says of the chosen model, of its training and of the target."""
    totals = ("seconds", "steps", "targets", "skipped_steps")
    return {
        "valid": work.valid.metrics(chosen.params, work.features), "chosen": dict(chosen.report),
        "baselines": {"popularity": work.test.popularity()}, "phases": list(summaries),
        "train": {name: sum(of[name] for of in summaries) for name in totals},
        "dataset": work.target.summary()
        | {"training_users": int((work.target.division.train_lengths > 0).sum())},
        "params_sha256": parameters.sha256(replicate(work.mesh, chosen.params)),
    }  # fmt: skip


def _write(run: Run, model: Recommender, results: dict[str, Any]) -> None:
    """Writes the model, in place of one from an attempt that was cut off, then the results; removes the phases."""
    if run.first:
        run.remove(storage.CHECKPOINTS)
    raise_on_all_hosts(None)
    storage.save(run.path, model, max(1, results["train"]["steps"]), run.identity)
    run.finish(results)
    if run.first:
        try:
            run.remove(PHASES)
        except InputError as error:
            logging.warning("%s", error)
