"""Laws of a metric in what a run was made of: width, depth, parameters, data, epochs and negatives."""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from seqrec_jax.scaling.forecast import HELD_BACK, WITHIN, Forecast
from seqrec_jax.scaling.frontier import TO_DEVIATION, huber
from seqrec_jax.scaling.laws import SMALLEST, linear_fit
from seqrec_jax.scaling.run_table import Curve, configurations_of, draw_runs

# Variables, and the params of runs that hold them; `epochs` is what a run was trained for.
PARAMS = {"width": "hidden_size", "depth": "n_layers", "parameters": "model_non_emb_params", "data": "n_inters",
          "negatives": "nce_num_negatives"}  # fmt: skip
SETS = {
    "width and depth": ("width", "depth", "data", "epochs", "negatives"),
    "parameters": ("parameters", "data", "epochs", "negatives"),
    "width, depth and targets": ("width", "depth", "targets", "negatives"),
    "parameters and targets": ("parameters", "targets", "negatives"),
}
# scale * product of v^exponent; intercept + sum of slope * ln v; limit - sum of scale * v^-exponent
FORMS = ("power", "log_linear", "power_with_offset")


def with_targets(variables: Mapping[str, Any]) -> dict[str, Any]:
    """The same with `targets`, those seen in training: of all epochs, an epoch's being `data`."""
    whole = {"data", "epochs"} <= set(variables)
    return dict(variables) | ({"targets": variables["data"] * variables["epochs"]} if whole else {})


class Runs(NamedTuple):
    """Finished runs."""

    variables: Mapping[str, np.ndarray]  # by name [n] float64, above 0; those that all runs have
    values: np.ndarray  # [n] float64, the metric at the end
    compute: np.ndarray  # [n] float64, in all
    configurations: np.ndarray | None = None  # [n] int64, their numbers, which several seeds share; None for one each

    def at(self, places: np.ndarray) -> "Runs":
        """Runs by their indices."""
        variables = {name: column[places] for name, column in self.variables.items()}
        return Runs(variables, self.values[places], self.compute[places])

    def varying(self, names: Sequence[str], least: int = 2) -> tuple[str, ...]:
        """The variables that have at least so many values."""
        return tuple(name for name in names if name in self.variables and len(np.unique(self.variables[name])) >= least)


def runs_of(curves: Sequence[Curve]) -> Runs:
    """The ends of curves."""
    variables = {
        name: np.array([curve.params[param] for curve in curves], float)
        for name, param in PARAMS.items()
        if all(curve.params.get(param, 0) > 0 for curve in curves)
    }
    variables["epochs"] = np.array([curve.epochs[-1] for curve in curves])
    values, compute = (np.array([getattr(curve, name)[-1] for curve in curves]) for name in ("values", "compute"))
    return Runs(with_targets(variables), values, compute, configurations_of(curves))


class Effect(NamedTuple):
    """What doubling a variable does, all others equal."""

    ratio: float  # what the metric is multiplied by
    low: float  # lower end of its 95 % interval
    high: float  # upper end of its 95 % interval
    pairs: int  # pairs of configurations that differ in nothing else


def effects(runs: Runs, draws: int, seed: int) -> dict[str, Effect]:
    """What doubling each variable does, by pairs of configurations that differ in it alone.

    Intervals bootstrap groups of such pairs.
    """
    names = runs.varying(("width", "depth", "data", "epochs", "negatives"))
    found, generator = {}, np.random.default_rng(seed)
    for name in names:
        others = [runs.variables[other] for other in names if other != name]
        keys = np.stack([*others, np.zeros_like(runs.values)], -1)
        groups = []
        for which in np.unique(keys, axis=0):
            same = np.flatnonzero((keys == which).all(1))
            places, of = np.unique(runs.variables[name][same], return_inverse=True)
            means = np.bincount(of, np.log(runs.values[same])) / np.bincount(of)  # over seeds
            groups.append(np.diff(means) / np.diff(np.log2(places)))
        if not (groups := [group for group in groups if len(group)]):
            continue
        means, sizes = np.array([np.mean(group) for group in groups]), np.array([len(group) for group in groups])
        chosen = generator.integers(len(groups), size=(draws, len(groups)))
        drawn = (means[chosen] * sizes[chosen]).sum(1) / sizes[chosen].sum(1)
        low, high = np.exp(np.percentile(drawn, WITHIN))
        found[name] = Effect(float(np.exp(np.average(means, weights=sizes))), float(low), float(high), int(sizes.sum()))
    return found


