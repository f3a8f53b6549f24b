"""The best metric at each compute, and how a law is fitted to it where runs are noisy and most are not the best."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import least_squares, minimize
from scipy.special import log_ndtr

from seqrec_jax.errors import InputError
from seqrec_jax.scaling.laws import Law
from seqrec_jax.scaling.run_table import Curve

OUTLIER = 0.05
"""Residual, in ln of the metric, from which on it counts linearly (Huber)."""
WINDOW = 0.2
"""How far below the envelope, in ln of the metric, a point may lie to be fitted."""
TO_DEVIATION = 1.4826
"""A normal's standard deviation over its median distance from the middle."""
LN_SQRT_2_PI = 0.5 * float(np.log(2 * np.pi))
STEP = 1e-6
"""Of a parameter, for derivatives."""
SEARCH = {"maxiter": 100, "ftol": 1e-8}
SMALLEST_SCALE = 1e-4
"""Of noise and of inefficiency, in ln of the metric."""
ENVELOPE, STOCHASTIC, REGRESSION = "envelope", "stochastic", "regression"
METHODS = (ENVELOPE, STOCHASTIC, REGRESSION)
ONE_SIDED = 2.71
"""What twice the gain in ln of the likelihood exceeds by chance in 5 % of cases, of a number that cannot be below 0."""


class Points(NamedTuple):
    """Evaluations of all runs.

    Attributes:
        runs: [n] int64, whose.
        z: [n] float64, ln of the compute less `centre`.
        values: [n] float64, of the metric.
        centre: of ln C.
        sign: 1 for a metric that rises with compute, -1 for one that falls.
    """

    runs: np.ndarray
    z: np.ndarray
    values: np.ndarray
    centre: float
    sign: int

    def of(self, runs: Sequence[int] | np.ndarray) -> "Points":
        """Those of some runs, which may be named several times, as a bootstrap does."""
        places = [np.flatnonzero(self.runs == run) for run in runs]
        at = np.concatenate(places) if places else np.zeros(0, int)
        again = np.repeat(np.arange(len(places)), [len(of_run) for of_run in places])
        return self._replace(runs=again, z=self.z[at], values=self.values[at])

    def within(self, low: float, high: float) -> "Points":
        """Those with low <= z < high."""
        kept = (self.z >= low) & (self.z < high)
        return self._replace(runs=self.runs[kept], z=self.z[kept], values=self.values[kept])


def points_of(curves: Sequence[Curve], sign: int, least_share: float) -> Points:
    """The evaluations of runs, from the compute on at which training has begun to show.

    Args:
        curves: of the runs.
        sign: see Points.
        least_share: of the best value of all; computes at which no run has reached it yet are left out. A metric that
            falls with compute keeps all.
    """
    runs = np.repeat(np.arange(len(curves)), [len(curve.compute) for curve in curves])
    compute, values = (np.concatenate([getattr(curve, name) for curve in curves]) for name in ("compute", "values"))
    if sign > 0:
        begun = compute[values >= least_share * values.max()].min()
        runs, compute, values = (column[compute >= begun] for column in (runs, compute, values))
    centre = float(np.log(compute).mean())
    return Points(runs, np.log(compute) - centre, values, centre, sign)


def envelope(points: Points) -> np.ndarray:
    """Places of the points that are better than all of less compute: [n] int64, by compute."""
    score = points.sign * points.values
    order = np.lexsort((-score, points.z))
    before = np.maximum.accumulate(np.concatenate([[-np.inf], score[order][:-1]]))
    return order[score[order] > before]


class Fit(NamedTuple):
    """A law fitted to a frontier.

    Attributes:
        law: the form.
        theta: [n_parameters] float64.
        noise: standard deviation of evaluations, in ln of the metric; of residuals where the envelope was fitted.
        inefficiency: mean distance of runs from the frontier, in ln of the metric; 0 where the envelope was fitted.
        error: what the fit made least, a point: minus ln of the likelihood, or the robust squared error.
    """

    law: Law
    theta: np.ndarray
    noise: float
    inefficiency: float
    error: float


class Frontier(NamedTuple):
    """What laws are fitted to.

    Attributes:
        method: one of METHODS.
        points: near the frontier.
        floors: [n] float64, below which a point would not be among them, in sign * ln of the metric.
    """

    method: str
    points: Points
    floors: np.ndarray


def _at(points: Points, places: np.ndarray) -> Points:
    return points._replace(runs=points.runs[places], z=points.z[places], values=points.values[places])


