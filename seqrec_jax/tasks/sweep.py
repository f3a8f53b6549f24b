"""Task: search over bindings, each trial a training run of its own, and compare what came of them."""

import dataclasses
import itertools
import json
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gin
from absl import logging
from rich.console import Console
from rich.table import Table

from seqrec_jax.errors import InputError
from seqrec_jax.files import write_text
from seqrec_jax.tasks.child import Child, bound, command, tracked_under
from seqrec_jax.training.run_dir import CONFIG, RESULTS, RunDir
from seqrec_jax.training.stopping import StopRequests
from seqrec_jax.training.tracking import Tracker

STUDY = "sweep.sqlite"
TRIALS = "trials"
SUMMARY = "sweep.json"
PLOT = "parallel_coordinates.html"
SAMPLERS = ("tpe", "random", "grid")
PRUNERS = ("median", "hyperband")
SECONDS_BETWEEN_LOOKS = 0.5
RANGES = {"log": (float, True), "uniform": (float, False), "int": (int, False), "log_int": (int, True)}


@dataclasses.dataclass(frozen=True)
class Space:
    """What a sweep searches.

    Attributes:
        bindings: of each binding a list of choices, or (`log` | `uniform` | `int` | `log_int`, low, high).
    """

    bindings: Mapping[str, Sequence[Any]]

    def check(self, sampler: str) -> None:
        """Refuses what cannot be searched.

        Raises:
            InputError: naming the binding.
        """
        if not self.bindings:
            raise InputError("SPACE names nothing to search, such as {'one_cycle.learning_rate': ('log', 1e-4, 1e-2)}")
        for name, values in self.bindings.items():
            if not self._is_range(values):
                if not isinstance(values, list) or not values:
                    raise InputError(
                        f"SPACE[{name!r}] = {values!r} is neither a list of choices nor one of "
                        f"{', '.join(RANGES)} with two bounds, such as ('log', 1e-4, 1e-2)"
                    )
            elif sampler == "grid":
                raise InputError(f"SPACE[{name!r}] = {values!r}: a grid needs a list of choices")
            elif not values[1] < values[2] or (RANGES[values[0]][1] and values[1] <= 0):
                raise InputError(f"SPACE[{name!r}] = {values!r}: bounds must rise, and be above 0 on a log scale")

    @staticmethod
    def _is_range(values: Any) -> bool:
        return isinstance(values, tuple) and len(values) == 3 and values[0] in RANGES

    def suggest(self, trial: Any) -> dict[str, Any]:
        """A value for each binding, from Optuna; those that a trial has already stay."""
        chosen = {}
        for name, values in self.bindings.items():
            if not self._is_range(values):
                # As Gin writes them, since Optuna keeps no tuples.
                chosen[name] = trial.suggest_categorical(name, [repr(value) for value in values])
                continue
            kind, log = RANGES[values[0]]
            suggest = trial.suggest_int if kind is int else trial.suggest_float
            chosen[name] = repr(suggest(name, values[1], values[2], log=log))
        return chosen

    def grid(self) -> list[dict[str, str]]:
        """Every combination of the choices, as Gin writes them."""
        points = itertools.product(*([repr(value) for value in values] for values in self.bindings.values()))
        return [dict(zip(self.bindings, point, strict=True)) for point in points]


