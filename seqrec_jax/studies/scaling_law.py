"""From the runs of an MLflow database to a law of scaling, its forecasts for budgets, and what to train."""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from seqrec_jax.errors import InputError
from seqrec_jax.evaluation.metrics import METRICS
from seqrec_jax.files import write_text
from seqrec_jax.runs.folder import CONFIG_TEXT
from seqrec_jax.runs.run import Run
from seqrec_jax.runs.settings import RunSettings
from seqrec_jax.scaling.forecast import WITHIN, Judged, Study, study_frontier
from seqrec_jax.scaling.frontier import METHODS, points_of
from seqrec_jax.scaling.joint import JudgedJoint, effects, no_worse, runs_of, study_joint
from seqrec_jax.scaling.planner import Planner, Prices, flops_per_unit, planner_of
from seqrec_jax.scaling.report import write_page, write_plot
from seqrec_jax.scaling.run_table import Curve, read_runs

SUMMARY, PAGE, PLOT = "scaling_law.json", "scaling_law.html", "scaling_law.png"
UNITS = ("compute", "gpu_hours", "price")  # `compute` as total_flops: multiply-adds of linear layers, forward


@dataclasses.dataclass(frozen=True)
class LawSettings:
    """What is fitted, and what it is asked for."""

    metric: str = "valid/ndcg_at_5"  # metric of validation; one with `loss` in its name falls with compute, others rise
    experiment: str | None = None  # experiment of MLflow whose runs are read; None reads all
    budgets: Sequence[float] = ()  # budgets to forecast and to plan for
    unit: str = "compute"  # unit of the budgets, one of UNITS
    flops_per_second: float | None = None  # what a GPU sustains in training (its peak times the MFU)
    price_per_hour: float | None = None  # price of a GPU
    epochs: float | None = None  # epochs to plan for; None for the runs' median
    cuts: Sequence[float] = ()  # computes that the runs of a forecast end below; empty for shares of the runs' range
    frontier: str | None = None  # how it is fitted, by METHODS; None chooses by what the data can tell
    least_share: float = 0.1  # share of the best value; computes at which no run has reached it are left out
    draws: int = 200  # bootstrap draws of runs
    seed: int = 2020  # seed of the draws

    def __post_init__(self):
        if self.unit not in UNITS:
            raise InputError(f"LawSettings.unit = {self.unit!r} is not one of {', '.join(UNITS)}")
        if self.unit != "compute" and self.flops_per_second is None:
            place = f"LawSettings.unit = {self.unit!r}"
            raise InputError(f"{place} needs what a GPU sustains; bind FLOPS_PER_SECOND, such as 1e14")
        if self.unit == "price" and self.price_per_hour is None:
            raise InputError("LawSettings.unit = 'price' needs what a GPU costs; bind PRICE_PER_HOUR")
        for budget in self.budgets:
            if not isinstance(budget, int | float) or not budget > 0 or not np.isfinite(budget):
                raise InputError(f"LawSettings.budgets holds {budget!r}, which is no number above 0")
        if self.draws < 20:
            raise InputError(f"LawSettings.draws = {self.draws} is below 20, too few for an interval")
        if self.frontier not in (None, *METHODS):
            known = ", ".join(map(repr, METHODS))
            raise InputError(f"LawSettings.frontier = {self.frontier!r} is not one of None, {known}")
        if not self.metric:
            raise InputError("LawSettings.metric = '' names no metric, such as 'valid/ndcg_at_5'")

    @property
    def sign(self) -> int:
        """1 for a metric that rises with compute, -1 for one that falls."""
        return -1 if "loss" in self.metric else 1

    def prices(self, curves: Sequence[Curve]) -> Prices:
        """What computing costs, by what runs logged."""
        return Prices(self.flops_per_second, self.price_per_hour, flops_per_unit(curves))

    def computes(self, prices: Prices) -> list[float]:
        """The budgets, in the unit of total_flops."""
        return [b if self.unit == "compute" else prices.compute(b, self.unit) for b in self.budgets]