def _least_squares(law: Law, points: Points, starts: Sequence[np.ndarray]) -> Fit:
    """Huber's robust fit of ln of the metric (Huber, 1964), from several starts.

    Raises:
        InputError: there is no start, as the metric goes the other way.
    """
    if not starts:
        way = "rises" if points.sign > 0 else "falls"
        raise InputError(f"METRIC: {law.name} cannot be fitted, as it {way} with compute and the runs' metric does not")
    ln_values = np.log(points.values)

    def residuals(theta: np.ndarray) -> np.ndarray:
        return law.ln(theta, points.z) - ln_values

    how = {"loss": "huber", "f_scale": OUTLIER, "x_scale": "jac", "xtol": 1e-6, "ftol": 1e-7, "max_nfev": 100}
    found = [least_squares(residuals, start, **how) for start in starts]
    best = min(found, key=lambda result: result.cost)
    noise = TO_DEVIATION * float(np.median(np.abs(residuals(best.x))))
    return Fit(law, best.x, noise, 0.0, float(best.cost) / len(points.z))


def _ln_density(distance: np.ndarray, noise: float, inefficiency: float) -> tuple[np.ndarray, np.ndarray]:
    """Of normal noise less an exponential inefficiency (Meeusen and van den Broeck, 1977), and its derivative."""
    ratio = noise / inefficiency
    place = -distance / noise - ratio
    ln_below = log_ndtr(place)
    density = distance / inefficiency + ratio**2 / 2 - np.log(inefficiency) + ln_below
    mills = np.exp(-(place**2) / 2 - LN_SQRT_2_PI - ln_below)
    return density, 1 / inefficiency - mills / noise


def _above(floor: np.ndarray, noise: float, inefficiency: float) -> np.ndarray:
    """Probability that noise less inefficiency is above `floor`."""
    ratio = noise / inefficiency
    below = np.exp(log_ndtr(floor / noise))
    below += np.exp(floor / inefficiency + ratio**2 / 2 + log_ndtr(-floor / noise - ratio))
    return np.maximum(1 - below, 1e-12)


