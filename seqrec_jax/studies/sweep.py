"""A sweep: search over Gin bindings, each trial a training run of its own."""

import dataclasses
import itertools
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from absl import logging

from seqrec_jax.errors import InputError, in_short
from seqrec_jax.files import write_text
from seqrec_jax.runs.folder import CONFIG
from seqrec_jax.runs.run import Run
from seqrec_jax.runs.settings import RunSettings
from seqrec_jax.runs.stopping import StopRequests
from seqrec_jax.studies.engine import Job, JobError, gin_bindings, identity, run_jobs

STUDY, TRIALS, SUMMARY, PLOT = "sweep.sqlite", "trials", "sweep.json", "parallel_coordinates.html"
SAMPLERS, PRUNERS = ("tpe", "random", "grid"), (None, "median", "hyperband")
RANGES = {"log": (float, True), "uniform": (float, False), "int": (int, False), "log_int": (int, True)}


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What a sweep searches, and how."""

    base: str  # Gin file of a trial, with the macros DATASET and RUN_DIR
    dataset: str  # dataset folder
    space: Mapping[str, Any]  # by binding, a list of choices or a range of one of RANGES, such as ('log', 1e-4, 1e-2)
    bindings: Sequence[str] = ()  # bindings of all trials, such as 'EPOCHS = 10'
    trials: int = 20  # trials in all; may be raised later. A grid has no more than its points
    sampler: str = "tpe"  # `tpe`, `random` or `grid`
    pruner: str | None = None  # `median` or `hyperband` ends trials early that fall behind; None lets all run
    metric: str = "ndcg_at_10"  # `<metric>_at_<k>` of validation to raise
    seed: int = 2020  # seed of the sampler

    def __post_init__(self):
        for name, known in (("sampler", SAMPLERS), ("pruner", PRUNERS)):
            if getattr(self, name) not in known:
                raise InputError(f"Sweep.{name} = {getattr(self, name)!r} is not one of {', '.join(map(str, known))}")
        if self.trials < 1:
            raise InputError(f"Sweep.trials = {self.trials} is below 1")
        if not self.space:
            example = "{'TrainConfig.learning_rate': ('log', 1e-4, 1e-2)}"
            raise InputError(f"Sweep.space names nothing to search, such as {example}")
        for name, values in self.space.items():
            place = f"Sweep.space[{name!r}] = {values!r}"
            if isinstance(values, list) and values:
                continue
            if not isinstance(values, tuple) or len(values) != 3 or values[0] not in RANGES:
                ranges = f"{', '.join(RANGES)} with two bounds, such as ('log', 1e-4, 1e-2)"
                raise InputError(f"{place} is neither a list of choices nor one of {ranges}")
            if self.sampler == "grid":
                raise InputError(f"{place}: a grid needs a list of choices")
            if not values[1] < values[2] or (RANGES[values[0]][1] and values[1] <= 0):
                raise InputError(f"{place}: bounds must rise, and be above 0 on a log scale")

    def suggest(self, trial: Any) -> dict[str, str]:
        """A value for each binding, as Gin writes it, from Optuna; those that a trial has already stay."""
        chosen = {}
        for name, values in self.space.items():
            if isinstance(values, tuple):
                kind, log = RANGES[values[0]]
                suggest = trial.suggest_int if kind is int else trial.suggest_float
                chosen[name] = repr(suggest(name, values[1], values[2], log=log))
            else:  # As Gin writes them, since Optuna keeps no tuples.
                chosen[name] = trial.suggest_categorical(name, [repr(value) for value in values])
        return chosen

    def grid(self) -> list[dict[str, str]]:
        """Every combination of the choices, as Gin writes them."""
        points = itertools.product(*([repr(value) for value in values] for values in self.space.values()))
        return [dict(zip(self.space, point, strict=True)) for point in points]

    def job(self, number: int, chosen: Mapping[str, str], folder: Path) -> Job:
        """The run of a trial, in the folder of the sweep."""
        run_dir = folder / TRIALS / f"{number:04d}"
        places = gin_bindings({"DATASET": self.dataset, "RUN_DIR": str(run_dir)})
        of_trial = [f"{name} = {value}" for name, value in chosen.items()]
        return Job(f"trial {number}", run_dir, self.base, [*self.bindings, *places, *of_trial])


def _run_trial(search: Sweep, study: Any, trial: Any, run: Run, stop: StopRequests) -> None:
    """Runs a trial, or goes on with it, and tells Optuna what came of it."""
    from optuna.trial import TrialState

    chosen = search.suggest(trial)
    job = search.job(trial.number, chosen, run.path).part_of(run)
    logging.info("%s: %s", job.name, ", ".join(f"{name} = {value}" for name, value in chosen.items()))
    reported = set(trial.storage.get_trial(trial._trial_id).intermediate_values)
    state = TrialState.FAIL

    def falls_behind(job: Job) -> bool:
        nonlocal state
        evaluations = job.evaluations(f"valid/{search.metric}")
        for epoch in [epoch for epoch in evaluations if epoch not in reported]:
            reported.add(epoch)
            trial.report(evaluations[epoch], epoch)
            if trial.should_prune():
                logging.info("%s: pruned after epoch %d, %s %.4f", job.name, epoch, search.metric, evaluations[epoch])
                state = TrialState.PRUNED
                return True
        return False

    try:
        run_jobs([job], 1, stop, falls_behind, len(study.get_trials(states=[TrialState.COMPLETE])))
    except JobError:
        if (job.run_dir / CONFIG).exists():  # It had begun: the fault is in what was chosen.
            study.tell(trial, state=TrialState.FAIL)
        raise
    value = job.results()["valid"][search.metric] if job.finished else None
    study.tell(trial, value, None if job.finished else state)


def _run_trials(search: Sweep, study: Any, run: Run, stop: StopRequests) -> None:
    """Runs what is left of the trials, those that were interrupted first."""
    import optuna
    from optuna.trial import Trial, TrialState

    make_sampler: Any = optuna.samplers.TPESampler if search.sampler == "tpe" else optuna.samplers.RandomSampler
    trials = search.trials
    if search.sampler == "grid":
        trials = min(trials, len(search.grid()))
        for point in search.grid():
            study.enqueue_trial(point, skip_if_exists=True)

    def seed(number: int) -> None:
        """Seeds the sampler by the trial's number, so that an interrupted sweep chooses as an undisturbed one."""
        study.sampler = make_sampler(seed=search.seed + number)

    for left in study.get_trials(states=[TrialState.RUNNING]):
        seed(left.number)
        _run_trial(search, study, Trial(study, left._trial_id), run, stop)
    while (begun := sum(trial.state != TrialState.WAITING for trial in study.trials)) < trials:
        seed(begun)
        _run_trial(search, study, study.ask(), run, stop)


