"""Laws of a metric in what a run was made of: width, depth, parameters, data, epochs and negatives."""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import least_squares
from threadpoolctl import threadpool_limits

from seqrec_jax.scaling.forecast import HELD_BACK, WITHIN
from seqrec_jax.scaling.frontier import OUTLIER, TO_DEVIATION
from seqrec_jax.scaling.laws import SMALLEST
from seqrec_jax.scaling.run_table import Curve

PARAMS = {
    "width": "hidden_size", "depth": "n_layers", "parameters": "model_non_emb_params", "data": "n_inters",
    "negatives": "nce_num_negatives",
}  # fmt: skip
"""Variables, and the params of runs that hold them; `epochs` is what a run was trained for."""
SETS = {
    "width and depth": ("width", "depth", "data", "epochs", "negatives"),
    "parameters": ("parameters", "data", "epochs", "negatives"),
}
FORMS = ("power", "log_linear", "power_with_offset")


class Runs(NamedTuple):
    """Finished runs.

    Attributes:
        variables: of each name [n] float64, above 0; those that all runs have.
        values: [n] float64, of the metric at the end.
        compute: [n] float64, in all.
    """

    variables: Mapping[str, np.ndarray]
    values: np.ndarray
    compute: np.ndarray

    def at(self, places: np.ndarray) -> "Runs":
        """Some of them."""
        return Runs(
            {name: column[places] for name, column in self.variables.items()}, self.values[places], self.compute[places]
        )

    def varying(self, names: Sequence[str], least: int = 2) -> tuple[str, ...]:
        """Those of the variables that have at least so many values."""
        return tuple(name for name in names if name in self.variables and len(np.unique(self.variables[name])) >= least)


def runs_of(curves: Sequence[Curve]) -> Runs:
    """The ends of curves."""
    variables = {
        name: np.array([curve.params[param] for curve in curves], float)
        for name, param in PARAMS.items()
        if all(curve.params.get(param, 0) > 0 for curve in curves)
    }
    variables["epochs"] = np.array([curve.epochs[-1] for curve in curves])
    ends = (np.array([getattr(curve, name)[-1] for curve in curves]) for name in ("values", "compute"))
    return Runs(variables, *ends)


class Effect(NamedTuple):
    """What doubling a variable does, all others equal.

    Attributes:
        ratio: of the metric.
        low: end of its 95 % interval.
        high: end of its 95 % interval.
        pairs: of runs that differ in nothing else.
    """

    ratio: float
    low: float
    high: float
    pairs: int


def effects(runs: Runs, draws: int, seed: int) -> dict[str, Effect]:
    """What doubling each variable does, from pairs of runs that differ in it alone; no law is assumed.

    Args:
        runs: finished ones.
        draws: bootstrap draws of the groups of runs that are equal in all else.
        seed: of the draws.
    """
    names = runs.varying(("width", "depth", "data", "epochs", "negatives"))
    found, generator = {}, np.random.default_rng(seed)
    for name in names:
        others = [runs.variables[other] for other in names if other != name]
        keys = np.stack([*others, np.zeros_like(runs.values)], -1)
        groups: list[list[float]] = []
        for which in np.unique(keys, axis=0):
            same = np.flatnonzero((keys == which).all(1))
            same = same[np.argsort(runs.variables[name][same], kind="stable")]
            levels, gains = np.log2(runs.variables[name][same]), np.log(runs.values[same])
            steps = np.diff(levels)
            if (steps > 0).any():
                groups.append(list(np.diff(gains)[steps > 0] / steps[steps > 0]))
        if not groups:
            continue
        means, sizes = np.array([np.mean(group) for group in groups]), np.array([len(group) for group in groups])
        chosen = generator.integers(len(groups), size=(draws, len(groups)))
        drawn = (means[chosen] * sizes[chosen]).sum(1) / sizes[chosen].sum(1)
        low, high = np.exp(np.percentile(drawn, WITHIN))
        found[name] = Effect(float(np.exp(np.average(means, weights=sizes))), float(low), float(high), int(sizes.sum()))
    return found


