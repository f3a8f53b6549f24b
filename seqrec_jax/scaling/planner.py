"""What to train for a budget: the width, depth and data that a joint law expects most of."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import nnls

from seqrec_jax.scaling.forecast import WITHIN
from seqrec_jax.scaling.joint import JointLaw, JudgedJoint, Runs
from seqrec_jax.scaling.run_table import OURS, Curve

TRUE_PER_UNIT = 6.0  # floating-point operations of training for a multiply-add of total_flops: two, thrice
BEYOND = 4.0  # how far beyond the widest, deepest and largest run a plan may go, as a factor
WIDTHS, SECONDS_PER_HOUR = 33, 3600.0


class Cost(NamedTuple):
    """Multiply-adds of a forward pass for one target, of linear layers."""

    coefficients: np.ndarray  # [5] float64, of 1, width, width^2, depth * width^2 and negatives * width^2
    negatives: float  # negatives of a target; 0 where runs do not say
    error: float  # greatest relative error on the runs

    def per_target(self, width: np.ndarray, depth: np.ndarray) -> np.ndarray:
        """For widths and depths of shapes that broadcast."""
        terms = _terms(width, depth, np.array(self.negatives))
        return sum(c * term for c, term in zip(self.coefficients, terms, strict=True))


def _terms(width: np.ndarray, depth: np.ndarray, negatives: np.ndarray) -> list[np.ndarray]:
    flat = 0 * width * depth
    return [flat + 1, width + flat, width**2 + flat, depth * width**2, negatives * width**2 + flat]


def cost_of(curves: Sequence[Curve]) -> Cost:
    """The cost of a target, as the runs logged it."""
    names = ("hidden_size", "n_layers", "total_flops", "train_batch_size")
    width, depth, flops, batch = (np.array([curve.params[name] for curve in curves]) for name in names)
    negatives = np.array([curve.params.get("nce_num_negatives", 0.0) for curve in curves])
    per_target, terms = flops / batch, np.stack(_terms(width, depth, negatives), -1)
    coefficients, _ = nnls(terms / per_target[:, None], np.ones(len(curves)))
    error = float(np.abs(terms @ coefficients / per_target - 1).max())
    return Cost(coefficients, float(np.median(negatives)), error)


def flops_per_unit(curves: Sequence[Curve]) -> float:
    """Operations of training for a unit of total_flops: the median of what runs logged of their steps, if they did."""
    logged = [curve.params[OURS] / curve.params["total_flops"] for curve in curves if curve.params.get(OURS, 0) > 0]
    return float(np.median(logged)) if logged else TRUE_PER_UNIT


@dataclasses.dataclass(frozen=True)
class Prices:
    """What computing costs."""

    flops_per_second: float | None = None  # what a GPU sustains in training (peak times MFU); None for unknown
    price_per_hour: float | None = None  # price of a GPU; None for unknown
    flops_per_unit: float = TRUE_PER_UNIT  # floating-point operations of training for a unit of total_flops

    def in_units(self, compute: float) -> dict[str, float]:
        """A budget in the unit of total_flops, in other units."""
        amounts = {"training_flops": compute * self.flops_per_unit}
        if self.flops_per_second is not None:
            amounts["gpu_hours"] = amounts["training_flops"] / self.flops_per_second / SECONDS_PER_HOUR
            if self.price_per_hour is not None:
                amounts["price"] = amounts["gpu_hours"] * self.price_per_hour
        return amounts

    def compute(self, amount: float, unit: str) -> float:
        """A budget in `gpu_hours` or `price`, in the unit of total_flops."""
        hours = amount if unit == "gpu_hours" else amount / (self.price_per_hour or np.nan)
        return hours * SECONDS_PER_HOUR * (self.flops_per_second or np.nan) / self.flops_per_unit


@dataclasses.dataclass(frozen=True)
class Planner:
    """Finds what to train."""

    judged: JudgedJoint  # joint law in width, depth and data, and what else it has
    cost: Cost  # cost of a target
    runs: Runs  # runs that the law was fitted to
    sign: int  # 1 for a metric that rises with compute, -1 for one that falls
    epochs: float  # epochs to train for

    def _fixed(self) -> dict[str, float]:
        """Variables that a plan does not choose, at what the runs have most of."""
        fixed = {name: float(np.median(self.runs.variables[name])) for name in self.judged.law.variables}
        return fixed | {"epochs": self.epochs}

    def _affordable(self, compute: float) -> dict[str, np.ndarray]:
        """Every width and depth with the data that the budget pays for: [widths, depths] each."""
        ranges = {name: self.runs.variables[name] for name in ("width", "depth", "data")}
        width = np.geomspace(ranges["width"].min() / BEYOND, ranges["width"].max() * BEYOND, WIDTHS)[:, None]
        width = np.unique(np.maximum(8, 8 * np.round(width / 8)))[:, None]
        depth = np.arange(1.0, ranges["depth"].max() * BEYOND + 1)[None]
        data = compute / self.epochs / self.cost.per_target(width, depth)
        data = np.where(data < ranges["data"].min() / BEYOND, np.nan, np.minimum(data, ranges["data"].max() * BEYOND))
        return {"width": width + 0 * data, "depth": depth + 0 * data, "data": data}

    def plan(self, compute: float) -> dict[str, Any] | None:
        """The best that a budget, in the unit of total_flops, pays for; None where nothing can be had for it.

        That is width, depth, data, epochs, compute spent, the metric and its 95 % interval, the law's mean error in
        forecasts of held-back runs, in ln of the metric, the parts that lie beyond all runs, and `doubling`: of each
        part the ratio that doubling it brings of the metric and of the cost.
        """
        choices = self._affordable(compute)
        if np.isnan(choices["data"]).all():
            return None
        expected = self.sign * self.judged.law.evaluate({**self._fixed(), **choices})
        at = np.unravel_index(np.nanargmax(np.where(np.isnan(choices["data"]), np.nan, expected)), expected.shape)
        chosen = {name: float(column[at]) for name, column in choices.items()}
        low, high = self.judged.interval(self._fixed() | chosen)
        of_runs = self.runs.variables
        beyond = [of for of, value in chosen.items() if not of_runs[of].min() <= value <= of_runs[of].max()]
        metric = {"metric": self._value(self.judged.law, chosen), "low": float(low), "high": float(high)}
        metric["forecast_error"] = self.judged.error
        spent = {"epochs": self.epochs, "compute": self._cost(chosen)}
        doubling = {name: self._doubled(name, chosen) for name in chosen}
        return {**chosen, **spent, **metric, "beyond_runs": beyond, "doubling": doubling}

    def _value(self, law: JointLaw, chosen: Mapping[str, float]) -> float:
        return float(law.evaluate(self._fixed() | dict(chosen)))

    def _cost(self, chosen: Mapping[str, float]) -> float:
        per_target = self.cost.per_target(np.array(chosen["width"]), np.array(chosen["depth"]))
        return float(per_target) * chosen["data"] * self.epochs

    def _doubled(self, name: str, chosen: Mapping[str, float]) -> dict[str, float]:
        doubled = {**chosen, name: 2 * chosen[name]}
        ratios = [self._value(law, doubled) / self._value(law, chosen) for law in (self.judged.law, *self.judged.draws)]
        low, high = np.percentile(ratios, WITHIN)
        cost = self._cost(doubled) / self._cost(chosen)
        return {"metric": ratios[0], "low": float(low), "high": float(high), "cost": cost}


def planner_of(
    curves: Sequence[Curve], runs: Runs, joint: Mapping[str, JudgedJoint], sign: int, epochs: float | None
) -> Planner | None:
    """A planner by the joint law in width, depth and data that comes first; None where there is no such law."""
    epochs = float(np.median(runs.variables["epochs"])) if epochs is None else epochs
    for judged in joint.values():
        if "width" in judged.law.variables and {"data", "targets"} & set(judged.law.variables):
            return Planner(judged, cost_of(curves), runs, sign, epochs)
    return None