def _open_study(path: Path, pruner: Any) -> Any:
    """The sweep's study, begun where it is not there; an InputError where its database is damaged."""
    import optuna
    from sqlalchemy import URL
    from sqlalchemy.exc import SQLAlchemyError

    place = URL.create("sqlite", database=f"file:{quote(str(path.resolve()))}", query={"uri": "true"})
    try:
        study = optuna.create_study(
            storage=place.render_as_string(), study_name="sweep", direction="maximize", load_if_exists=True,
            pruner=pruner,
        )  # fmt: skip
        study.get_trials()
    except (SQLAlchemyError, RuntimeError, KeyError, ValueError) as error:
        raise InputError(
            f"{path}: is damaged ({in_short(error)}); bind another RUN_DIR, or "
            "RunSettings.overwrite = True to start afresh"
        ) from error
    return study


def _summary(search: Sweep, study: Any, folder: Path) -> list[dict[str, Any]]:
    """All trials, the best first."""
    rows, metric = [], search.metric
    for trial in sorted(study.trials, key=lambda of: -math.inf if of.value is None else of.value, reverse=True):
        bindings = {name: value if isinstance(value, str) else repr(value) for name, value in trial.params.items()}
        job = search.job(trial.number, bindings, folder)
        rows.append({
            "trial": trial.number, "state": trial.state.name.lower(), "bindings": bindings,
            f"valid/{metric}": trial.value, f"test/{metric}": job.results()["test"][metric] if job.finished else None,
        })  # fmt: skip
    return rows


def sweep(search: Sweep, run_dir: str | Path, settings: RunSettings | None = None) -> list[dict[str, Any]]:
    """Searches for the bindings of a training run that are best on validation, by Optuna (Akiba et al., KDD 2019).

    Each trial is a run in a process of its own, in `RUN_DIR/trials/<number>`, and a part of the sweep's run in MLflow.
    Writes `parallel_coordinates.html` and `sweep.json`; returns what the latter holds: the trials, the best first.
    InputError where the first trial was refused; Interrupted where the sweep was asked to stop: the same call goes on
    with the trial that was under way.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    pruner: Any = getattr(optuna.pruners, f"{(search.pruner or 'nop').capitalize()}Pruner")
    with Run(run_dir, settings, (TRIALS, STUDY, SUMMARY, PLOT)) as run:
        run.begin(identity(search, "dataset", "trials"))
        run.track({"sweep_base": search.base, "sweep_space": search.space, "sweep_sampler": search.sampler})
        study = _open_study(run.path / STUDY, pruner())
        with run.stop as stop:
            _run_trials(search, study, run, stop)
        rows = _summary(search, study, run.path)
        write_text(run.path / SUMMARY, json.dumps(rows, indent=2) + "\n")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            figure = optuna.visualization.plot_parallel_coordinate(study, target_name=f"valid {search.metric}")
        write_text(run.path / PLOT, figure.to_html(include_plotlyjs=True))
        run.track(artifacts=[run.path / SUMMARY, run.path / PLOT])
    best = " ".join(f'--gin_bindings="{name} = {value}"' for name, value in rows[0]["bindings"].items())
    logging.info("the best: --gin_file=%s %s", search.base, best)
    return rows
