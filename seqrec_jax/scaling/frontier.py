"""The best metric at each compute, and how a law is fitted to it where runs are noisy and most are not the best."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import least_squares, minimize
from scipy.special import log_ndtr

from seqrec_jax.errors import InputError
from seqrec_jax.scaling.laws import Law
from seqrec_jax.scaling.run_table import Curve

OUTLIER = 0.05  # residual, in ln of the metric, from which on it counts linearly (Huber)
WINDOW = 0.2  # how far below the envelope, in ln of the metric, a point may lie to be fitted
TO_DEVIATION = 1.4826  # a normal's standard deviation over its median distance from the middle
LN_SQRT_2_PI = 0.5 * float(np.log(2 * np.pi))
STEP = 1e-6  # of a parameter, for derivatives
SEARCH = {"maxiter": 100, "ftol": 1e-8}
MORE_RUNS = "bind RUNS to a database of more runs"
SMALLEST_SCALE = 1e-4  # of noise and of inefficiency, in ln of the metric
# The points better than all of less compute; noise told from inefficiency; all that is near, as the law with noise.
ENVELOPE, STOCHASTIC, REGRESSION = METHODS = ("envelope", "stochastic", "regression")
ONE_SIDED = 2.71  # what twice the gain in ln likelihood exceeds by chance in 5 % of cases, of a number of at least 0


class Points(NamedTuple):
    """Evaluations of all runs."""

    runs: np.ndarray  # [n] int64, number of the run
    z: np.ndarray  # [n] float64, ln of the compute less `centre`
    values: np.ndarray  # [n] float64, the metric
    centre: float  # mean of ln C
    sign: int  # 1 for a metric that rises with compute, -1 for one that falls

    @property
    def compute(self) -> np.ndarray:
        """Compute of each: [n] float64."""
        return np.exp(self.z + self.centre)

    def at(self, places: np.ndarray) -> "Points":
        """Points by their indices, or by a mask."""
        return self._replace(runs=self.runs[places], z=self.z[places], values=self.values[places])

    def of(self, runs: Sequence[int] | np.ndarray) -> "Points":
        """Points of some runs, which may be named several times, as a bootstrap does."""
        places = [np.flatnonzero(self.runs == run) for run in runs]
        again = np.repeat(np.arange(len(places)), [len(of_run) for of_run in places])
        return self.at(np.concatenate([*places, np.zeros(0, int)]))._replace(runs=again)

    def within(self, low: float, high: float) -> "Points":
        """Points with low <= z < high."""
        return self.at((self.z >= low) & (self.z < high))


def points_of(curves: Sequence[Curve], sign: int, least_share: float) -> Points:
    """The evaluations of runs, but for computes at which no run has reached `least_share` of the best value yet.

    A metric that falls with compute (`sign` = -1) keeps all.
    """
    runs = np.repeat(np.arange(len(curves)), [len(curve.compute) for curve in curves])
    compute, values = (np.concatenate([getattr(curve, name) for curve in curves]) for name in ("compute", "values"))
    if sign > 0:
        begun = compute[values >= least_share * values.max()].min()
        runs, compute, values = (column[compute >= begun] for column in (runs, compute, values))
    centre = float(np.log(compute).mean())
    return Points(runs, np.log(compute) - centre, values, centre, sign)


def envelope(points: Points) -> np.ndarray:
    """Indices of the points that are better than all of less compute: [n] int64, by compute."""
    score = points.sign * points.values
    order = np.lexsort((-score, points.z))
    before = np.maximum.accumulate(np.concatenate([[-np.inf], score[order][:-1]]))
    return order[score[order] > before]


class Fit(NamedTuple):
    """A law fitted to a frontier."""

    law: Law  # the form
    theta: np.ndarray  # [n_parameters] float64
    noise: float  # standard deviation of evaluations, in ln of the metric; of residuals where the envelope was fitted
    inefficiency: float  # mean distance of runs from the frontier, in ln of the metric; 0 where the envelope was fitted
    error: float  # what the fit minimised, a point: minus ln of the likelihood, or the robust squared error

    def residuals(self, points: Points) -> np.ndarray:
        """How far points are above the law, in ln of the metric: [n] float64."""
        return np.log(points.values) - self.law.ln(self.theta, points.z)


class Frontier(NamedTuple):
    """What laws are fitted to."""

    method: str  # one of METHODS
    points: Points  # points near the frontier
    floors: np.ndarray  # [n] float64, below which a point would not be among them, in sign * ln of the metric


def huber(residuals: Callable[[np.ndarray], np.ndarray], starts: Sequence[np.ndarray], most_calls: int) -> Any:
    """Scipy's result of the robust fit (Huber, 1964) from the best of several starts."""
    how: dict[str, Any] = {"loss": "huber", "f_scale": OUTLIER, "x_scale": "jac", "xtol": 1e-6, "ftol": 1e-7}
    found = [least_squares(residuals, start, max_nfev=most_calls, **how) for start in starts]
    return min(found, key=lambda result: result.cost)


