"""What to train for a budget: the width, depth and data that a joint law expects most of."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import nnls

from seqrec_jax.scaling.forecast import WITHIN
from seqrec_jax.scaling.joint import JointLaw, JudgedJoint, Runs
from seqrec_jax.scaling.run_table import Curve

TRUE_PER_UNIT = 6.0
"""Floating-point operations of training for each multiply-add of a forward pass: two each, forward and twice back."""
BEYOND = 4.0
"""How far beyond the widest, deepest and largest run a plan may go, as a factor."""
WIDTHS = 33
DATA_POINTS = 65
SECONDS_PER_HOUR = 3600.0


class Cost(NamedTuple):
    """Multiply-adds of a forward pass for one target, of linear layers.

    Attributes:
        coefficients: [5] float64, of 1, width, width^2, depth * width^2 and negatives * width^2.
        negatives: a target; 0 where runs do not say.
        error: greatest relative error on the runs.
    """

    coefficients: np.ndarray
    negatives: float
    error: float

    def per_target(self, width: np.ndarray, depth: np.ndarray) -> np.ndarray:
        """For widths and depths of shapes that broadcast."""
        terms = _terms(width, depth, np.array(self.negatives))
        return sum(c * term for c, term in zip(self.coefficients, terms, strict=True))


def _terms(width: np.ndarray, depth: np.ndarray, negatives: np.ndarray) -> list[np.ndarray]:
    flat = 0 * width * depth
    return [flat + 1, width + flat, width**2 + flat, depth * width**2, negatives * width**2 + flat]


def cost_of(curves: Sequence[Curve]) -> Cost:
    """The cost of a target, as the runs logged it."""
    width, depth, flops, batch = (
        np.array([curve.params[name] for curve in curves])
        for name in ("hidden_size", "n_layers", "total_flops", "train_batch_size")
    )
    negatives = np.array([curve.params.get("nce_num_negatives", 0.0) for curve in curves])
    per_target = flops / batch
    terms = np.stack(_terms(width, depth, negatives), -1)
    coefficients, _ = nnls(terms / per_target[:, None], np.ones(len(curves)))
    error = float(np.abs(terms @ coefficients / per_target - 1).max())
    return Cost(coefficients, float(np.median(negatives)), error)


@dataclasses.dataclass(frozen=True)
class Prices:
    """What computing costs.

    Attributes:
        flops_per_second: that a GPU sustains in training, of floating-point operations (peak times MFU); None where it
            is not known.
        price_per_hour: of a GPU; None where it is not known.
    """

    flops_per_second: float | None = None
    price_per_hour: float | None = None

    def told(self, compute: float) -> dict[str, float]:
        """A budget in the unit of total_flops, in other units."""
        told = {"training_flops": compute * TRUE_PER_UNIT}
        if self.flops_per_second is not None:
            told["gpu_hours"] = told["training_flops"] / self.flops_per_second / SECONDS_PER_HOUR
            if self.price_per_hour is not None:
                told["price"] = told["gpu_hours"] * self.price_per_hour
        return told

    def compute(self, amount: float, unit: str) -> float:
        """A budget in `gpu_hours` or `price`, in the unit of total_flops."""
        hours = amount if unit == "gpu_hours" else amount / (self.price_per_hour or np.nan)
        return hours * SECONDS_PER_HOUR * (self.flops_per_second or np.nan) / TRUE_PER_UNIT


@dataclasses.dataclass(frozen=True)
class Planner:
    """Finds what to train.

    Attributes:
        judged: the joint law, in width, depth and data, and what else it has.
        cost: of a target.
        runs: that the law was fitted to.
        sign: 1 for a metric that rises with compute, -1 for one that falls.
        epochs: to train for.
    """

    judged: JudgedJoint
    cost: Cost
    runs: Runs
    sign: int
    epochs: float

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
        """The best that a budget pays for, and what doubling each part of it would bring.

        Args:
            compute: the budget, in the unit of total_flops.

        Returns:
            width, depth, data, epochs, compute spent, the metric and its 95 % interval, the parts that lie beyond all
            runs, and `doubling`: of each part the metric's ratio and the cost's. None where nothing can be had for it.
        """
        choices = self._affordable(compute)
        if np.isnan(choices["data"]).all():
            return None
        expected = self.sign * self.judged.law.evaluate({**self._fixed(), **choices})
        at = np.unravel_index(np.nanargmax(np.where(np.isnan(choices["data"]), np.nan, expected)), expected.shape)
        chosen = {name: float(column[at]) for name, column in choices.items()}
        low, high = self.judged.interval(self._fixed() | chosen)
        value = self._value(self.judged.law, chosen)
        return chosen | {
            "epochs": self.epochs, "compute": self._cost(chosen),
            "metric": value, "low": float(low), "high": float(high),
            "beyond_runs": [name for name in chosen if not self._seen(name, chosen[name])],
            "doubling": {name: self._doubled(name, chosen) for name in chosen},
        }  # fmt: skip

    def _value(self, law: JointLaw, chosen: Mapping[str, float]) -> float:
        return float(law.evaluate(self._fixed() | dict(chosen)))

    def _cost(self, chosen: Mapping[str, float]) -> float:
        per_target = self.cost.per_target(np.array(chosen["width"]), np.array(chosen["depth"]))
        return float(per_target) * chosen["data"] * self.epochs

    def _seen(self, name: str, value: float) -> bool:
        column = self.runs.variables[name]
        return bool(column.min() <= value <= column.max())

    def _doubled(self, name: str, chosen: Mapping[str, float]) -> dict[str, float]:
        doubled = {**chosen, name: 2 * chosen[name]}
        ratios = [self._value(law, doubled) / self._value(law, chosen) for law in (self.judged.law, *self.judged.draws)]
        low, high = np.percentile(ratios, WITHIN)
        return {
            "metric": ratios[0], "low": float(low), "high": float(high),
            "cost": self._cost(doubled) / self._cost(chosen),
        }  # fmt: skip


def planner_of(
    curves: Sequence[Curve], runs: Runs, joint: Mapping[str, JudgedJoint], sign: int, epochs: float | None
) -> Planner | None:
    """A planner by the joint law in width, depth and data that forecasts best; None where there is no such law."""
    shaped = [
        judged for judged in joint.values()
        if {"width", "data"} <= set(judged.law.variables) and np.isfinite(judged.error)
    ]  # fmt: skip
    if not shaped:
        return None
    if epochs is None:
        epochs = float(np.median(runs.variables["epochs"]))
    return Planner(shaped[0], cost_of(curves), runs, sign, epochs)
