"""Which form of law forecasts larger runs best, and how far each can be trusted."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import ndtr, stdtrit
from threadpoolctl import threadpool_limits

from seqrec_jax.errors import InputError
from seqrec_jax.scaling import frontier as f
from seqrec_jax.scaling.frontier import Fit, Frontier, Points, fit, frontier_of
from seqrec_jax.scaling.laws import Law, laws
from seqrec_jax.scaling.run_table import draw_runs

HELD_BACK = (0.25, 0.375, 0.5)  # shares of the range of ln C, from the top, whose runs a forecast does not see
BIN = float(np.log(10) / 2)  # width, in ln C, of the bins that a forecast's error is averaged over
WITHIN = (2.5, 97.5)  # percentiles that bound an interval
TELLING = 1.96  # standard errors by which forecasts must be worse than the best's, for the data to tell them apart
SLIGHT = 0.01  # difference of forecasts' errors, in ln of the metric, that is not worth more parameters
MATERIAL = 0.03  # difference of forecasts' errors, in ln of the metric, which fewer parameters do not make up for
LEAST_ERROR = 1e-3  # added to errors that are set against one another, so that none is nothing
_Fits = dict[tuple[str | None, int], Fit]  # by form and cut; without a form, to the envelope


class Forecast(NamedTuple):
    """How well a form fitted to smaller runs foretells larger ones."""

    below: float  # compute that all runs of the fit have ended below
    runs: int  # number of those runs
    error: float  # mean over bins of the absolute error, in ln of the metric; NaN where the runs cannot carry the form


class Judged(NamedTuple):
    """A form on all runs."""

    fitted: Fit  # fit to the frontier
    draws: np.ndarray  # [n, parameters] float64, of bootstrap draws of runs
    forecasts: Sequence[Forecast]  # one for each cut
    error: float  # mean of the forecasts' errors
    told_apart: bool  # whether the data can tell its forecasts from the best form's


class Study(NamedTuple):
    """What is known of the frontier."""

    points: Points  # all evaluations
    configurations: np.ndarray  # [runs] int64, number of each run's configuration
    frontier: Frontier  # those near it
    judged: Mapping[str, Judged]  # each form, by name
    chosen: str  # the form that forecasts best, or one of fewer parameters that is about as good

    def predict(self, name: str, compute: Sequence[float] | np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A form's values [n], and the ends of their 95 % intervals, from the draws alone."""
        judged, z = self.judged[name], np.log(np.asarray(compute, float)) - self.points.centre
        law = judged.fitted.law
        values = law.evaluate(judged.fitted.theta, z)
        return values, *self.interval(name, values, np.stack([law.evaluate(theta, z) for theta in judged.draws]))

    def interval(
        self, name: str, values: np.ndarray | float, drawn: np.ndarray | Sequence[float]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ends of the 95 % interval of what follows from a form: values [...], and of its draws [draws, ...]."""
        near = np.unique(self.configurations[self.frontier.points.runs])
        within = percentiles(len(near), self.judged[name].fitted.law.n_parameters)
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
    """Percentiles of draws that bound a 95 % interval; expanded (Hesterberg, 2015), as few runs vary too little."""
    free = max(1, runs - parameters)
    beyond = 100 * float(ndtr(-np.sqrt(runs / free) * stdtrit(free, 0.975)))
    return beyond, 100 - beyond


def interval(
    values: np.ndarray, drawn: np.ndarray, method: str, within: tuple[float, float] = WITHIN
) -> tuple[np.ndarray, np.ndarray]:
    """95 % intervals of values [...] from bootstrap draws [draws, ...]; `method` is one of METHODS.

    A draw of runs lacks a third of them, and with them some of the envelope, which makes the draws' envelopes lower
    than the whole; so theirs are moved to where the value is.
    """
    moved = drawn - np.median(drawn, 0) + values if method == f.ENVELOPE else drawn
    low, high = np.percentile(moved, within, axis=0)
    return np.minimum(low, values), np.maximum(high, values)


def cuts_of(points: Points) -> np.ndarray:
    """Where the runs that are held back begin, by HELD_BACK: [cuts] float64, in z."""
    return points.z.max() - np.array(HELD_BACK) * np.ptp(points.z)


class _Judge(NamedTuple):
    """How forms are fitted and judged: the same for all draws."""

    forms: Sequence[Law]
    reference: Law
    method: str
    cuts: np.ndarray

    def forecasts(
        self, points: Points, frontier: Frontier, near: _Fits | None = None
    ) -> tuple[dict[str, list[Forecast]], _Fits]:
        """Of each form one a cut, and the fits that made them; `near` are fits of about the same runs."""
        found: dict[str, list[Forecast]] = {law.name: [] for law in self.forms}
        made, runs = _Fits(), np.unique(points.runs)
        ends = np.array([points.z[points.runs == run].max() for run in runs])
        for place, cut in enumerate(self.cuts):
            smaller, later = runs[ends < cut], frontier.points.within(cut, np.inf)
            both = len(smaller) and len(later.z)
            errors = self._errors(points.of(smaller), later, place, near or {}, made) if both else {}
            for name, forecasts in found.items():
                error = errors.get(name, float("nan"))
                forecasts.append(Forecast(float(np.exp(cut + points.centre)), len(smaller), error))
        return found, made

    def _errors(self, seen: Points, later: Points, place: int, near: _Fits, made: _Fits) -> dict[str, float]:
        """Of the forms that what is seen can carry; adds to the fits made."""
        errors = {}
        with contextlib.suppress(InputError):
            made[None, place] = near.get((None, place)) or fit(self.reference, f.envelope_of(seen))
            known = frontier_of(seen, self.method, made[None, place])
            for law in self.forms:
                with contextlib.suppress(InputError):
                    made[law.name, place] = fitted = fit(law, known, near.get((law.name, place)))
                    # How far the later points are above the law, beyond what is usual for those that it was fitted to.
                    missed = fitted.residuals(later) - np.mean(fitted.residuals(known.points))
                    bins = np.floor((later.z - self.cuts[place]) / BIN)
                    errors[law.name] = float(np.mean([abs(np.mean(missed[bins == of])) for of in np.unique(bins)]))
        return errors


def _mean_errors(forecasts: Mapping[str, Sequence[Forecast]]) -> dict[str, float]:
    return {name: float(np.mean([forecast.error for forecast in of])) for name, of in forecasts.items()}


def _choose(errors: Mapping[str, float], drawn: Sequence[Mapping[str, float]]) -> tuple[str, dict[str, bool]]:
    """The form of fewest parameters that forecasts about as well as the best, and which are told from the best."""
    chosen = best = min(errors, key=lambda name: errors[name])
    apart = {}

    def times_best(errors: Mapping[str, float], name: str) -> float:
        """In ln: forecasts go wrong by factors."""
        return float(np.log((errors[name] + LEAST_ERROR) / (errors[best] + LEAST_ERROR)))

    for name in reversed(list(errors)):
        ratios = np.array([times_best(draw, name) for draw in drawn])
        ratios = ratios[np.isfinite(ratios)]
        chance = f.TO_DEVIATION * float(np.median(np.abs(ratios - np.median(ratios)))) if len(ratios) else 0.0
        worse, loss = times_best(errors, name), errors[name] - errors[best]
        apart[name] = worse > TELLING * chance
        if not apart[name] and (loss <= SLIGHT or (worse <= chance and loss <= MATERIAL)):
            chosen = name
    return chosen, apart


@threadpool_limits.wrap(limits=1)  # for small matrices threads cost more than they bring
def study_frontier(
    points: Points, draws: int, seed: int, cuts: Sequence[float] = (), method: str | None = None,
    configurations: np.ndarray | None = None,
) -> Study:  # fmt: skip
    """Fits every form to the frontier, and chooses by forecasts of larger runs; InputError where runs are too few.

    `draws` are bootstrap draws of runs. `cuts` are computes that the runs of a forecast have ended below, none for
    HELD_BACK. `method` is one of METHODS; None chooses. `configurations` are the numbers of the runs' configurations,
    [runs] int64, which several seeds share; None for one run each.
    """
    forms = laws(points.sign)
    reference = f.best_reference(points, forms)
    method = f.best_method(points, reference) if method is None else method
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
    configurations = np.arange(runs.max() + 1) if configurations is None else configurations
    drawn, drawn_errors = [], []
    for draw in range(draws):
        some = points.of(runs[draw_runs(configurations[runs], generator)])
        with contextlib.suppress(InputError):
            of_draw = frontier_of(some, method, reference)
            drawn.append({name: fit(fitted.law, of_draw, fitted).theta for name, fitted in fits.items()})
            if draw < max(1, draws // 4):
                drawn_errors.append(_mean_errors(judge.forecasts(some, of_draw, near)[0]))
    if not drawn_errors:
        raise InputError("no draw of the runs carries a law; bind RUNS to a database of more runs")
    chosen, apart = _choose({name: errors[name] for name in fits}, drawn_errors)
    judged = {
        name: Judged(fitted, np.stack([of[name] for of in drawn]), forecasts[name], errors[name], apart[name])
        for name, fitted in fits.items()
    }
    return Study(points, configurations, frontier, judged, chosen)