@dataclasses.dataclass(frozen=True)
class JointLaw:
    """A law of a metric in several variables."""

    form: str  # one of FORMS
    variables: tuple[str, ...]  # their names
    centres: np.ndarray  # mean of ln v, of each
    theta: np.ndarray  # [parameters] float64

    def evaluate(self, variables: Mapping[str, np.ndarray | float]) -> np.ndarray:
        """The metric, for variables of shapes that broadcast."""
        variables = with_targets(variables)
        logs = [np.log(variables[name]) - centre for name, centre in zip(self.variables, self.centres, strict=True)]
        return np.maximum(_value(self.form, self.theta, logs), SMALLEST)

    def named(self) -> dict[str, float]:
        """The parameters of the formula."""
        n, theta = len(self.variables), self.theta
        if self.form == "power_with_offset":
            named, exponents = {"limit": float(theta[0])}, np.exp(theta[1 + n :])
            scales = theta[1 : 1 + n] * np.exp(exponents * self.centres)
            for name, scale, exponent in zip(self.variables, scales, exponents, strict=True):
                named |= {f"scale of {name}": float(scale), f"exponent of {name}": float(exponent)}
            return named
        origin, power = theta[0] - theta[1:] @ self.centres, self.form == "power"
        named = {"scale": float(np.exp(origin))} if power else {"intercept": float(origin)}
        slope = "exponent" if power else "slope"
        return named | {f"{slope} of {name}": float(of) for name, of in zip(self.variables, theta[1:], strict=True)}


def _value(form: str, theta: np.ndarray, logs: Sequence[np.ndarray]) -> np.ndarray:
    n = len(logs)
    if form != "power_with_offset":
        linear = theta[0] + sum(theta[1 + i] * logs[i] for i in range(n))
        return np.exp(np.clip(linear, -50, 50)) if form == "power" else linear
    return theta[0] - sum(
        theta[1 + i] * np.exp(np.clip(-np.exp(np.clip(theta[1 + n + i], -10, 3)) * logs[i], -50, 50)) for i in range(n)
    )


def _starts(form: str, logs: Sequence[np.ndarray], values: np.ndarray) -> list[np.ndarray]:
    ones = np.ones_like(values)
    if form == "power":
        return [np.linalg.lstsq(np.stack([ones, *logs], -1), np.log(values), rcond=None)[0]]
    if form == "log_linear":
        return [linear_fit([ones, *logs], values)[0]]
    return [
        np.append(linear_fit([ones, *(-np.exp(-e * log) for log in logs)], values)[0], np.full(len(logs), np.log(e)))
        for e in (0.05, 0.2, 0.6)
    ]


def fit_joint(form: str, variables: Sequence[str], runs: Runs, near: JointLaw | None = None) -> JointLaw:
    """Huber's fit of ln of the metric, begun at `near`, a fit to about the same runs; ValueError with too few runs."""
    if len(runs.values) <= 1 + len(variables) * (2 if form == "power_with_offset" else 1):
        raise ValueError("fewer runs than parameters")
    columns = [np.log(runs.variables[name]) for name in variables]
    centres = np.array([column.mean() for column in columns]) if near is None else near.centres
    logs = [column - centre for column, centre in zip(columns, centres, strict=True)]
    ln_values = np.log(runs.values)
    starts = _starts(form, logs, runs.values) if near is None else [near.theta]
    found = huber(lambda theta: np.log(np.maximum(_value(form, theta, logs), SMALLEST)) - ln_values, starts, 200)
    return JointLaw(form, tuple(variables), centres, found.x)