@dataclasses.dataclass(frozen=True)
class JointLaw:
    """A law of a metric in several variables.

    Attributes:
        form: `power` (scale * product of v^exponent), `log_linear` (intercept + sum of slope * ln v) or
            `power_with_offset` (limit - sum of scale * v^-exponent).
        variables: by name.
        centres: of ln v, of each.
        theta: [parameters] float64.
    """

    form: str
    variables: tuple[str, ...]
    centres: np.ndarray
    theta: np.ndarray

    def evaluate(self, variables: Mapping[str, np.ndarray | float]) -> np.ndarray:
        """The metric, for variables of shapes that broadcast."""
        logs = [np.log(variables[name]) - centre for name, centre in zip(self.variables, self.centres, strict=True)]
        return np.maximum(_value(self.form, self.theta, logs), SMALLEST)

    def named(self) -> dict[str, float]:
        """The parameters of the formula."""
        n, theta = len(self.variables), self.theta
        if self.form == "power_with_offset":
            told = {"limit": float(theta[0])}
            exponents = np.exp(theta[1 + n :])
            scales = theta[1 : 1 + n] * np.exp(exponents * self.centres)
            for name, scale, exponent in zip(self.variables, scales, exponents, strict=True):
                told |= {f"scale of {name}": float(scale), f"exponent of {name}": float(exponent)}
            return told
        origin = theta[0] - theta[1:] @ self.centres
        power = self.form == "power"
        told = {"scale": float(np.exp(origin))} if power else {"intercept": float(origin)}
        slope = "exponent" if power else "slope"
        return told | {f"{slope} of {name}": float(of) for name, of in zip(self.variables, theta[1:], strict=True)}


def _value(form: str, theta: np.ndarray, logs: Sequence[np.ndarray]) -> np.ndarray:
    n = len(logs)
    if form == "power":
        return np.exp(np.clip(theta[0] + sum(theta[1 + i] * logs[i] for i in range(n)), -50, 50))
    if form == "log_linear":
        return theta[0] + sum(theta[1 + i] * logs[i] for i in range(n))
    return theta[0] - sum(
        theta[1 + i] * np.exp(np.clip(-np.exp(np.clip(theta[1 + n + i], -10, 3)) * logs[i], -50, 50)) for i in range(n)
    )


def _starts(form: str, logs: Sequence[np.ndarray], values: np.ndarray) -> list[np.ndarray]:
    ones, relative = np.ones_like(values), np.ones_like(values)
    if form == "power":
        return [np.linalg.lstsq(np.stack([ones, *logs], -1), np.log(values), rcond=None)[0]]
    if form == "log_linear":
        return [np.linalg.lstsq(np.stack([ones, *logs], -1) / values[:, None], relative, rcond=None)[0]]
    found = []
    for exponent in (0.05, 0.2, 0.6):
        columns = np.stack([ones, *(-np.exp(-exponent * log) for log in logs)], -1) / values[:, None]
        linear = np.linalg.lstsq(columns, relative, rcond=None)[0]
        found.append(np.concatenate([linear, np.full(len(logs), np.log(exponent))]))
    return found


def n_parameters(form: str, n_variables: int) -> int:
    """Of a form in so many variables."""
    return 1 + n_variables * (2 if form == "power_with_offset" else 1)


def fit_joint(form: str, variables: Sequence[str], runs: Runs, near: JointLaw | None = None) -> JointLaw:
    """Huber's robust fit of ln of the metric.

    Args:
        form: see JointLaw.
        variables: that vary among the runs.
        runs: finished ones.
        near: an earlier fit of about the same runs, to begin with.

    Raises:
        ValueError: fewer runs than parameters.
    """
    if len(runs.values) <= n_parameters(form, len(variables)):
        raise ValueError("fewer runs than parameters")
    columns = [np.log(runs.variables[name]) for name in variables]
    centres = np.array([column.mean() for column in columns]) if near is None else near.centres
    logs = [column - centre for column, centre in zip(columns, centres, strict=True)]
    ln_values = np.log(runs.values)
    found = [
        least_squares(
            lambda theta: np.log(np.maximum(_value(form, theta, logs), SMALLEST)) - ln_values,
            start, loss="huber", f_scale=OUTLIER, x_scale="jac", xtol=1e-6, ftol=1e-7, max_nfev=200,
        )
        for start in (_starts(form, logs, runs.values) if near is None else [near.theta])
    ]  # fmt: skip
    return JointLaw(form, tuple(variables), centres, min(found, key=lambda result: result.cost).x)


