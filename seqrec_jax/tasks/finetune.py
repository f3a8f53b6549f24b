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
from jax.sharding import Mesh
from rich.console import Console

from seqrec_jax.data import format
from seqrec_jax.data.batches import prefetch
from seqrec_jax.data.split import Split, TrainingLog, leave_one_out, training_log
from seqrec_jax.data.store import Dataset
from seqrec_jax.devices import device_mesh, local_shards, place, replicate, split_rows
from seqrec_jax.errors import InputError
from seqrec_jax.evaluation.ranking import Ranking
from seqrec_jax.files import copy_file, write_arrays, write_text
from seqrec_jax.losses.full_softmax import full_softmax
from seqrec_jax.losses.loss import Loss
from seqrec_jax.losses.negatives import AnyProposal
from seqrec_jax.losses.proposals.by_count import popularity
from seqrec_jax.model import parameters
from seqrec_jax.model.recommender import graph_of
from seqrec_jax.tasks.domain import (
    Domain,
    Pretraining,
    TrainingSet,
    apart_from_cold,
    open_domain,
    with_replay,
    without_rare_rows,
)
from seqrec_jax.tasks.finetune_stages import STAGES, FineTuning, Settings, with_something_to_train
from seqrec_jax.tasks.reference_params import reference_params
from seqrec_jax.tasks.restored import check_tokenizer
from seqrec_jax.tasks.settings import check_settings
from seqrec_jax.tasks.stage import finished_before
from seqrec_jax.tasks.tables import results_table
from seqrec_jax.tasks.training_data import features_of_record, open_joined, training_batches
from seqrec_jax.tasks.transfer_report import Origin, report_table
from seqrec_jax.training.carry import renamed
from seqrec_jax.training.checkpoint import Checkpoints, Restored, restore, write_model
from seqrec_jax.training.fisher import fisher
from seqrec_jax.training.guards import Guards
from seqrec_jax.training.metrics_log import METRICS as METRICS_FILE
from seqrec_jax.training.metrics_log import MetricsLog
from seqrec_jax.training.model_record import ModelRecord
from seqrec_jax.training.optimizer import adamw
from seqrec_jax.training.progress import Reports
from seqrec_jax.training.run_dir import CONFIG, DATA, RESULTS, TRANSITIONS, RunDir, agree
from seqrec_jax.training.schedules import Schedule, one_cycle
from seqrec_jax.training.step import Catalog, make_loss_and_grads
from seqrec_jax.training.tracking import Tracker
from seqrec_jax.training.transfer import Penalty, Stage, full
from seqrec_jax.training.tuning import Held

FISHER = "fisher.npz"


