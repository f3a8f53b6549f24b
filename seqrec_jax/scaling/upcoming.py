"""What is expected of runs that are not made yet, and what came of them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from seqrec_jax.scaling.forecast import study_frontier
from seqrec_jax.scaling.frontier import points_of
from seqrec_jax.scaling.joint import JudgedJoint, no_worse, runs_of, study_joint, with_targets
from seqrec_jax.scaling.run_table import Curve

LEAST_SHARE = 0.1
TWO_SIDED = 1.96  # standard deviations that hold 95 % of a normal


class Upcoming(NamedTuple):
    """A run to come."""

    name: str  # name of the run
    compute: float  # in all, in the unit of total_flops
    variables: Mapping[str, float]  # what joint laws know of it, by the names of joint.PARAMS


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
    """Forecasts runs from the curves of smaller ones; InputError where there are too few for a law.

    Returns `runs` that it was made from, the `law` of the frontier, the `joint_law` (None where the law of the frontier
    forecasts held-back runs better), their mean errors on those, and `forecasts`: of each run what the best of its
    compute is expected to reach, with the law's 95 % interval, and, by the joint law, what the run itself is expected
    to end with, with the 95 % interval of a single run. `sign` is 1
    for a metric that rises with compute, -1 for one that falls; `draws` are bootstrap draws of runs.
    """
    with np.errstate(all="ignore"):
        points, finished = points_of(curves, sign, LEAST_SHARE), runs_of(curves)
        study = study_frontier(points, draws, seed, configurations=finished.configurations)
        known, error = set(with_targets(upcoming[0].variables)), study.judged[study.chosen].error
        joint = no_worse(study_joint(finished, draws, seed), error)
        fitting = ((name, of) for name, of in joint.items() if set(of.law.variables) <= known)
        name, judged = next(fitting, (None, None))
        columns = zip(*(column.tolist() for column in study.expect([run.compute for run in upcoming])), strict=True)
        forecasts = [
            {
                "run": run.name, "compute": run.compute, "frontier": {"metric": metric, "low": low, "high": high},
                "joint": None if judged is None else _of_run(judged, run.variables),
            }
            for run, (metric, low, high) in zip(upcoming, columns, strict=True)
        ]  # fmt: skip
    joint_error = None if judged is None else judged.error
    laws = {"law": study.chosen, "law_error": error, "joint_law": name, "joint_law_error": joint_error}
    return {"runs": len(curves), **laws, "forecasts": forecasts}


def with_outcomes(forecast: Mapping[str, Any], curves: Mapping[str, Curve], sign: int) -> dict[str, Any]:
    """What forecast_runs returned, with each run's `best` and `end`, and the forecasts' errors relative to them.

    `curves` are those of the runs by name; one that is missing has no outcome. `sign` is as for forecast_runs.
    """
    rows = []
    for row in forecast["forecasts"]:
        curve = curves.get(row["run"])
        outcome: dict[str, Any] = {"best": None, "end": None}
        if curve is not None:
            outcome = {"best": float(sign * (sign * curve.values).max()), "end": float(curve.values[-1])}
            outcome["frontier_error"] = row["frontier"]["metric"] / outcome["best"] - 1
            if row["joint"] is not None:
                outcome["joint_error"] = row["joint"]["metric"] / outcome["end"] - 1
        rows.append({**row, **outcome})
    return {**forecast, "forecasts": rows}