class JudgedJoint(NamedTuple):
    """A joint law on all runs.

    Attributes:
        law: fitted.
        draws: fitted to bootstrap draws of runs.
        noise: standard deviation of residuals, in ln of the metric.
        forecasts: of each cut (compute, runs below it, mean absolute error in ln of the metric of the runs above it).
        error: mean of the forecasts' errors.
    """

    law: JointLaw
    draws: Sequence[JointLaw]
    noise: float
    forecasts: Sequence[tuple[float, int, float]]
    error: float

    def interval(self, variables: Mapping[str, np.ndarray | float]) -> tuple[np.ndarray, np.ndarray]:
        """Ends of the 95 % interval of the metric."""
        low, high = np.percentile(np.stack([draw.evaluate(variables) for draw in self.draws]), WITHIN, axis=0)
        value = self.law.evaluate(variables)
        return np.minimum(low, value), np.maximum(high, value)


def _forecast_error(form: str, variables: Sequence[str], runs: Runs, below: np.ndarray) -> float:
    with contextlib.suppress(ValueError, np.linalg.LinAlgError):
        seen = runs.at(np.flatnonzero(below))
        law = fit_joint(form, seen.varying(variables), seen)
        later = runs.at(np.flatnonzero(~below))
        return float(np.mean(np.abs(np.log(later.values / law.evaluate(later.variables)))))
    return float("nan")


@threadpool_limits.wrap(limits=1)  # see study_frontier
def study_joint(runs: Runs, draws: int, seed: int, cuts: Sequence[float] = ()) -> dict[str, JudgedJoint]:
    """Fits joint laws of every form, and says how well each forecasts larger runs.

    Args:
        runs: finished ones.
        draws: bootstrap draws of runs.
        seed: of the draws.
        cuts: computes below which the runs of a forecast lie; none for HELD_BACK.

    Returns:
        By name, the least forecast error first; none where there are too few runs.
    """
    ln_compute = np.log(runs.compute)
    places = np.log(cuts) if len(cuts) else ln_compute.max() - np.array(HELD_BACK) * np.ptp(ln_compute)
    found = {}
    for of_set, names in SETS.items():
        variables = runs.varying(names)
        if not {"width", "parameters"} & set(variables) and "data" not in variables:
            continue
        for form in FORMS:
            used = runs.varying(variables, 3) if form == "power_with_offset" else variables
            if not used:
                continue
            try:
                law = fit_joint(form, used, runs)
            except ValueError:
                continue
            forecasts = [
                (float(np.exp(cut)), int((ln_compute < cut).sum()), _forecast_error(form, used, runs, ln_compute < cut))
                for cut in places
            ]
            residuals = np.log(runs.values / law.evaluate(runs.variables))
            noise = TO_DEVIATION * float(np.median(np.abs(residuals)))
            error = float(np.mean([error for _, _, error in forecasts]))
            drawn = _draws(form, law, runs, draws, seed)
            found[f"{form} in {of_set}"] = JudgedJoint(law, drawn, noise, forecasts, error)
    return dict(sorted(found.items(), key=lambda item: (not np.isfinite(item[1].error), item[1].error)))


def _draws(form: str, law: JointLaw, runs: Runs, draws: int, seed: int) -> list[JointLaw]:
    generator, found = np.random.default_rng(seed), [law]
    for _ in range(draws):
        some = runs.at(generator.integers(len(runs.values), size=len(runs.values)))
        with contextlib.suppress(ValueError, np.linalg.LinAlgError):
            found.append(fit_joint(form, law.variables, some, law))
    return found