def _batch_size(settings: Settings, training: TrainingSet, domain: Domain, mesh: Mesh, least_steps: int) -> int:
    """Targets of a step, fewer where an epoch would have too few steps."""
    row = domain.record.architecture.max_length * mesh.size
    n_targets = int((training.split.train_lengths - 1).clip(0).sum())
    size = min(settings.train_batch_size, max(row, n_targets // least_steps // row * row))
    if size < settings.train_batch_size:
        logging.info("batches of %d targets, for at least %d steps an epoch", size, least_steps)
    return size


def _check(settings: Settings, pretraining_dataset: str | Sequence[str] | None, replay_share: float) -> None:
    """Refuses settings of transfer that do not fit each other.

    Raises:
        InputError: naming the binding.
    """
    averages, penalty = settings.averages, settings.penalty
    if penalty is not None and penalty.fisher_batches and pretraining_dataset is None:
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


def _training_set(
    domain: Domain,
    pretraining: Pretraining | None,
    pretrained: ModelRecord,
    replay_share: float,
    row_interactions: int,
    cold_negatives: bool,
) -> TrainingSet:
    """What is trained on; see finetune for the settings."""
    training = TrainingSet(domain.data, domain.split, domain.log, domain.features)
    if pretraining is not None and replay_share:
        training = with_replay(domain, pretraining, pretrained, replay_share)
    training = without_rare_rows(training, row_interactions)
    return training if cold_negatives else apart_from_cold(training)


def _told(results: Mapping[str, Any]) -> dict[str, float]:
    """Figures of test, of all users and of the slices, for the log of metrics."""
    told = {f"test/{name}": value for name, value in results["test"].items()}
    for name, figures in results["slices"].items():
        told |= {f"{name}/{metric}": value for metric, value in figures.items()}
    return told


def _tracked(domain: Domain, stages: Sequence[Stage], settings: Settings) -> dict[str, Any]:
    """What MLflow keeps of the settings."""
    n_targets = int((domain.split.train_lengths - 1).clip(0).sum())
    params = reference_params(
        domain.data, domain.record, domain.start, n_targets, settings.train_batch_size, task="finetune"
    )
    return params | {"method": "+".join(stage.name for stage in stages) or "untrained", "seed": settings.seed}


def importance_of(
    restored: Restored, pretraining: Pretraining, domain: Domain, settings: Settings, mesh: Mesh, batch_size: int
) -> dict[str, jax.Array]:
    """The Fisher information of a checkpoint's parameters on its pre-training dataset, by their names in the domain's
    model; see fisher."""
    record, (joined, split) = restored.record, pretraining
    data = joined.whole
    features = features_of_record(data, record, joined.item_starts)
    domains = joined.domains() if len(joined.parts) > 1 else None
    catalog = replicate(mesh, Catalog(features, settings.proposal(training_log(data, split)), domains))
    batches = training_batches(
        data, split, train_batch_size=batch_size, loss_positions="all",
        max_length=record.architecture.max_length, shards=mesh.size, seed=settings.seed, task="finetune",
    )  # fmt: skip
    local = local_shards(mesh, batches.shards)
    graph = graph_of(record.architecture, record.vocab_sizes)
    assert settings.penalty is not None
    n_batches = settings.penalty.fisher_batches
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
    restored: Restored,
    pretraining: Pretraining | None,
    domain: Domain,
    settings: Settings,
    mesh: Mesh,
    path: Path,
    batch_size: int,
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
        values = importance_of(restored, pretraining, domain, settings, mesh, batch_size)
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
    split: Callable[[Dataset], Split] = leave_one_out,
    changes: Mapping[str, Any] | None = None,
    penalty: Callable[[], Penalty] | None = None,
    averages: Sequence[float] = (),
    calibrates: bool = True,
    replay_share: float = 0.0,
    row_interactions: int = 5,
    cold_negatives: bool = False,
    train_batch_size: int = 3200,
    least_steps: int = 8,
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
        method: what is trained, stage after stage: `full`, `progressive`, `only_embeddings`, `low_rank`,
            `head_first`, `from_scratch` or `untrained`.
        pretraining_dataset: that of the checkpoint, or several, to see there what is forgotten; `ewc` and replay_share
            need it.
        seed: of the users' share, order, dropout, negatives, and what the checkpoint lacks.
        users_share: of the domain's users, for training and validation; test keeps all.
        split: of the domain and of what was pre-trained on; see pretrain.
        changes: fields of Architecture to change: item_encoder, repeat_offset, transitions, lexical_size,
            hidden_dropout, attention_dropout, id_dropout, token_dropout, attention.
        penalty: holds the parameters near the checkpoint's: `l2_sp` or `ewc`; None for none.
        averages: shares of the tuned parameters, in (0, 1), in averages with the checkpoint's to try in the end on
            validation.
        calibrates: choose the weights of transitions, of what was learnt against words, and of repeats, on validation.
        replay_share: of each batch's targets that are of the pre-training dataset, on average, against forgetting.
        row_interactions: fewest of an item in training that has a row of its own beside its text.
        cold_negatives: let targets compete with items that nobody has in training, too, which then rank last whatever
            their words; see apart_from_cold.
        train_batch_size: targets of a step, about, over all devices.
        least_steps: an epoch has at least as many, of smaller batches, down to a row a device.
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
    _check(settings, pretraining_dataset, replay_share)
    guards, checkpoints, reports, tracker = Guards(), Checkpoints(), Reports(), Tracker()
    mesh, restored = device_mesh(), restore(checkpoint)
    domain = open_domain(dataset, checkpoint, restored, changes or {}, users_share, seed, split)
    check_settings(
        "finetune", domain.record.architecture, ranking, settings.objective, valid_metric=valid_metric,
        compute_dtype=compute_dtype, ema_decay=ema_decay, train_batch_size=train_batch_size, eval_every=eval_every,
        least_steps=least_steps,
    )  # fmt: skip
    pretraining = None
    if pretraining_dataset is not None:
        folders = [pretraining_dataset] if isinstance(pretraining_dataset, str) else pretraining_dataset
        joined = open_joined(folders)
        pretraining = Pretraining(joined, joined.split(split))
        check_tokenizer(joined.whole, restored.record, checkpoint)
    training = _training_set(domain, pretraining, restored.record, replay_share, row_interactions, cold_negatives)
    settings = dataclasses.replace(
        settings, train_batch_size=_batch_size(settings, training, domain, mesh, least_steps)
    )
    settings.objective.check(settings.proposal(training.log), training.data.n_items, 2)
    stages = with_something_to_train(method(domain.record.architecture.n_layers), domain.start)
    folder = RunDir(run_dir, (STAGES, FISHER, TRANSITIONS))
    with folder.held() as path:
        config = gin.operative_config_str() + f"{DATA}dataset.sha256 = {domain.data.digest()}\n"
        config += f"{DATA}checkpoint.sha256 = {parameters.sha256(restored.params)}\n"
        if pretraining is not None:
            config += f"{DATA}pretraining_dataset.sha256 = {pretraining.joined.whole.digest()}\n"
        work = FineTuning(settings, domain, training, ranking, mesh, guards)
        for stage in stages:
            work.compiler(stage, domain.start).prepare(settings.train_batch_size)
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
            work.held = _held(restored, pretraining, domain, settings, mesh, path, train_batch_size)
            found, summaries = work.train(stages, folder, checkpoints, reports, metrics)
            choice = work.choose(stages, found)
            results = work.results(choice, before, summaries, origin)
            last = summaries[-1] if summaries else {"steps": 0, "epochs": 0}
            metrics.add("test", last["steps"], last["epochs"], _told(results))
            if work.transitions is not None and work.first:
                work.transitions.write(path / TRANSITIONS)
            write_model(path, domain.record, choice.params, max(1, sum(of["steps"] for of in summaries)))
            if work.first:
                write_text(path / RESULTS, json.dumps(results, indent=2) + "\n")
                tracker.log_artifact(path / RESULTS)
                shutil.rmtree(path / STAGES, ignore_errors=True)
    if work.first:
        _print(results, ranking)
    return results
