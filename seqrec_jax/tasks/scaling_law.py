"""Task: from the runs of an MLflow database to a law of scaling, its forecasts for budgets, and what to train."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import gin
import numpy as np
from absl import logging
from rich.console import Console
from rich.table import Table

from seqrec_jax.errors import InputError
from seqrec_jax.evaluation.metrics import METRICS
from seqrec_jax.files import write_text
from seqrec_jax.scaling.forecast import WITHIN, Study, study_frontier
from seqrec_jax.scaling.frontier import METHODS, points_of
from seqrec_jax.scaling.joint import Effect, JudgedJoint, effects, runs_of, study_joint
from seqrec_jax.scaling.planner import Planner, Prices, planner_of
from seqrec_jax.scaling.report import write_page, write_plot
from seqrec_jax.scaling.run_table import RunTable, read_runs
from seqrec_jax.training.run_dir import CONFIG, RunDir
from seqrec_jax.training.tracking import Tracker

SUMMARY = "scaling_law.json"
PAGE = "scaling_law.html"
PLOT = "scaling_law.png"
UNITS = ("compute", "gpu_hours", "price")


def _finite(value: Any) -> Any:
    """The same with None for numbers that JSON does not know."""
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value


def _laws(study: Study) -> dict[str, Any]:
    """Each form's parameters with their intervals, and its forecasts."""
    told, centre = {}, study.points.centre
    for name, judged in study.judged.items():
        law = judged.fitted.law
        values = law.named(judged.fitted.theta, centre)
        drawn = [law.named(theta, centre) for theta in judged.draws]
        parameters = {}
        for parameter, value in values.items():
            low, high = study.interval(name, value, [draw[parameter] for draw in drawn])
            parameters[parameter] = {"value": value, "low": float(low), "high": float(high)}
        told[name] = {
            "formula": law.formula,
            "parameters": parameters,
            "noise": judged.fitted.noise,
            "forecast_error": judged.error,
            "forecasts": [forecast._asdict() for forecast in judged.forecasts],
            "told_apart_from_best": judged.told_apart,
        }
    return told


def _joint(joint: Mapping[str, JudgedJoint]) -> dict[str, Any]:
    told = {}
    for name, judged in joint.items():
        drawn = [draw.named() for draw in judged.draws]
        parameters = {}
        for parameter, value in judged.law.named().items():
            low, high = np.percentile([draw[parameter] for draw in drawn], WITHIN)
            parameters[parameter] = {"value": value, "low": float(low), "high": float(high)}
        told[name] = {
            "parameters": parameters,
            "noise": judged.noise,
            "forecast_error": judged.error,
            "forecasts": [{"below": below, "runs": runs, "error": error} for below, runs, error in judged.forecasts],
        }
    return told


def _predictions(study: Study, budgets: Sequence[float]) -> list[dict[str, float]]:
    if not budgets:
        return []
    columns = zip(budgets, *(column.tolist() for column in study.expect(budgets)), strict=True)
    return [{"budget": budget, "metric": metric, "low": low, "high": high} for budget, metric, low, high in columns]


def _plans(planner: Planner | None, budgets: Sequence[float], prices: Prices) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if planner is None:
        return found
    for budget in budgets:
        plan = planner.plan(budget)
        if plan is None:
            logging.warning("BUDGETS: %g is too little for the smallest model on the least data", budget)
        else:
            found.append({"budget": budget, **prices.told(budget), **plan})
    return found


def _warn_of_the_impossible(results: Mapping[str, Any]) -> None:
    """Says where a law is taken beyond where it can hold: shares of users or of gain are 1 at most."""
    if not any(f"{name}_at_" in results["metric"] for name in METRICS):
        return
    for what, of in (("law over compute", "predictions"), ("joint law", "plans")):
        beyond = [row["budget"] for row in results[of] if row["metric"] > 1]
        if beyond:
            logging.warning(
                "the %s expects a %s above 1 for %s, so it does not hold there", what, results["metric"],
                ", ".join(f"{budget:.3g}" for budget in beyond),
            )  # fmt: skip


