"""Which form of law forecasts larger runs best, and how far each can be trusted."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import ndtr, stdtrit
from threadpoolctl import threadpool_limits

from seqrec_jax.errors import InputError
from seqrec_jax.scaling.frontier import (
    ENVELOPE,
    TO_DEVIATION,
    Fit,
    Frontier,
    Points,
    best_method,
    best_reference,
    envelope_of,
    fit,
    frontier_of,
)
from seqrec_jax.scaling.laws import Law, laws

HELD_BACK = (0.25, 0.375, 0.5)
"""Shares of the range of ln C, from the top, whose runs a forecast does not see."""
BIN = float(np.log(10) / 2)
"""Width, in ln C, of the bins that a forecast's error is averaged over."""
WITHIN = (2.5, 97.5)
"""Percentiles that bound an interval."""
TELLING = 1.96
"""Standard errors by which a form's forecasts must be worse than the best's, for the data to tell them apart."""
SLIGHT = 0.01
"""Difference of forecasts' errors, in ln of the metric, for which a form of more parameters is not worth having."""
MATERIAL = 0.03
"""Difference of forecasts' errors, in ln of the metric, which fewer parameters do not make up for."""
LEAST_ERROR = 1e-3
"""Added to errors that are set against one another, so that none is nothing."""


class Forecast(NamedTuple):
    """How well a form fitted to smaller runs foretells larger ones.

    Attributes:
        below: compute that all runs of the fit have ended below.
        runs: of the fit.
        error: mean over bins of the absolute error, in ln of the metric; NaN where the smaller runs cannot carry the
            form.
    """

    below: float
    runs: int
    error: float


class Judged(NamedTuple):
    """A form on all runs.

    Attributes:
        fitted: to the frontier.
        draws: [n, parameters] float64, of bootstrap draws of runs.
        forecasts: one a cut.
        error: mean of the forecasts' errors.
        told_apart: whether the data can tell its forecasts from the best form's.
    """

    fitted: Fit
    draws: np.ndarray
    forecasts: Sequence[Forecast]
    error: float
    told_apart: bool