class JudgedJoint(NamedTuple):
    """A joint law on all runs."""

    law: JointLaw  # fitted to all runs
    draws: Sequence[JointLaw]  # fitted to bootstrap draws of runs
    noise: float  # standard deviation of residuals, in ln of the metric
    forecasts: Sequence[Forecast]  # one for each cut; the error is the mean over the runs above it
    error: float  # mean of the forecasts' errors

    def interval(self, variables: Mapping[str, np.ndarray | float]) -> tuple[np.ndarray, np.ndarray]:
        """Ends of the 95 % interval of the metric."""
        low, high = np.percentile(np.stack([draw.evaluate(variables) for draw in self.draws]), WITHIN, axis=0)
        value = self.law.evaluate(variables)
        return np.minimum(low, value), np.maximum(high, value)


def _forecast(form: str, variables: Sequence[str], runs: Runs, cut: float) -> Forecast:
    below, error = np.log(runs.compute) < cut, float("nan")
    seen, later = runs.at(np.flatnonzero(below)), runs.at(np.flatnonzero(~below))
    with contextlib.suppress(ValueError, np.linalg.LinAlgError):
        law = fit_joint(form, seen.varying(variables), seen)
        error = float(np.mean(np.abs(np.log(later.values / law.evaluate(later.variables)))))
    return Forecast(float(np.exp(cut)), int(below.sum()), error)


@threadpool_limits.wrap(limits=1)  # for small matrices threads cost more than they bring
def study_joint(runs: Runs, draws: int, seed: int, cuts: Sequence[float] = ()) -> dict[str, JudgedJoint]:
    """Joint laws of every form by name, the least forecast error first; none where there are too few runs.

    `draws` are bootstrap draws of runs; `cuts`, computes that the runs of a forecast are below, none for HELD_BACK.
    """
    ln_compute = np.log(runs.compute)
    places = np.log(cuts) if len(cuts) else ln_compute.max() - np.array(HELD_BACK) * np.ptp(ln_compute)
    found = {}
    for of_set, names in SETS.items():
        variables = runs.varying(names)
        if not {"width", "parameters"} & set(variables) and "data" not in variables:
            continue
        if "targets" in names and len(runs.varying(("targets", "data", "epochs"))) < 3:
            continue  # the law in data, or in epochs, is the same
        for form in FORMS:
            if not (used := runs.varying(variables, 3) if form == "power_with_offset" else variables):
                continue
            try:
                law = fit_joint(form, used, runs)
            except ValueError:
                continue
            forecasts = [_forecast(form, used, runs, cut) for cut in places]
            noise = TO_DEVIATION * float(np.median(np.abs(np.log(runs.values / law.evaluate(runs.variables)))))
            error = float(np.mean([forecast.error for forecast in forecasts]))
            drawn, generator = [law], np.random.default_rng(seed)
            each = np.arange(len(runs.values)) if runs.configurations is None else runs.configurations
            for _ in range(draws):
                some = runs.at(draw_runs(each, generator))
                with contextlib.suppress(ValueError, np.linalg.LinAlgError):
                    drawn.append(fit_joint(form, used, some, law))
            found[f"{form} in {of_set}"] = JudgedJoint(law, drawn, noise, forecasts, error)
    return dict(sorted(found.items(), key=lambda item: (not np.isfinite(item[1].error), item[1].error)))


def no_worse(joint: Mapping[str, JudgedJoint], error: float) -> dict[str, JudgedJoint]:
    """The joint laws that forecast larger runs at least as well as the law over compute, whose error that is."""
    return {name: judged for name, judged in joint.items() if judged.error <= error}