def _least_squares(law: Law, points: Points, starts: Sequence[np.ndarray]) -> Fit:
    """Huber's fit of ln of the metric."""
    if not starts:
        way = "rises" if points.sign > 0 else "falls"
        raise InputError(f"METRIC: {law.name} cannot be fitted, as it {way} with compute and the runs' metric does not")
    ln_values = np.log(points.values)
    best = huber(lambda theta: law.ln(theta, points.z) - ln_values, starts, 100)
    fitted = Fit(law, best.x, 0.0, 0.0, float(best.cost) / len(points.z))
    return fitted._replace(noise=TO_DEVIATION * float(np.median(np.abs(fitted.residuals(points)))))


def _ln_density(distance: np.ndarray, noise: float, inefficiency: float) -> tuple[np.ndarray, np.ndarray]:
    """Of normal noise less an exponential inefficiency (Meeusen and van den Broeck, 1977), and its derivative."""
    ratio = noise / inefficiency
    place = -distance / noise - ratio
    ln_below = log_ndtr(place)
    mills = np.exp(-(place**2) / 2 - LN_SQRT_2_PI - ln_below)
    density = distance / inefficiency + ratio**2 / 2 - np.log(inefficiency) + ln_below
    return density, 1 / inefficiency - mills / noise


def _above(floor: np.ndarray, noise: float, inefficiency: float) -> np.ndarray:
    """Probability that noise less inefficiency is above `floor`."""
    ratio = noise / inefficiency
    below = np.exp(log_ndtr(floor / noise))
    below += np.exp(floor / inefficiency + ratio**2 / 2 + log_ndtr(-floor / noise - ratio))
    return np.maximum(1 - below, 1e-12)


def _deviations(scales: np.ndarray) -> tuple[float, float]:
    """Noise and inefficiency, from the logarithms that are searched."""
    noise, inefficiency = np.exp(np.clip(scales, np.log(SMALLEST_SCALE), np.log([1, 10 * WINDOW])))
    return float(noise), float(inefficiency)


