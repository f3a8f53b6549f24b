"""What validation chooses once training is over."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqrec_jax.finetuning.config import FinetuneConfig
from seqrec_jax.finetuning.model_selection import (
    MOST_STEPS,
    Candidate,
    average,
    calibrate,
    choose_from_grids,
    select,
)
from seqrec_jax.model.spec import Architecture
from tests.conftest import graph_of

TRUST, REPEAT, TRANSITIONS = "terms/lexical/trust", "terms/repeat/offset", "terms/transitions/weight"


@pytest.fixture(scope="module")
def params():
    architecture = Architecture(1, 2, 8, 8, max_length=6, lexical_size=4, repeat_offset=True, transitions=True)
    return graph_of(architecture, title=20).init(0)


def weights(params):
    return 10 * float(params[TRUST]), 10 * float(params[REPEAT])


def test_each_weight_moves_to_where_validation_is_best_and_nothing_else_does(params):
    def score(params):
        trust, repeat = weights(params)
        return 1 - (trust + 2.1) ** 2 / 100 - (repeat - 3.2) ** 2 / 1000

    chosen = calibrate(Candidate(params, score(params), {"phase": "head"}), score)
    assert weights(chosen.params) == pytest.approx((-2.0, 3.0), abs=1e-5)
    assert chosen.score == score(chosen.params) > score(params)
    assert chosen.report == {
        "phase": "head", "lexical/trust": pytest.approx(-2.0), "repeat/offset": pytest.approx(3.0)
    }  # fmt: skip
    for name, array in chosen.params.items():
        assert jnp.array_equal(array, params[name]) == (name not in (TRUST, REPEAT))


def test_what_nothing_improves_is_left_as_it_is(params):
    candidate = Candidate(params, 0.5, {})
    assert calibrate(candidate, lambda params: 0.5) is candidate
    plain = {name: array for name, array in params.items() if not name.startswith("terms/")}
    bare = Candidate(plain, 0.5, {})
    assert choose_from_grids(calibrate(bare, lambda params: 1.0), lambda params: 1.0, 0.0) is bare


def test_a_weight_does_not_run_away(params):
    chosen = calibrate(Candidate(params, 0.0, {}), lambda params: weights(params)[0])
    assert weights(chosen.params)[0] == pytest.approx(0.5 * 2 * MOST_STEPS)


def test_of_the_values_of_a_grid_the_smallest_that_is_about_as_good_as_the_best(params):
    def score(params):
        return 1 - abs(float(params[TRANSITIONS]) - 2.4)

    chosen = choose_from_grids(Candidate(params, score(params), {}), score, noise=0.0)
    assert chosen.report == {"transitions/weight": pytest.approx(24.0)}
    assert float(choose_from_grids(chosen, score, noise=0.9).params[TRANSITIONS]) == pytest.approx(1.6)


def test_the_average_that_is_best_on_validation(params):
    tuned = jax.tree.map(lambda array: array + 1, params)

    def score(params):
        return -abs(weights(params)[1] - 5)  # 0 before, 10 after

    chosen = average(Candidate(tuned, score(tuned), {}), params, (0.25, 0.5, 0.75), score)
    assert chosen.report == {"tuned_share": 0.5}
    assert weights(chosen.params)[1] == pytest.approx(5)
    assert average(Candidate(params, 0.0, {}), params, (0.5,), score).params is params


def test_the_earlier_of_what_chance_may_have_told_apart(params):
    of_phases = {"first": {"p": jnp.float32(1)}, "second": {"p": jnp.float32(2)}}
    config = FinetuneConfig(calibrates=False)

    def ranks(params, gains):  # of 100 targets so many are found first
        return np.where(np.arange(100) < 20 + gains[int(params["p"])], 0, 99)

    clear = functools.partial(ranks, gains=(0, 30, 60))
    assert select(of_phases, {"p": jnp.float32(0)}, clear, config).report == {"phase": "second"}
    unclear = functools.partial(ranks, gains=(0, 30, 31))
    assert select(of_phases, {"p": jnp.float32(0)}, unclear, config).report == {"phase": "first"}
    worse = functools.partial(ranks, gains=(70, 0, 1))
    assert select(of_phases, {"p": jnp.float32(0)}, worse, config).report == {"phase": "checkpoint"}
    assert select(of_phases, None, worse, config).report == {"phase": "first"}  # what began afresh is no candidate
