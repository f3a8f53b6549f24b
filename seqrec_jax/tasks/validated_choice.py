"""What is chosen on validation once training is over: which stage, how much of the tuning, and a few single numbers."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from absl import logging
from flax import nnx

from seqrec_jax.model import parameters

KNOBS = {"lexical/trust": 0.05, "repeat": 0.1}
"""Numbers of a model that weigh its parts, and steps to try them in; both are kept in tenths."""
MOST_STEPS = 8
TRANSITIONS = "transitions"
"""The parameter that weighs what followed the history; see Recommender.transition_weight."""
TRANSITION_WEIGHTS = (0.0, 4.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0)


class Choice(NamedTuple):
    """A model, and how good it is.

    Attributes:
        params: of the model.
        figure: of validation.
        told: what was chosen, by name.
    """

    params: nnx.State
    figure: float
    told: Mapping[str, float | str]


Figure = Callable[[nnx.State], float]


def average(choice: Choice, start: nnx.State, shares: Sequence[float], figure: Figure) -> Choice:
    """The average of pre-trained and tuned parameters that is best on validation (WiSE-FT, Wortsman et al., CVPR 2022).

    Args:
        choice: the tuned model.
        start: the pre-trained parameters.
        shares: of the tuned ones, to try.
        figure: of validation.
    """
    best, tuned = choice, choice.params
    for share in shares:
        params = jax.tree.map(lambda a, b, part=share: a + part * (b - a), start, tuned)
        value = figure(params)
        logging.info("%g of the tuned parameters: valid %.4f", share, value)
        if value > best.figure:
            best = Choice(params, value, {**choice.told, "tuned_share": share})
    return best


def calibrate(choice: Choice, figure: Figure) -> Choice:
    """Weighs what was learnt against words, and repeats against the rest, by the one number that each has.

    Training weighs them by how well each fits the training users, whom a model learns by heart where they are few;
    validation does not (stacking, Wolpert, 1992). Each number is moved in steps while that helps, twice in turn.

    Args:
        choice: the model.
        figure: of validation.
    """
    best = choice
    for _ in range(2):
        before = best
        for name, step in KNOBS.items():
            if name in parameters.named(choice.params):
                best = _moved(best, name, step, figure)
        if best is before:
            break
    if best is not choice:
        logging.info("calibrated on validation: %.4f to %.4f", choice.figure, best.figure)
    return best


def weigh_transitions(choice: Choice, figure: Figure, noise: float) -> Choice:
    """Gives the counts of transitions the smallest of TRANSITION_WEIGHTS that is about as good as the best.

    The users of validation are among those whose transitions were counted, which flatters the counts where users are
    few; so of weights whose figures differ by less than chance the smallest is taken (the one-standard-error rule,
    Breiman et al., Classification and Regression Trees, 1984).

    Args:
        choice: the model.
        figure: of validation.
        noise: standard error of the figure.
    """
    arrays = parameters.named(choice.params)
    if TRANSITIONS not in arrays:
        return choice
    tried = []
    for weight in TRANSITION_WEIGHTS:
        params = parameters.from_named(
            choice.params, {**arrays, TRANSITIONS: jnp.full_like(arrays[TRANSITIONS], weight / 10)}
        )
        tried.append(Choice(params, figure(params), {**choice.told, TRANSITIONS: weight}))
    best = max(candidate.figure for candidate in tried)
    chosen = next(candidate for candidate in tried if candidate.figure >= best - noise)
    logging.info("transitions weighed %g: valid %.4f to %.4f", chosen.told[TRANSITIONS], tried[0].figure, chosen.figure)
    return chosen


def _moved(choice: Choice, name: str, step: float, figure: Figure) -> Choice:
    """The choice with one number moved to where validation is best."""
    best = choice
    for direction in (-step, step):
        for _ in range(MOST_STEPS):
            arrays = parameters.named(best.params)
            arrays[name] = arrays[name] + direction
            params = parameters.from_named(best.params, arrays)
            value = figure(params)
            if value <= best.figure:
                break
            best = Choice(params, value, {**best.told, name: 10 * float(arrays[name])})
        if best is not choice:
            break
    return best
