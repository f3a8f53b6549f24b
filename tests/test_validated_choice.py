"""What is chosen on validation once training is over."""

import jax
import jax.numpy as jnp
import pytest

from seqrec_jax.model import parameters
from seqrec_jax.model.recommender import Architecture, build
from seqrec_jax.tasks.validated_choice import MOST_STEPS, Choice, average, calibrate

ARCHITECTURE = Architecture(1, 2, 8, 8, max_length=6, lexical_size=4, repeat_offset=True)


@pytest.fixture
def params():
    return build(ARCHITECTURE, {"title": 20}, seed=0)[1]


def numbers(params):
    arrays = parameters.named(params)
    return 10 * float(arrays["lexical/trust"]), 10 * float(arrays["repeat"])


def test_each_number_moves_to_where_validation_is_best_and_nothing_else_does(params):
    def figure(params):
        trust, repeat = numbers(params)
        return 1 - (trust + 2.1) ** 2 / 100 - (repeat - 3.2) ** 2 / 1000

    choice = calibrate(Choice(params, figure(params), {"stage": "head"}), figure)
    assert numbers(choice.params) == pytest.approx((-2.0, 3.0), abs=1e-5)
    assert choice.figure == figure(choice.params) > figure(params)
    assert choice.told == {"stage": "head", "lexical/trust": pytest.approx(-2.0), "repeat": pytest.approx(3.0)}
    before = parameters.named(params)
    for name, array in parameters.named(choice.params).items():
        assert jnp.array_equal(array, before[name]) == (name not in ("lexical/trust", "repeat"))


def test_what_nothing_improves_is_left_as_it_is(params):
    choice = Choice(params, 0.5, {})
    assert calibrate(choice, lambda params: 0.5) is choice
    plain = build(Architecture(1, 2, 8, 8, max_length=6), {"title": 20}, seed=0)[1]
    assert calibrate(Choice(plain, 0.5, {}), lambda params: 1.0).params is plain


def test_a_number_does_not_run_away(params):
    choice = calibrate(Choice(params, 0.0, {}), lambda params: numbers(params)[0])
    assert numbers(choice.params)[0] == pytest.approx(0.5 * 2 * MOST_STEPS)


def test_the_average_that_is_best_on_validation(params):
    tuned = jax.tree.map(lambda array: array + 1, params)

    def figure(params):
        return -abs(numbers(params)[1] - 5)  # 0 before, 10 after

    choice = average(Choice(tuned, figure(tuned), {}), params, (0.25, 0.5, 0.75), figure)
    assert choice.told == {"tuned_share": 0.5}
    assert numbers(choice.params)[1] == pytest.approx(5)
    assert average(Choice(params, 0.0, {}), params, (0.5,), figure).params is params