@dataclasses.dataclass
class _Sweep:
    """A search under way; see sweep for the settings."""

    base: str
    dataset: str
    folder: Path
    space: Space
    metric: str
    bindings: Sequence[str]
    tracker: Tracker
    study: Any = None
    parent: str | None = None

    def command(self, number: int, chosen: Mapping[str, str]) -> list[str]:
        """What a trial runs."""
        places = {"DATASET": repr(self.dataset), "RUN_DIR": repr(str(self.run_dir(number)))}
        tracked = tracked_under(self.tracker, self.parent, f"trial {number}")
        return command(self.base, [*self.bindings, *bound(places | tracked | dict(chosen))])

    def run_dir(self, number: int) -> Path:
        """A trial's folder."""
        return self.folder / TRIALS / f"{number:04d}"

    def run_trial(self, trial: Any, stop: StopRequests) -> None:
        """Runs a trial, or goes on with it, and tells Optuna.

        Raises:
            InputError: the first trial was refused.
            Interrupted: the sweep was asked to stop.
        """
        from optuna.trial import TrialState

        chosen = self.space.suggest(trial)
        logging.info("trial %d: %s", trial.number, ", ".join(f"{name} = {value}" for name, value in chosen.items()))
        child = Child(self.command(trial.number, chosen), self.run_dir(trial.number))
        reported: set[int] = set(trial.storage.get_trial(trial._trial_id).intermediate_values)
        while (status := child.status()) is None:
            if stop.asked:
                child.stop()
                raise stop.reason(trial.number, "trial")
            for epoch, value in child.evaluations(f"valid/{self.metric}").items():
                if epoch not in reported:
                    reported.add(epoch)
                    trial.report(value, epoch)
                    if trial.should_prune():
                        child.stop()
                        logging.info(
                            "trial %d: pruned after epoch %d, %s %.4f", trial.number, epoch, self.metric, value
                        )
                        self.study.tell(trial, state=TrialState.PRUNED)
                        return
            time.sleep(SECONDS_BETWEEN_LOOKS)
        if status != 0:
            self.study.tell(trial, state=TrialState.FAIL)
            if not any(other.state == TrialState.COMPLETE for other in self.study.trials):
                raise InputError(f"trial {trial.number} failed: {child.last_line().removeprefix('error: ')}")
            logging.warning("trial %d failed: %s", trial.number, child.last_line())
            return
        value = json.loads((self.run_dir(trial.number) / RESULTS).read_text())["valid"][self.metric]
        logging.info("trial %d: %s %.4f", trial.number, self.metric, value)
        self.study.tell(trial, value)

    def run(self, trials: int, sampler: str, seed: int, stop: StopRequests) -> None:
        """Runs what is left of the trials, those that were interrupted first."""
        from optuna.trial import Trial, TrialState

        for left in self.study.get_trials(states=[TrialState.RUNNING]):
            self.run_trial(Trial(self.study, left._trial_id), stop)
        if sampler == "grid" and not self.study.trials:
            for point in self.space.grid():
                self.study.enqueue_trial(point)
        while (begun := sum(trial.state != TrialState.WAITING for trial in self.study.trials)) < trials:
            # Seeded by the trial's number, so that an interrupted sweep chooses as an undisturbed one.
            self.study.sampler = _sampler(sampler, seed + begun)
            self.run_trial(self.study.ask(), stop)

    def summary(self) -> list[dict[str, Any]]:
        """All trials, the best first."""
        rows = []
        for trial in self.study.trials:
            results = self.run_dir(trial.number) / RESULTS
            test = json.loads(results.read_text())["test"][self.metric] if results.exists() else None
            rows.append(
                {"trial": trial.number, "state": trial.state.name.lower(), "bindings": self._bindings(trial),
                 f"valid/{self.metric}": trial.value, f"test/{self.metric}": test}
            )  # fmt: skip
        figure = f"valid/{self.metric}"
        return sorted(rows, key=lambda row: float("-inf") if row[figure] is None else row[figure], reverse=True)

    def _bindings(self, trial: Any) -> dict[str, str]:
        return {name: value if isinstance(value, str) else repr(value) for name, value in trial.params.items()}

    def table(self, rows: Sequence[Mapping[str, Any]]) -> Table:
        """The trials for the terminal."""
        table = Table(title="Trials")
        for name in ("trial", *self.space.bindings, f"valid {self.metric}", f"test {self.metric}", "state"):
            table.add_column(name, justify="left" if name == "state" else "right", overflow="fold")
        for row in rows:
            values = [row["bindings"].get(name, "") for name in self.space.bindings]
            figures = [row[f"{part}/{self.metric}"] for part in ("valid", "test")]
            told = ["" if figure is None else f"{figure:.4f}" for figure in figures]
            table.add_row(str(row["trial"]), *values, *told, row["state"])
        return table

    def plot(self) -> None:
        """Writes the parallel-coordinates plot, a page that needs no network."""
        import optuna

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            figure = optuna.visualization.plot_parallel_coordinate(self.study, target_name=f"valid {self.metric}")
        write_text(self.folder / PLOT, figure.to_html(include_plotlyjs=True))