def _errors(law: Law, frontier: Frontier, parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Minus ln of the likelihood of each point [n], and its derivatives [n, parameters]: theta and the two scales."""
    (_, points, floors), theta, scales = frontier, parameters[:-2], parameters[-2:]
    values, expected = points.sign * np.log(points.values), points.sign * law.ln(theta, points.z)

    def by_scales(scales: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        density, slope = _ln_density(values - expected, *_deviations(scales))
        above = _above(floors - expected, *_deviations(scales))
        return np.log(above) - density, slope, above

    errors, slope, above = by_scales(scales)
    by_law = slope + np.exp(_ln_density(floors - expected, *_deviations(scales))[0]) / above
    moved = (points.sign * law.ln(theta + step, points.z) for step in STEP * np.eye(len(theta)))
    of_scales = [(by_scales(scales + step)[0] - errors) / STEP for step in STEP * np.eye(2)]
    return errors, np.stack([*(by_law * (of - expected) / STEP for of in moved), *of_scales], -1)


def _most_likely(law: Law, frontier: Frontier, starts: Sequence[np.ndarray]) -> Fit:
    """The stochastic frontier (Aigner, Lovell and Schmidt, 1977): a law times noise times an efficiency up to 1."""

    def error(moved: np.ndarray, origin: np.ndarray, axes: np.ndarray) -> tuple[float, np.ndarray]:
        errors, scores = _errors(law, frontier, origin + axes @ moved)
        value, slope = float(errors.mean()), axes.T @ scores.mean(0)
        return (value, slope) if np.isfinite(value) and np.isfinite(slope).all() else (1e6, np.zeros_like(moved))

    found = []
    with np.errstate(all="ignore"):
        for start in starts:  # along the axes of the scores' outer product, as parameters are far from independent
            _, scores = _errors(law, frontier, start)
            sizes, axes = np.linalg.eigh(np.nan_to_num(scores.T @ scores / len(scores)))
            axes = axes / np.sqrt(np.maximum(sizes, max(sizes.max(), 1e-6) * 1e-6))
            result = minimize(error, np.zeros_like(start), (start, axes), "L-BFGS-B", jac=True, options=SEARCH)
            found.append((float(result.fun), start + axes @ result.x))
    best, parameters = min(found, key=lambda pair: pair[0])
    return Fit(law, parameters[:-2], *_deviations(parameters[-2:]), best)


def fit(law: Law, frontier: Frontier, near: Fit | None = None) -> Fit:
    """Fits a law to a frontier; the search is wide, or begins with an earlier fit of it to about the same points.

    InputError where the frontier has too few points for the law's parameters.
    """
    points = frontier.points
    if (n_computes := len(np.unique(points.z))) < law.n_parameters + 1:
        few = f"the frontier has {n_computes} points of distinct compute, too few for the {law.n_parameters} parameters"
        raise InputError(f"{few} of {law.name}; {MORE_RUNS}")
    starts = law.starts(points.z, points.values, points.sign) if near is None else [near.theta]
    if frontier.method != STOCHASTIC:
        return _least_squares(law, points, starts)
    if near is not None:
        scales = np.log(np.clip([near.noise, near.inefficiency or 0.01], SMALLEST_SCALE, 1))
        return _most_likely(law, frontier, [np.concatenate([near.theta, scales])])
    first = _least_squares(law, points.at(envelope(points)), starts).theta
    return _most_likely(law, frontier, [np.concatenate([first, np.log(pair)]) for pair in ((0.01, 0.1), (0.02, 0.01))])


def frontier_of(points: Points, method: str, reference: Fit) -> Frontier:
    """The points near the frontier: by ENVELOPE those better than all of less compute, else those above a floor.

    The floor is WINDOW below the reference, a law fitted to the envelope of these points or of what they are drawn of.
    """
    if method == ENVELOPE:
        return envelope_of(points)
    floors = points.sign * reference.law.ln(reference.theta, points.z) - WINDOW
    kept = points.sign * np.log(points.values) > floors
    return Frontier(method, points.at(kept), floors[kept])


def envelope_of(points: Points) -> Frontier:
    """The points that are better than all of less compute, to be fitted by least squares."""
    places = envelope(points)
    return Frontier(ENVELOPE, points.at(places), np.full(len(places), -np.inf))


def best_reference(points: Points, laws: Sequence[Law]) -> Fit:
    """The form that follows the envelope most closely, of those that it has points enough for."""
    frontier = envelope_of(points)
    n_points, least = len(frontier.points.z), laws[0].n_parameters + 1
    if not (enough := [law for law in laws if n_points > law.n_parameters]):
        raise InputError(f"the envelope has {n_points} points, and a law needs at least {least}; {MORE_RUNS}")
    return min((fit(law, frontier) for law in enough), key=lambda fitted: fitted.error)


def best_method(points: Points, reference: Fit) -> str:
    """How the frontier is fitted, by what the data can tell.

    ENVELOPE where runs lie as thickly below the floor as at the frontier, so that their distances have no scale of
    their own within the window. REGRESSION where all distances may as well be noise, by the test of Coelli (Journal of
    Productivity Analysis, 1995). Otherwise STOCHASTIC.
    """
    frontier = frontier_of(points, STOCHASTIC, reference)
    enough = len(np.unique(frontier.points.z)) > reference.law.n_parameters + 2
    if not enough or (stochastic := fit(reference.law, frontier)).inefficiency > WINDOW:
        return ENVELOPE
    residuals = fit(reference.law, frontier._replace(method=REGRESSION)).residuals(frontier.points)
    ln_likelihood = -np.log(np.sqrt(np.mean(residuals**2))) - LN_SQRT_2_PI - 0.5
    gain = 2 * len(residuals) * (-stochastic.error - ln_likelihood)
    return STOCHASTIC if gain > ONE_SIDED else REGRESSION
