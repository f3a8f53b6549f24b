"""What is expected of runs that are not made yet, and what came of them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from seqrec_jax.scaling.forecast import study_frontier
from seqrec_jax.scaling.frontier import points_of
from seqrec_jax.scaling.joint import JudgedJoint, Runs, runs_of, study_joint
from seqrec_jax.scaling.run_table import Curve

LEAST_SHARE = 0.1
TWO_SIDED = 1.96
"""Standard deviations that hold 95 % of a normal."""


class Upcoming(NamedTuple):
    """A run to come.

    Attributes:
        name: of the run.
        compute: in all, in the unit of total_flops.
        variables: of what joint laws know; see joint.PARAMS.
    """

    name: str
    compute: float
    variables: Mapping[str, float]


def _of_run(judged: JudgedJoint, variables: Mapping[str, float]) -> dict[str, float]:
    """The metric at the end of a run, and the interval in which that of a single run lies."""
    value = float(judged.law.evaluate(variables))
    low, high = (float(end) for end in judged.interval(variables))
    noise = TWO_SIDED * judged.noise
    below, above = np.hypot(np.log(value / low), noise), np.hypot(np.log(high / value), noise)
    return {"metric": value, "low": float(value * np.exp(-below)), "high": float(value * np.exp(above))}


def forecast_runs(
    curves: Sequence[Curve], upcoming: Sequence[Upcoming], sign: int, draws: int, seed: int
) -> dict[str, Any]:
    """Forecasts runs from smaller ones.

    Args:
        curves: of the runs that are finished.
        upcoming: those that are not.
        sign: 1 for a metric that rises with compute, -1 for one that falls.
        draws: bootstrap draws of runs.
        seed: of the draws.

    Returns:
        `runs` that it was made from, the `law` of the frontier, the `joint_law` (None where none can be fitted), and
        `forecasts`: of each run what the best of its compute is expected to reach, with the law's 95 % interval, and,
        by the joint law, what the run itself is expected to end with, with the 95 % interval of a single run.

    Raises:
        InputError: there are too few runs for a law.
    """
    with np.errstate(all="ignore"):
        study = study_frontier(points_of(curves, sign, LEAST_SHARE), draws, seed)
        finished = runs_of(curves)
        joint = study_joint(finished, draws, seed)
        name, judged = _best_of(joint, finished, upcoming)
        columns = zip(*(column.tolist() for column in study.expect([run.compute for run in upcoming])), strict=True)
        forecasts = [
            {
                "run": run.name,
                "compute": run.compute,
                "frontier": {"metric": metric, "low": low, "high": high},
                "joint": None if judged is None else _of_run(judged, run.variables),
            }
            for run, (metric, low, high) in zip(upcoming, columns, strict=True)
        ]
    return {"runs": len(curves), "law": study.chosen, "joint_law": name, "forecasts": forecasts}


def _best_of(
    joint: Mapping[str, JudgedJoint], finished: Runs, upcoming: Sequence[Upcoming]
) -> tuple[str | None, JudgedJoint | None]:
    """The joint law that forecasts best of those that know all that the upcoming runs differ in."""
    known = set(upcoming[0].variables) & set(finished.variables)
    for name, judged in joint.items():
        if set(judged.law.variables) <= known and np.isfinite(judged.error):
            return name, judged
    return None, None


def with_outcomes(forecast: Mapping[str, Any], curves: Mapping[str, Curve], sign: int) -> dict[str, Any]:
    """A forecast with what came.

    Args:
        forecast: see forecast_runs.
        curves: of the runs, by name; one that is missing has no outcome.
        sign: see forecast_runs.

    Returns:
        The same; each of its forecasts with `best` and `end`, the metric of the run, and the errors of both forecasts
        relative to them.
    """
    rows = []
    for row in forecast["forecasts"]:
        curve = curves.get(row["run"])
        told: dict[str, Any] = {"best": None, "end": None}
        if curve is not None:
            told = {"best": float(sign * (sign * curve.values).max()), "end": float(curve.values[-1])}
            told["frontier_error"] = row["frontier"]["metric"] / told["best"] - 1
            if row["joint"] is not None:
                told["joint_error"] = row["joint"]["metric"] / told["end"] - 1
        rows.append({**row, **told})
    return {**forecast, "forecasts": rows}