def _finite(value: Any) -> Any:
    """The same with None for numbers that JSON does not know."""
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value


def _law_report(
    judged: Judged | JudgedJoint, noise: float, named: Sequence[Mapping[str, float]], interval: Callable[..., Any]
) -> dict[str, Any]:
    """A law's parameters, with their intervals, and forecasts; `named` are its parameters, and those of its draws."""
    (values, *drawn), parameters = named, {}
    for name, value in values.items():
        low, high = interval(value, [draw[name] for draw in drawn])
        parameters[name] = {"value": value, "low": float(low), "high": float(high)}
    forecasts = [forecast._asdict() for forecast in judged.forecasts]
    return {"parameters": parameters, "noise": noise, "forecast_error": judged.error, "forecasts": forecasts}


def _laws(study: Study) -> dict[str, Any]:
    found = {}
    for name, judged in study.judged.items():
        law, fitted = judged.fitted.law, judged.fitted
        named = [law.named(theta, study.points.centre) for theta in (fitted.theta, *judged.draws)]
        report = _law_report(judged, fitted.noise, named, functools.partial(study.interval, name))
        found[name] = {"formula": law.formula, **report, "told_apart_from_best": judged.told_apart}
    return found


def _joint_law(judged: JudgedJoint) -> dict[str, Any]:
    named = [law.named() for law in (judged.law, *judged.draws)]
    return _law_report(judged, judged.noise, named, lambda _, drawn: np.percentile(drawn, WITHIN))


def _predictions(study: Study, budgets: Sequence[float]) -> list[dict[str, float]]:
    rows = zip(budgets, *(column.tolist() for column in study.expect(budgets)), strict=True) if budgets else ()
    return [dict(zip(("budget", "metric", "low", "high"), row, strict=True)) for row in rows]


def _plans(planner: Planner, budgets: Sequence[float], prices: Prices) -> Iterator[dict[str, Any]]:
    for budget in budgets:
        if (plan := planner.plan(budget)) is None:
            logging.warning("BUDGETS: %g is too little for the smallest model on the least data", budget)
        else:
            yield {"budget": budget, **prices.in_units(budget), **plan}


def _warn_of_the_impossible(results: Mapping[str, Any]) -> None:
    """Warns where a law is taken beyond where it can hold: shares of users or of gain are 1 at most."""
    metric = results["metric"]
    for what, of in (("law over compute", "predictions"), ("joint law", "plans")):
        beyond = ", ".join(f"{row['budget']:.3g}" for row in results[of] if row["metric"] > 1)
        if beyond and any(f"{name}_at_" in metric for name in METRICS):
            logging.warning("the %s expects a %s above 1 for %s, so it does not hold there", what, metric, beyond)


