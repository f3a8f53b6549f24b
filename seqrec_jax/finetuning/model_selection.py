"""What validation chooses once training is over: a phase, how much of the tuning, and the weights of score terms."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from seqrec_jax.evaluation.metrics import standard_error, summarize
from seqrec_jax.finetuning.config import FinetuneConfig
from seqrec_jax.model.parameters import Params
from seqrec_jax.model.terms import GRIDS, STEPS

PRETRAINED = "checkpoint"
MOST_STEPS = 8
UNITS = 10  # score terms keep their weights in tenths


class Candidate(NamedTuple):
    """A model, and how good it is."""

    params: Params
    score: float  # its metric on validation
    report: Mapping[str, float | str]  # what was chosen, by name


Score = Callable[[Params], float]  # metric on validation


def _tried(candidate: Candidate, name: str, value: jax.Array, score: Score) -> Candidate:
    """The candidate with another value of one weight."""
    params = {**candidate.params, name: value}
    return Candidate(params, score(params), {**candidate.report, name.removeprefix("terms/"): UNITS * float(value)})


def average(candidate: Candidate, start: Params, shares: Sequence[float], score: Score) -> Candidate:
    """The best on validation of the tuned candidate and of its averages with the pre-trained `start`, in which it has
    these shares (WiSE-FT, Wortsman et al., CVPR 2022)."""
    best = candidate
    for share in shares:
        params = jax.tree.map(lambda a, b, share=share: a + share * (b - a), start, candidate.params)
        value = score(params)
        logging.info("%g of the tuned parameters: valid %.4f", share, value)
        if value > best.score:
            best = Candidate(params, value, {**candidate.report, "tuned_share": share})
    return best


def calibrate(candidate: Candidate, score: Score) -> Candidate:
    """Moves each weight of terms.STEPS in steps while that helps, twice in turn.

    Training weighs the parts of a score by how well each fits the training users, whom a model learns by heart where
    they are few; validation does not (stacking, Wolpert, 1992).
    """
    best = candidate
    for _ in range(2):
        before = best
        for name, step in STEPS.items():
            if name in candidate.params:
                best = _moved(best, name, step, score)
        if best is before:
            break
    if best is not candidate:
        logging.info("calibrated on validation: %.4f to %.4f", candidate.score, best.score)
    return best


def _moved(candidate: Candidate, name: str, step: float, score: Score) -> Candidate:
    """The candidate with one weight moved to where validation is best."""
    best = candidate
    for direction in (-step, step):
        for _ in range(MOST_STEPS):
            tried = _tried(best, name, best.params[name] + direction, score)
            if tried.score <= best.score:
                break
            best = tried
        if best is not candidate:
            break
    return best


def choose_from_grids(candidate: Candidate, score: Score, noise: float) -> Candidate:
    """Gives each weight of terms.GRIDS the smallest of its values that is about as good as the best.

    What such a weight multiplies was counted among the users of validation, too, which flatters it where users are few;
    so of values whose scores differ by less than `noise`, the standard error of the score, the smallest is taken (the
    one-standard-error rule, Breiman et al., Classification and Regression Trees, 1984).
    """
    for name, values in GRIDS.items():
        if name in candidate.params:
            tried = [_tried(candidate, name, jnp.full_like(candidate.params[name], of), score) for of in values]
            least = max(one.score for one in tried) - noise
            value, candidate = next(pair for pair in zip(values, tried, strict=True) if pair[1].score >= least)
            logging.info("%s of %g: valid %.4f to %.4f", name, UNITS * value, tried[0].score, candidate.score)
    return candidate


def select(
    found: Mapping[str, Params], start: Params | None, ranks: Callable[[Params], np.ndarray], config: FinetuneConfig
) -> Candidate:
    """What is best on validation: of the pre-trained model and what each phase found, each averaged and calibrated.

    Where chance may have made the difference the earlier one is taken, as validation is on users whose histories were
    trained on, and flatters what was trained longer. `found` has the best parameters of each phase, by its name;
    `start` are the pre-trained ones, None where training began afresh, and they are no candidate; `ranks` gives those
    of the targets of validation: [n] int64.
    """
    metric = config.train.valid_metric
    ks = (int(metric.rpartition("_")[2]),)

    def score(params: Params) -> float:
        return summarize(ranks(params), ks)[metric]

    candidates = []
    for name, params in (({} if start is None else {PRETRAINED: start}) | dict(found)).items():
        by_user = ranks(params)
        one = Candidate(params, summarize(by_user, ks)[metric], {"phase": name})
        if start is not None and name != PRETRAINED:
            one = average(one, start, config.averages, score)
        if config.calibrates:
            one = calibrate(choose_from_grids(one, score, standard_error(by_user, metric)), score)
        candidates.append(one)
        logging.info("%s: valid %s %.4f", name, metric, one.score)
    best = max(candidates, key=lambda one: one.score)
    noise = standard_error(ranks(best.params), metric)
    chosen = next(one for one in candidates if one.score >= best.score - noise)
    than = f", as {best.report['phase']} is better by less than the standard error, {noise:.4f}"
    logging.info("chosen: %s, valid %s %.4f%s", chosen.report["phase"], metric, chosen.score,
                 "" if chosen is best else than)  # fmt: skip
    return chosen
