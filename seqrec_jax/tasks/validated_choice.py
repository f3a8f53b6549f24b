"""What is chosen on validation once training is over: which stage, how much of the tuning, and a few single numbers."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
from absl import logging
from flax import nnx

from seqrec_jax.model import parameters

KNOBS = {"lexical/trust": 0.05, "repeat": 0.1}
"""Numbers of a model that weigh its parts, and steps to try them in; both are kept in tenths."""
MOST_STEPS = 8


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