class Study(NamedTuple):
    """What is known of the frontier.

    Attributes:
        points: all evaluations.
        frontier: those near it.
        judged: each form, by name.
        chosen: the form that forecasts best, or one of fewer parameters that is about as good; see _choose.
    """

    points: Points
    frontier: Frontier
    judged: Mapping[str, Judged]
    chosen: str

    def predict(self, name: str, compute: Sequence[float] | np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A form's values [n], and the ends of their 95 % intervals, from the draws alone."""
        judged, z = self.judged[name], np.log(np.asarray(compute, float)) - self.points.centre
        law = judged.fitted.law
        values = law.evaluate(judged.fitted.theta, z)
        drawn = np.stack([law.evaluate(theta, z) for theta in judged.draws])
        low, high = self.interval(name, values, drawn)
        return values, low, high

    def interval(
        self, name: str, values: np.ndarray | float, drawn: np.ndarray | Sequence[float]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ends of the 95 % interval of what follows from a form: values [...], and of its draws [draws, ...]."""
        runs = len(np.unique(self.frontier.points.runs))
        within = percentiles(runs, self.judged[name].fitted.law.n_parameters)
        return interval(np.asarray(values), np.asarray(drawn), self.frontier.method, within)

    def expect(self, compute: Sequence[float] | np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The chosen form's values [n], and intervals that reach over those of all forms that it is not told from."""
        values, low, high = self.predict(self.chosen, compute)
        for name, judged in self.judged.items():
            if not judged.told_apart:
                _, other_low, other_high = self.predict(name, compute)
                low, high = np.minimum(low, other_low), np.maximum(high, other_high)
        return values, low, high


def percentiles(runs: int, parameters: int) -> tuple[float, float]:
    """Of draws, that bound a 95 % interval: a little beyond 2.5 and 97.5, as draws of few runs vary too little.

    (The expanded percentile interval: Hesterberg, The American Statistician, 2015.)

    Args:
        runs: that were drawn from.
        parameters: fitted to them.
    """
    free = max(1, runs - parameters)
    beyond = 100 * float(ndtr(-np.sqrt(runs / free) * stdtrit(free, 0.975)))
    return beyond, 100 - beyond


def interval(
    values: np.ndarray, drawn: np.ndarray, method: str, within: tuple[float, float] = WITHIN
) -> tuple[np.ndarray, np.ndarray]:
    """95 % intervals from bootstrap draws.

    A draw of runs lacks a third of them, and with them some of the envelope, which makes the draws' envelopes lower
    than the whole; so theirs are moved to where the value is.

    Args:
        values: [...] of all runs.
        drawn: [draws, ...].
        method: see Frontier.
        within: percentiles of the draws.
    """
    moved = drawn - np.median(drawn, 0) + values if method == ENVELOPE else drawn
    low, high = np.percentile(moved, within, axis=0)
    return np.minimum(low, values), np.maximum(high, values)


def cuts_of(points: Points) -> np.ndarray:
    """Where the runs that are held back begin, by HELD_BACK: [cuts] float64, in z."""
    return points.z.max() - np.array(HELD_BACK) * np.ptp(points.z)


class _Known(NamedTuple):
    """Fits of forecasts, with which those of draws begin.

    Attributes:
        references: by cut, to the envelope of what is seen.
        fits: by form and cut.
    """

    references: dict[int, Fit]
    fits: dict[tuple[str, int], Fit]


class _Judge(NamedTuple):
    """How forms are fitted and judged: the same for all draws."""

    forms: Sequence[Law]
    reference: Law
    method: str
    cuts: np.ndarray

    def forecasts(
        self, points: Points, frontier: Frontier, near: _Known | None = None
    ) -> tuple[dict[str, list[Forecast]], _Known]:
        """Of each form one a cut, and the fits that made them.

        Args:
            points: of the runs.
            frontier: of all of them.
            near: fits of about the same runs, to begin with.
        """
        found: dict[str, list[Forecast]] = {law.name: [] for law in self.forms}
        made = _Known({}, {})
        runs = np.unique(points.runs)
        ends = np.array([points.z[points.runs == run].max() for run in runs])
        for place, cut in enumerate(self.cuts):
            smaller, below = runs[ends < cut], float(np.exp(cut + points.centre))
            later = frontier.points.within(cut, np.inf)
            errors = {}
            if len(smaller) and len(later.z):
                errors = self._errors(points.of(smaller), later, place, near, made)
            for name, forecasts in found.items():
                forecasts.append(Forecast(below, len(smaller), errors.get(name, float("nan"))))
        return found, made

    def _errors(self, seen: Points, later: Points, place: int, near: _Known | None, made: _Known) -> dict[str, float]:
        """Of the forms that what is seen can carry; adds to the fits made."""
        errors = {}
        with contextlib.suppress(InputError):
            if near is None or place not in near.references:
                reference = fit(self.reference, envelope_of(seen))
            else:
                reference = near.references[place]
            made.references[place] = reference
            known = frontier_of(seen, self.method, reference)
            for law in self.forms:
                with contextlib.suppress(InputError):
                    fitted = fit(law, known, None if near is None else near.fits.get((law.name, place)))
                    made.fits[law.name, place] = fitted
                    errors[law.name] = _error(fitted, known.points, later, self.cuts[place])
        return errors


def _error(fitted: Fit, known: Points, later: Points, cut: float) -> float:
    """Of a form fitted to what is known, on what came later, where the frontier's points lie as usual about it."""
    missed = _above(fitted, later) - np.mean(_above(fitted, known))
    bins = np.floor((later.z - cut) / BIN)
    return float(np.mean([abs(np.mean(missed[bins == which])) for which in np.unique(bins)]))


def _above(fitted: Fit, points: Points) -> np.ndarray:
    """How far points are above a law, in ln of the metric: [n] float64."""
    return np.log(points.values) - fitted.law.ln(fitted.theta, points.z)


def _mean_errors(forecasts: Mapping[str, Sequence[Forecast]]) -> dict[str, float]:
    return {name: float(np.mean([forecast.error for forecast in of])) for name, of in forecasts.items()}


def _choose(errors: Mapping[str, float], drawn: Sequence[Mapping[str, float]]) -> tuple[str, dict[str, bool]]:
    """The form chosen, and which forms the data tell from the best.

    Of forms whose forecasts are not told from the best's, and are worse by no more than SLIGHT, or a standard error if
    that is less than MATERIAL, the first is chosen, which has the fewest parameters.
    """
    best = min(errors, key=lambda name: errors[name])
    chosen, apart = best, {}
    for name in reversed(list(errors)):
        ratios = np.array([_ratio(draw, name, best) for draw in drawn])
        chance = _spread(ratios[np.isfinite(ratios)])
        worse = _ratio(errors, name, best)
        apart[name] = worse > TELLING * chance
        loss = errors[name] - errors[best]
        if not apart[name] and (loss <= SLIGHT or (worse <= chance and loss <= MATERIAL)):
            chosen = name
    return chosen, apart


def _ratio(errors: Mapping[str, float], name: str, best: str) -> float:
    """How many times a form's error is the best's, in ln: forecasts go wrong by factors."""
    return float(np.log((errors[name] + LEAST_ERROR) / (errors[best] + LEAST_ERROR)))


def _spread(values: np.ndarray) -> float:
    """Standard deviation of values some of which may be wild."""
    return TO_DEVIATION * float(np.median(np.abs(values - np.median(values)))) if len(values) else 0.0


@threadpool_limits.wrap(limits=1)  # for small matrices threads cost more than they bring
def study_frontier(
    points: Points, draws: int, seed: int, cuts: Sequence[float] = (), method: str | None = None
) -> Study:
    """Fits every form to the frontier, and chooses among them by their forecasts of larger runs.

    Args:
        points: of all runs.
        draws: bootstrap draws of runs.
        seed: of the draws.
        cuts: computes that the runs of a forecast have ended below; none for HELD_BACK.
        method: of the frontier, one of METHODS; None chooses, see best_method.

    Raises:
        InputError: there are too few runs.
    """
    forms = laws(points.sign)
    reference = best_reference(points, forms)
    method = best_method(points, reference) if method is None else method
    frontier = frontier_of(points, method, reference)
    places = np.array([np.log(cut) - points.centre for cut in cuts]) if cuts else cuts_of(points)
    judge = _Judge(forms, reference.law, method, places)
    forecasts, near = judge.forecasts(points, frontier)
    errors = _mean_errors(forecasts)
    if not any(np.isfinite(error) for error in errors.values()):
        raise InputError(
            f"no form can be fitted to the runs that end below {np.exp(places.min() + points.centre):.3g}, so none can "
            "be judged by its forecast; bind RUNS to a database of more runs, or CUTS to larger computes"
        )
    fits = {law.name: fit(law, frontier) for law in forms if np.isfinite(errors[law.name])}
    generator, runs = np.random.default_rng(seed), np.unique(points.runs)
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in fits}
    drawn_errors = []
    for draw in range(draws):
        some = points.of(generator.choice(runs, len(runs)))
        try:
            of_draw = frontier_of(some, method, reference)
            thetas = {name: fit(fitted.law, of_draw, fitted).theta for name, fitted in fits.items()}
        except InputError:
            continue
        for name, theta in thetas.items():
            drawn[name].append(theta)
        if draw < max(1, draws // 4):
            drawn_errors.append(_mean_errors(judge.forecasts(some, of_draw, near)[0]))
    if not drawn_errors:
        raise InputError("no draw of the runs carries a law; bind RUNS to a database of more runs")
    chosen, apart = _choose({name: errors[name] for name in fits}, drawn_errors)
    judged = {
        name: Judged(fitted, np.stack(drawn[name]), forecasts[name], errors[name], apart[name])
        for name, fitted in fits.items()
    }
    return Study(points, frontier, judged, chosen)