def _tables(results: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """For the page."""
    laws = [
        {
            "form": f"{name} (chosen)" if name == results["chosen"] else name,
            "formula": law["formula"],
            "parameters, with 95 % intervals": ", ".join(
                f"{parameter} {of['value']:.4g} [{of['low']:.4g}, {of['high']:.4g}]"
                for parameter, of in law["parameters"].items()
            ),
            "forecast error, %": 100 * law["forecast_error"],
            "told apart from the best": law["told_apart_from_best"],
        }
        for name, law in results["laws"].items()
    ]
    joint = [
        {
            "law": name,
            "parameters": ", ".join(f"{parameter} {of['value']:.4g}" for parameter, of in law["parameters"].items()),
            "residual, %": 100 * law["noise"],
            "forecast error, %": None if law["forecast_error"] is None else 100 * law["forecast_error"],
        }
        for name, law in results["joint_laws"].items()
    ]
    effect = [{"doubling": name, "multiplies the metric by": of["ratio"], "low": of["low"], "high": of["high"],
               "pairs of runs": of["pairs"]} for name, of in results["effects"].items()]  # fmt: skip
    plans = [
        {name: value for name, value in plan.items() if name != "doubling"}
        | {f"doubling {name}": f"{of['metric']:.3f} for {of['cost']:.2g} x" for name, of in plan["doubling"].items()}
        for plan in results["plans"]
    ]
    return {
        "Laws over compute": laws, "Predictions": results["predictions"], "What doubling does, all else equal": effect,
        "Joint laws": joint, "What to train": plans,
        "Runs left out": [{"reason": reason, "runs": len(names), "such as": names[0]}
                          for reason, names in results["runs"]["skipped"].items()],
    }  # fmt: skip


def _print(results: Mapping[str, Any]) -> None:
    console = Console(width=120)
    table = Table(title=f"Laws of {results['metric']} over compute, by the {results['frontier']['method']} frontier")
    for column in ("form", "parameters", "forecast error", "told apart"):
        table.add_column(column, justify="left" if column in ("form", "parameters") else "right")
    for name, law in results["laws"].items():
        parameters = ", ".join(f"{parameter} {of['value']:.3g}" for parameter, of in law["parameters"].items())
        mark = "chosen" if name == results["chosen"] else "yes" if law["told_apart_from_best"] else "no"
        table.add_row(name, parameters, f"{100 * law['forecast_error']:.1f} %", mark)
    console.print(table)
    if results["effects"]:
        table = Table(title="What doubling does, all else equal")
        for column in ("", "metric times", "95 % interval", "pairs of runs"):
            table.add_column(column, justify="left" if not column else "right")
        for name, of in results["effects"].items():
            table.add_row(name, f"{of['ratio']:.3f}", f"{of['low']:.3f} to {of['high']:.3f}", str(of["pairs"]))
        console.print(table)
    if results["predictions"]:
        table = Table(title="For a budget")
        for column in ("compute", "expected", "95 % interval", "width", "depth", "data", "epochs", "by the joint law"):
            table.add_column(column, justify="right")
        plans = {plan["budget"]: plan for plan in results["plans"]}
        for of in results["predictions"]:
            plan = plans.get(of["budget"])
            shape = ("",) * 5 if plan is None else (
                f"{plan['width']:.0f}", f"{plan['depth']:.0f}", f"{plan['data']:.3g}", f"{plan['epochs']:g}",
                f"{plan['metric']:.4f}",
            )  # fmt: skip
            interval_told = f"{of['low']:.4f} to {of['high']:.4f}"
            table.add_row(f"{of['budget']:.3g}", f"{of['metric']:.4f}", interval_told, *shape)
        console.print(table)


def _check(metric: str, budgets: Sequence[float], unit: str, prices: Prices, draws: int, frontier: str | None) -> None:
    if unit not in UNITS:
        raise InputError(f"UNIT = {unit!r} is not one of {', '.join(UNITS)}")
    if unit != "compute" and prices.flops_per_second is None:
        raise InputError(f"UNIT = {unit!r} needs what a GPU sustains; bind FLOPS_PER_SECOND, such as 1e14")
    if unit == "price" and prices.price_per_hour is None:
        raise InputError("UNIT = 'price' needs what a GPU costs; bind PRICE_PER_HOUR")
    for budget in budgets:
        if not isinstance(budget, int | float) or not budget > 0 or not np.isfinite(budget):
            raise InputError(f"BUDGETS holds {budget!r}, which is no number above 0")
    if draws < 20:
        raise InputError(f"DRAWS = {draws} is below 20, too few for an interval")
    if frontier not in (None, *METHODS):
        raise InputError(f"FRONTIER = {frontier!r} is not one of None, {', '.join(map(repr, METHODS))}")
    if not metric:
        raise InputError("METRIC = '' names no metric, such as 'valid/ndcg_at_5'")


def _report_of_runs(table: RunTable) -> dict[str, Any]:
    for reason, names in table.skipped.items():
        logging.warning("%d runs are left out, such as %s: it %s", len(names), names[0], reason)
    for reason, n in table.dropped.items():
        logging.warning("%d evaluations are left out: %s", n, reason)
    return {
        "used": len(table.curves), "skipped": {reason: list(names) for reason, names in table.skipped.items()},
        "evaluations_left_out": dict(table.dropped),
    }  # fmt: skip


def _told_effects(found: Mapping[str, Effect]) -> dict[str, Any]:
    return {name: effect._asdict() for name, effect in found.items()}


@gin.configurable
def scaling_law(
    runs: str = gin.REQUIRED,
    run_dir: str = gin.REQUIRED,
    metric: str = "valid/ndcg_at_5",
    experiment: str | None = None,
    budgets: Sequence[float] = (),
    unit: str = "compute",
    flops_per_second: float | None = None,
    price_per_hour: float | None = None,
    epochs: float | None = None,
    cuts: Sequence[float] = (),
    frontier: str | None = None,
    least_share: float = 0.1,
    draws: int = 200,
    seed: int = 2020,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Fits laws of scaling to runs, chooses among them by their forecasts of larger runs, and plans for budgets.

    A law is of the best metric at each compute. The forms are `power`, `log_linear`, `power_with_offset` (Kaplan et
    al., 2020; Hoffmann et al., 2022) and `sigmoid` (Zivic et al., SIGIR 2024); beside them joint laws in width, depth,
    data and what else the runs vary. Writes `scaling_law.json`, a page `scaling_law.html`, and `scaling_law.png`.

    Args:
        runs: an MLflow database's file, never written to, or a store's URI.
        run_dir: folder of the analysis.
        metric: of validation; one with `loss` in its name falls with compute, others rise.
        experiment: of MLflow, whose runs alone are read; None reads all.
        budgets: to forecast and to plan for.
        unit: of the budgets: `compute` (as total_flops has it: multiply-adds of linear layers, forward, in all of
            training), `gpu_hours`, or `price`.
        flops_per_second: that a GPU sustains in training (its peak times the model FLOPs utilisation).
        price_per_hour: of a GPU.
        epochs: to plan for; None for the runs' median.
        cuts: computes; a forecast is fitted to the runs that end below each. None for shares of the runs' range.
        frontier: `envelope` fits the points that are better than all of less compute; `stochastic` tells noise from
            inefficiency; `regression` takes all that is near the envelope for the law with noise; None chooses by what
            the data can tell.
        least_share: of the best value; computes at which no run has reached it are left out.
        draws: bootstrap draws of runs.
        seed: of the draws.
        overwrite: remove what the folder holds.

    Returns:
        What scaling_law.json holds.

    Raises:
        InputError: the database cannot be read, or holds too few runs for a law.
    """
    prices = Prices(flops_per_second, price_per_hour)
    _check(metric, budgets, unit, prices, draws, frontier)
    computes = [budget if unit == "compute" else prices.compute(budget, unit) for budget in budgets]
    tracker, folder = Tracker(), RunDir(run_dir, (SUMMARY, PAGE, PLOT))
    table = read_runs(runs, metric, experiment)
    used = _report_of_runs(table)
    sign = -1 if "loss" in metric else 1
    with folder.held() as path, np.errstate(all="ignore"):
        study = study_frontier(points_of(table.curves, sign, least_share), draws, seed, cuts, frontier)
        finished = runs_of(table.curves)
        joint = study_joint(finished, draws, seed, cuts)
        plans = _plans(planner_of(table.curves, finished, joint, sign, epochs), computes, prices)
        near = study.frontier.points
        results = _finite({
            "metric": metric, "runs": used, "chosen": study.chosen, "laws": _laws(study),
            "predictions": _predictions(study, computes), "plans": plans,
            "effects": _told_effects(effects(finished, draws, seed)), "joint_laws": _joint(joint),
            "frontier": {"method": study.frontier.method, "points": [
                {"compute": float(np.exp(z + near.centre)), "value": float(value)}
                for z, value in zip(near.z, near.values, strict=True)
            ]},
        })  # fmt: skip
        folder.begin(gin.operative_config_str(), overwrite)
        write_text(path / CONFIG, gin.operative_config_str())
        write_text(path / SUMMARY, json.dumps(results, indent=2, allow_nan=False) + "\n")
        write_page(path / PAGE, study, metric, computes, _tables(results))
        write_plot(path / PLOT, study, metric, computes)
        tracker.start(path)
        with tracker.until_closed():
            tracker.log_params({"runs": runs, "metric": metric, "law": study.chosen})
            for name in (CONFIG, SUMMARY, PAGE, PLOT):
                tracker.log_artifact(path / name)
    _print(results)
    _warn_of_the_impossible(results)
    return results