def _list(parameters: Mapping[str, Mapping[str, float]], intervals: bool = False) -> str:
    within = " [{low:.4g}, {high:.4g}]" if intervals else ""
    return ", ".join(f"{name} {of['value']:.4g}" + within.format(**of) for name, of in parameters.items())


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def law_tables(results: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """What scaling_law.json holds, as rows of tables by their headings."""
    skipped = results["runs"]["skipped"]
    return {
        "Laws over compute": [
            {"form": f"{name} (chosen)" if name == results["chosen"] else name, "formula": law["formula"],
             "parameters, with 95 % intervals": _list(law["parameters"], intervals=True),
             "forecast error, %": _percent(law["forecast_error"]),
             "told apart from the best": law["told_apart_from_best"]}
            for name, law in results["laws"].items()
        ],
        "Predictions": results["predictions"],
        "What doubling does, all else equal": [
            {"doubling": name, "multiplies the metric by": of["ratio"], "low": of["low"], "high": of["high"],
             "pairs of configurations": of["pairs"]}
            for name, of in results["effects"].items()
        ],
        "Joint laws": [
            {"law": name, "parameters": _list(law["parameters"]), "residual, %": _percent(law["noise"]),
             "forecast error, %": _percent(law["forecast_error"])}
            for name, law in results["joint_laws"].items()
        ],
        "What to train": [
            {name: value for name, value in plan.items() if name not in ("doubling", "forecast_error")}
            | {"forecast error, %": _percent(plan["forecast_error"])}
            | {f"doubling {of}": f"{got['metric']:.3f} for {got['cost']:.2g} x" for of, got in plan["doubling"].items()}
            for plan in results["plans"]
        ],
        "Runs left out": [{"reason": of, "runs": len(names), "such as": names[0]} for of, names in skipped.items()],
    }  # fmt: skip


def scaling_law(
    runs: str, run_dir: str | Path, law: LawSettings | None = None, settings: RunSettings | None = None
) -> dict[str, Any]:
    """Fits laws of scaling to runs, chooses among them by their forecasts of larger runs, and plans for budgets.

    A law is of the best metric at each compute. The forms are `power`, `log_linear`, `power_with_offset` (Kaplan et
    al., 2020; Hoffmann et al., 2022) and `sigmoid` (Zivic et al., SIGIR 2024); beside them joint laws in width, depth,
    data and what else the runs vary. Writes `scaling_law.json`, which holds what is returned, a page
    `scaling_law.html`, and `scaling_law.png`. InputError where the runs cannot be read, or are too few for a law.

    `runs` is the file of an MLflow database, never written to, a store's URI, or a folder of folders of runs.
    """
    law, settings = law or LawSettings(), settings or RunSettings()
    table = read_runs(runs, law.metric, law.experiment)
    prices = law.prices(table.curves)
    computes = law.computes(prices)
    for reason, names in table.skipped.items():
        logging.warning("%d runs are left out, such as %s: it %s", len(names), names[0], reason)
    for reason, n in table.dropped.items():
        logging.warning("%d evaluations are left out: %s", n, reason)
    used = {"used": len(table.curves), "skipped": table.skipped, "evaluations_left_out": table.dropped}
    with Run(run_dir, settings, (SUMMARY, PAGE, PLOT)) as run, np.errstate(all="ignore"):
        points, finished = points_of(table.curves, law.sign, law.least_share), runs_of(table.curves)
        study = study_frontier(points, law.draws, law.seed, law.cuts, law.frontier, finished.configurations)
        joint = study_joint(finished, law.draws, law.seed, law.cuts)
        error, near = study.judged[study.chosen].error, study.frontier.points
        planner = planner_of(table.curves, finished, no_worse(joint, error), law.sign, law.epochs)
        if planner is None and joint and computes:
            logging.warning("no plan: no joint law in width and data forecasts larger runs as well as the law over "
                            "compute, which misses by %.2g %%", 100 * error)  # fmt: skip
        pairs = zip(near.compute.tolist(), near.values.tolist(), strict=True)
        frontier = [{"compute": compute, "value": value} for compute, value in pairs]
        results = _finite({
            "metric": law.metric, "runs": used, "chosen": study.chosen, "laws": _laws(study),
            "predictions": _predictions(study, computes),
            "plans": [] if planner is None else list(_plans(planner, computes, prices)),
            "effects": {name: of._asdict() for name, of in effects(finished, law.draws, law.seed).items()},
            "joint_laws": {name: _joint_law(judged) for name, judged in joint.items()},
            "frontier": {"method": study.frontier.method, "points": frontier},
        })  # fmt: skip
        run.begin({"LawSettings": {}})  # an analysis replaces the one before
        if settings.config_text is not None:
            write_text(run.path / CONFIG_TEXT, settings.config_text)
        write_text(run.path / SUMMARY, json.dumps(results, indent=2, allow_nan=False) + "\n")
        write_page(run.path / PAGE, study, law.metric, computes, law_tables(results))
        write_plot(run.path / PLOT, study, law.metric, computes)
        artifacts = [run.path / name for name in (SUMMARY, PAGE, PLOT)]
        run.track({"runs": runs, "metric": law.metric, "law": study.chosen}, artifacts)
    _warn_of_the_impossible(results)
    return results