def _sampler(name: str, seed: int) -> Any:
    import optuna

    return optuna.samplers.TPESampler(seed=seed) if name == "tpe" else optuna.samplers.RandomSampler(seed=seed)


def _pruner(name: str | None) -> Any:
    import optuna

    if name is None:
        return optuna.pruners.NopPruner()
    return optuna.pruners.MedianPruner() if name == "median" else optuna.pruners.HyperbandPruner()


@gin.configurable
def sweep(
    base: str = gin.REQUIRED,
    dataset: str = gin.REQUIRED,
    run_dir: str = gin.REQUIRED,
    space: Mapping[str, Any] = gin.REQUIRED,
    bindings: Sequence[str] = (),
    trials: int = 20,
    sampler: str = "tpe",
    pruner: str | None = None,
    metric: str = "ndcg_at_10",
    seed: int = 2020,
    max_hours: float | None = None,
    overwrite: bool = False,
) -> list[dict[str, Any]]:
    """Searches for the bindings of a training run that are best on validation, by Optuna (Akiba et al., KDD 2019).

    Each trial is a run in a process of its own, in `RUN_DIR/trials/<number>`, and a child of the sweep's run in MLflow.
    Interrupted, the same command goes on with the trial that was under way. Ends with a table, `sweep.json`, and
    `parallel_coordinates.html`.

    Args:
        base: Gin file of a trial, with the macros DATASET and RUN_DIR.
        dataset: dataset folder.
        run_dir: of the sweep.
        space: of each binding a list of choices, or a range such as ('log', 1e-4, 1e-2), ('uniform', 0.1, 0.5),
            ('int', 1, 4) or ('log_int', 32, 512).
        bindings: of all trials, such as 'EPOCHS = 10'.
        trials: in all; may be raised later. A grid has no more than its points.
        sampler: `tpe`, `random` or `grid`.
        pruner: `median` or `hyperband` ends trials early that fall behind; None lets all run.
        metric: `<metric>_at_<k>` of validation to raise.
        seed: of the sampler.
        max_hours: after which the sweep ends; None for no limit.
        overwrite: remove the sweep that the folder holds.

    Returns:
        What sweep.json holds: the trials, the best first.

    Raises:
        InputError: a setting is wrong, or the first trial was refused.
        Interrupted: the sweep was asked to stop.
    """
    for name, value, known in (("SAMPLER", sampler, SAMPLERS), ("PRUNER", pruner, (None, *PRUNERS))):
        if value not in known:
            raise InputError(f"{name} = {value!r} is not one of {', '.join(map(str, known))}")
    if trials < 1:
        raise InputError(f"TRIALS = {trials} is below 1")
    searched = Space(space)
    searched.check(sampler)
    if sampler == "grid":
        trials = min(trials, len(searched.grid()))
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    tracker, folder = Tracker(), RunDir(run_dir, (TRIALS, STUDY, SUMMARY, PLOT))
    with folder.held() as path:
        folder.begin(gin.operative_config_str(), overwrite)
        study = optuna.create_study(
            storage=f"sqlite:///{path / STUDY}", study_name="sweep", direction="maximize", load_if_exists=True,
            pruner=_pruner(pruner),
        )  # fmt: skip
        tracker.start(path)
        tracker.log_artifact(path / CONFIG)
        tracker.log_params({"sweep_base": base, "sweep_space": dict(space), "sweep_sampler": sampler})
        parent = tracker.run_id(timeout=60)
        search = _Sweep(base, dataset, path, searched, metric, bindings, tracker, study, parent)
        with tracker.until_closed():
            with StopRequests(max_hours) as stop:
                search.run(trials, sampler, seed, stop)
            rows = search.summary()
            write_text(path / SUMMARY, json.dumps(rows, indent=2) + "\n")
            search.plot()
            tracker.log_artifact(path / SUMMARY)
            tracker.log_artifact(path / PLOT)
    Console().print(search.table(rows))
    best = " ".join(f'--gin_bindings="{name} = {value}"' for name, value in rows[0]["bindings"].items())
    logging.info("the best: --gin_file=%s %s", base, best)
    return rows
