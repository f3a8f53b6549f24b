"""Task: train a recommender on a dataset, keep the best checkpoint, and write results.json."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gin
import numpy as np
import optax
from absl import logging
from rich.console import Console

from seqrec_jax.data import format
from seqrec_jax.data.split import TrainingLog, leave_one_out, training_log
from seqrec_jax.data.store import Dataset, open_dataset
from seqrec_jax.errors import InputError
from seqrec_jax.evaluation.baselines import popularity_ranks
from seqrec_jax.evaluation.metrics import METRICS, summarize
from seqrec_jax.evaluation.ranking import Ranking, TargetRanker
from seqrec_jax.files import write_text
from seqrec_jax.losses import full_softmax, pairwise  # noqa: F401  (their names in Gin)
from seqrec_jax.losses.loss import Loss
from seqrec_jax.losses.negatives import AnyProposal
from seqrec_jax.losses.proposals import co_counts, in_batch, knn, mixed  # noqa: F401  (their names in Gin)
from seqrec_jax.losses.proposals.by_count import popularity
from seqrec_jax.losses.sampled_softmax import sampled_softmax
from seqrec_jax.model import parameters
from seqrec_jax.model.recommender import Architecture, build
from seqrec_jax.tasks.reference_params import reference_params
from seqrec_jax.tasks.tables import results_table
from seqrec_jax.tasks.training_data import item_features, model_record, training_batches
from seqrec_jax.training import checkpoint, flops
from seqrec_jax.training.devices import data_mesh, replicate, split_rows
from seqrec_jax.training.loop import Progress, fit
from seqrec_jax.training.optimizer import Schedule, adam, one_cycle
from seqrec_jax.training.refresh import make_refresh
from seqrec_jax.training.step import COMPUTE_DTYPES, Catalog, Precision, TrainState, make_train_step
from seqrec_jax.training.tracking import Tracker

RESULTS = "results.json"
CONFIG = "config.gin"


def prepare_run_dir(run_dir: Path, overwrite: bool) -> None:
    """Refuses a folder that holds a run, or empties it where `overwrite` is set."""
    if run_dir.exists() and not run_dir.is_dir():
        raise InputError(f"{run_dir}: is a file; bind RUN_DIR to a folder")
    if (run_dir / checkpoint.CHECKPOINTS).exists():
        if not overwrite:
            raise InputError(f"{run_dir}: holds a run already; bind another RUN_DIR, or pretrain.overwrite = True")
        shutil.rmtree(run_dir / checkpoint.CHECKPOINTS)
        (run_dir / RESULTS).unlink(missing_ok=True)


def check_at_least_one(**settings: int) -> None:
    """Refuses settings of `pretrain` that are below 1.

    Raises:
        InputError: naming the binding.
    """
    for name, value in settings.items():
        if value < 1:
            raise InputError(f"pretrain.{name} = {value} is below 1")


def check_metric(name: str, ranking: Ranking) -> None:
    """Refuses a valid_metric that the ranking does not give.

    Raises:
        InputError: it is not `<metric>_at_<k>` with a known metric and a cut-off of the ranking.
    """
    known = [f"{metric}_at_{k}" for k in ranking.ks for metric in METRICS]
    if name not in known:
        raise InputError(f"pretrain.valid_metric = {name!r} is not one of {', '.join(known)}")


@gin.configurable
def pretrain(
    dataset: str = gin.REQUIRED,
    run_dir: str = gin.REQUIRED,
    seed: int = 2020,
    epochs: int = 50,
    train_batch_size: int = 128,
    loss_positions: str = "all",
    max_tokens: Mapping[str, int] | None = None,
    loss: Callable[[], Loss] = sampled_softmax,
    proposal: Callable[[TrainingLog], AnyProposal] = popularity,
    schedule: Callable[[int], Schedule] = one_cycle,
    optimizer: Callable[[Schedule], optax.GradientTransformation] = adam,
    eval_every: int = 1,
    stopping_step: int = 10,
    valid_metric: str = "ndcg_at_10",
    compute_dtype: str = "float32",
    rematerialize: bool = False,
    accumulation_steps: int = 1,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Trains a recommender, keeps the checkpoint that is best on validation, and evaluates that on test.

    Writes `RUN_DIR/{checkpoints,tokenizer.model,config.gin,results.json}`.

    Args:
        dataset: dataset folder.
        run_dir: folder of the run.
        seed: of initialisation, order, dropout and negatives.
        epochs: at most.
        train_batch_size: targets of a step, about, over all devices.
        loss_positions: `all` or `last`; see training_batches.
        max_tokens: text features to read and the most tokens of each; None reads all that the dataset holds.
        loss: of the targets.
        proposal: of the negatives, from the training log.
        schedule: learning rates, from the number of steps.
        optimizer: from the schedule.
        eval_every: epochs between evaluations.
        stopping_step: evaluations without a gain before the run stops; 0 for never.
        valid_metric: `<metric>_at_<k>`.
        compute_dtype: of matrix products and activations, `float32` or `bfloat16`; parameters stay float32.
        rematerialize: make activations again for the gradient instead of keeping them: less memory, more time.
        accumulation_steps: parts that a step is made in, one after the other, for batches that do not fit in memory.
        overwrite: start afresh in a folder that holds a run.

    Returns:
        What results.json holds.

    Raises:
        InputError: bad input; one line says what to mend.
    """
    run_path, mesh, architecture, ranking = Path(run_dir), data_mesh(), Architecture(), Ranking()
    check_at_least_one(
        epochs=epochs, eval_every=eval_every, train_batch_size=train_batch_size, accumulation_steps=accumulation_steps
    )
    if compute_dtype not in COMPUTE_DTYPES:
        raise InputError(f"pretrain.compute_dtype = {compute_dtype!r} is not one of {', '.join(COMPUTE_DTYPES)}")
    check_metric(valid_metric, ranking)
    objective = loss()
    if architecture.repeat_offset and not objective.whole_catalog:
        raise InputError(
            "Architecture.repeat_offset = True is learnt from the whole catalog; bind pretrain.loss = @full_softmax"
        )
    data = open_dataset(dataset, verify=True)
    split = leave_one_out(data)
    batches = training_batches(
        data,
        split,
        train_batch_size=train_batch_size,
        loss_positions=loss_positions,
        max_length=architecture.max_length,
        shards=mesh.size,
        seed=seed,
        accumulation_steps=accumulation_steps,
    )
    features = item_features(data, architecture, max_tokens)
    log = training_log(data, split)
    negatives = proposal(log)
    objective.check(negatives, data.n_items, batches.rows // batches.shards)
    prepare_run_dir(run_path, overwrite)

    catalog = replicate(mesh, Catalog(features, negatives))
    record = model_record(data, architecture, features)
    graph, params = build(architecture, record.vocab_sizes, seed, rematerialize)
    plan = schedule(epochs * batches.steps_per_epoch)
    update = optimizer(plan)
    state = replicate(mesh, TrainState(params, update.init(params), np.int32(0)))
    train_step = make_train_step(graph, objective, update, mesh, seed, Precision(compute_dtype, accumulation_steps))
    step = train_step.lower(state, catalog, split_rows(mesh, batches.batch(0))).compile()

    best = checkpoint.BestCheckpoint(run_path, record, data.folder / format.TOKENIZER)
    rankers = {
        name: TargetRanker(graph, data, targets, ranking, architecture.max_length, mesh)
        for name, targets in (("valid", split.valid), ("test", split.test))
    }
    logging.info(
        "%s: %d targets an epoch in %d steps, %.1f %% of positions filled; %d parameters, %d outside the tables",
        data.name, batches.n_targets, batches.steps_per_epoch, 100 * batches.packing.fill,
        parameters.count(params), parameters.count(params, with_tables=False),
    )  # fmt: skip
    tracker = Tracker()
    finished = False
    try:
        config = gin.operative_config_str()
        logging.info("operative configuration:\n%s", config)
        write_text(run_path / CONFIG, config)
        tracker.log_artifact(run_path / CONFIG)
        tracker.log_params(
            reference_params(data, record, params, batches.n_targets, train_batch_size)
            | {"epochs": epochs, "seed": seed, "loss_positions": loss_positions, "evaluation_mode": ranking.mode}
            | {"learning_rate": float(plan.learning_rate.max()), "train_step_flops": flops.compiled_flops(step)}
        )
        state, progress = fit(
            step,
            state,
            catalog,
            batches,
            mesh,
            epochs=epochs,
            validate=lambda state: summarize(rankers["valid"].ranks(state.params, catalog.features), ranking.ks),
            learning_rate=plan.learning_rate,
            eval_every=eval_every,
            stopping_step=stopping_step,
            valid_metric=valid_metric,
            checkpoint=best,
            tracker=tracker,
            refresh=make_refresh(graph, catalog, mesh, seed),
        )
        best.close()
        params = replicate(mesh, checkpoint.restore(run_path).params)
        test = summarize(rankers["test"].ranks(params, catalog.features), ranking.ks)
        tracker.log_metrics({f"test/{name}": value for name, value in test.items()}, step=progress.best_epoch)
        results = collect_results(
            data, progress, test, summarize(popularity_ranks(rankers["test"], log.counts), ranking.ks)
        )
        results["params_sha256"] = parameters.sha256(params)
        write_text(run_path / RESULTS, json.dumps(results, indent=2) + "\n")
        tracker.log_artifact(run_path / RESULTS)
        finished = True
    finally:
        tracker.close(finished)
    Console().print(results_table({"popularity": results["baselines"]["popularity"], "this model": test}, ranking.ks))
    return results


def collect_results(
    data: Dataset, progress: Progress, test: Mapping[str, float], popular: Mapping[str, float]
) -> dict[str, Any]:
    """What results.json holds, but for the parameters' digest."""
    return {
        "valid": dict(progress.best_metrics),
        "test": dict(test),
        "baselines": {"popularity": dict(popular)},
        "train": {
            "seconds": progress.seconds,
            "steps": progress.steps,
            "targets": progress.targets,
            "targets_per_second": progress.targets / progress.seconds,
            "best_step": progress.best_step,
        },
        "dataset": {"n_users": data.n_users, "n_items": data.n_items, "n_inters": data.n_interactions},
    }