class _Likelihood:
    """Of the points of a frontier by a law, with its noise and inefficiency, as errors to make least.

    Args:
        law: the form.
        frontier: the points, and their floors.
    """

    def __init__(self, law: Law, frontier: Frontier):
        self._law, self._points, self._floors = law, frontier.points, frontier.floors
        self._values = frontier.points.sign * np.log(frontier.points.values)

    def _of_law(self, theta: np.ndarray) -> np.ndarray:
        return self._points.sign * self._law.ln(theta, self._points.z)

    def errors(self, expected: np.ndarray, scales: np.ndarray) -> np.ndarray:
        """Minus ln of the likelihood of each point: [n] float64."""
        noise, inefficiency = self.deviations(scales)
        density, _ = _ln_density(self._values - expected, noise, inefficiency)
        return np.log(_above(self._floors - expected, noise, inefficiency)) - density

    def deviations(self, scales: np.ndarray) -> tuple[float, float]:
        """Noise and inefficiency, from the logarithms that are searched."""
        noise, inefficiency = np.exp(np.clip(scales, np.log(SMALLEST_SCALE), np.log([1, 10 * WINDOW])))
        return float(noise), float(inefficiency)

    def with_scores(self, parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The errors [n], and their derivatives [n, parameters]."""
        theta, scales = parameters[:-2], parameters[-2:]
        noise, inefficiency = self.deviations(scales)
        expected = self._of_law(theta)
        errors = self.errors(expected, scales)
        _, slope = _ln_density(self._values - expected, noise, inefficiency)
        at_floor, _ = _ln_density(self._floors - expected, noise, inefficiency)
        by_law = slope + np.exp(at_floor) / _above(self._floors - expected, noise, inefficiency)
        of_theta = [by_law * (self._of_law(theta + step) - expected) / STEP for step in STEP * np.eye(len(theta))]
        of_scales = [(self.errors(expected, scales + step) - errors) / STEP for step in STEP * np.eye(2)]
        return errors, np.stack([*of_theta, *of_scales], -1)


def _most_likely(law: Law, frontier: Frontier, starts: Sequence[np.ndarray]) -> Fit:
    """The stochastic frontier (Aigner, Lovell and Schmidt, 1977) of the points above their floors.

    Every evaluation is the law's value times noise, which is as often above 1 as below, times an efficiency of at most
    1; the envelope alone would count the luckiest noise as the law's. The search is along the axes of the scores'
    outer product, as parameters of a law are far from independent.
    """
    likelihood = _Likelihood(law, frontier)

    def error(moved: np.ndarray, origin: np.ndarray, axes: np.ndarray) -> tuple[float, np.ndarray]:
        errors, scores = likelihood.with_scores(origin + axes @ moved)
        value, slope = float(errors.mean()), axes.T @ scores.mean(0)
        return (value, slope) if np.isfinite(value) and np.isfinite(slope).all() else (1e6, np.zeros_like(moved))

    found = []
    with np.errstate(all="ignore"):
        for start in starts:
            _, scores = likelihood.with_scores(start)
            sizes, axes = np.linalg.eigh(np.nan_to_num(scores.T @ scores / len(scores)))
            axes = axes / np.sqrt(np.maximum(sizes, max(sizes.max(), 1e-6) * 1e-6))
            origin = np.zeros_like(start)
            result = minimize(error, origin, (start, axes), "L-BFGS-B", jac=True, options=SEARCH)
            found.append((float(result.fun), start + axes @ result.x))
    best, parameters = min(found, key=lambda pair: pair[0])
    noise, inefficiency = likelihood.deviations(parameters[-2:])
    return Fit(law, parameters[:-2], noise, inefficiency, best)


def fit(law: Law, frontier: Frontier, near: Fit | None = None) -> Fit:
    """Fits a law to a frontier.

    Args:
        law: the form.
        frontier: to fit it to.
        near: an earlier fit of the law, of about the same points, to begin with; None searches widely.

    Raises:
        InputError: the frontier has too few points for the law's parameters.
    """
    points = frontier.points
    if len(np.unique(points.z)) < law.n_parameters + 1:
        raise InputError(
            f"the frontier has {len(np.unique(points.z))} points of distinct compute, too few for the "
            f"{law.n_parameters} parameters of {law.name}; bind RUNS to a database of more runs"
        )
    if frontier.method != STOCHASTIC:
        starts = law.starts(points.z, points.values, points.sign) if near is None else [near.theta]
        return _least_squares(law, points, starts)
    if near is not None:
        scales = np.log(np.clip([near.noise, near.inefficiency or 0.01], SMALLEST_SCALE, 1))
        return _most_likely(law, frontier, [np.concatenate([near.theta, scales])])
    places = envelope(points)
    first = _least_squares(law, _at(points, places), law.starts(points.z, points.values, points.sign)).theta
    scales = [(0.01, 0.1), (0.02, 0.01)]
    return _most_likely(law, frontier, [np.concatenate([first, np.log(pair)]) for pair in scales])


def frontier_of(points: Points, method: str, reference: Fit) -> Frontier:
    """The points near the frontier, for a method.

    Args:
        points: of the runs.
        method: ENVELOPE takes those that are better than all of less compute, the others those above a floor, WINDOW
            below the envelope.
        reference: a law fitted to the envelope of these points, or of those that they are a draw of.
    """
    if method == ENVELOPE:
        return envelope_of(points)
    floors = points.sign * reference.law.ln(reference.theta, points.z) - WINDOW
    kept = points.sign * np.log(points.values) > floors
    return Frontier(method, _at(points, np.flatnonzero(kept)), floors[kept])


def envelope_of(points: Points) -> Frontier:
    """The points that are better than all of less compute, to be fitted by least squares."""
    of_envelope = _at(points, envelope(points))
    return Frontier(ENVELOPE, of_envelope, np.full(len(of_envelope.z), -np.inf))


def best_reference(points: Points, laws: Sequence[Law]) -> Fit:
    """The form that follows the envelope most closely, of those that it has points enough for."""
    frontier = envelope_of(points)
    enough = [law for law in laws if len(frontier.points.z) > law.n_parameters]
    if not enough:
        raise InputError(
            f"the envelope has {len(frontier.points.z)} points, and a law needs at least {laws[0].n_parameters + 1}; "
            "bind RUNS to a database of more runs"
        )
    return min((fit(law, frontier) for law in enough), key=lambda fitted: fitted.error)


def best_method(points: Points, reference: Fit) -> str:
    """How the frontier is fitted, by what the data can tell.

    ENVELOPE where runs lie as thickly below the floor as at the frontier: their distances then have no scale of their
    own within the window, and what the model of a stochastic frontier would call it is the edge of the data. REGRESSION
    where all distances may as well be noise, by the test of Coelli (Journal of Productivity Analysis, 1995): an
    inefficiency that cannot be below 0 would be found above it, and draw the frontier up. Otherwise STOCHASTIC.
    """
    frontier = frontier_of(points, STOCHASTIC, reference)
    if len(np.unique(frontier.points.z)) <= reference.law.n_parameters + 2:
        return ENVELOPE
    stochastic = fit(reference.law, frontier)
    if stochastic.inefficiency > WINDOW:
        return ENVELOPE
    noise = fit(reference.law, frontier._replace(method=REGRESSION))
    residuals = np.log(frontier.points.values) - noise.law.ln(noise.theta, frontier.points.z)
    ln_likelihood = -np.log(np.sqrt(np.mean(residuals**2))) - LN_SQRT_2_PI - 0.5
    gain = 2 * len(residuals) * (-stochastic.error - ln_likelihood)
    return STOCHASTIC if gain > ONE_SIDED else REGRESSION
