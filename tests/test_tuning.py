"""What is trained and what is fixed, additions of low rank, and the penalty, without a model."""

import jax.numpy as jnp
import numpy as np
import pytest

from seqrec_jax.training.tuning import DOWN, UP, Anchor, Fixed, Tuning


@pytest.fixture
def params():
    rng = np.random.default_rng(0)
    shapes = {"blocks/0/inner/kernel": (6, 4), "blocks/0/inner/bias": (4,), "norm/scale": (4,)}
    return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


def test_by_default_everything_is_trained(params):
    trained, fixed = Tuning().split(params)
    assert trained == params
    assert fixed == Fixed()
    assert Tuning().whole(trained, fixed) == params


def test_what_is_not_trained_is_fixed(params):
    tuning = Tuning(trains=lambda name: name.endswith("bias"))
    trained, fixed = tuning.split(params)
    assert set(trained) == {"blocks/0/inner/bias"}
    assert set(fixed.params) == params.keys() - trained.keys()
    whole = tuning.whole({name: array + 1 for name, array in trained.items()}, fixed)
    assert whole.keys() == params.keys()
    for name, array in whole.items():
        np.testing.assert_array_equal(array, params[name] + (name == "blocks/0/inner/bias"))


def test_additions_of_low_rank_begin_at_nothing_and_depend_on_the_seed(params):
    tuning = Tuning(lambda name: False, lambda name: name.startswith("blocks/"), rank=2)
    trained, fixed = tuning.split(params, seed=1)
    kernel = "blocks/0/inner/kernel"
    assert {name: array.shape for name, array in trained.items()} == {kernel + DOWN: (6, 2), kernel + UP: (2, 4)}
    for name, array in tuning.whole(trained, fixed).items():
        np.testing.assert_array_equal(array, params[name])
    moved = trained | {kernel + UP: jnp.ones((2, 4))}
    assert np.linalg.matrix_rank(tuning.whole(moved, fixed)[kernel] - params[kernel], tol=1e-5) == 1
    other, _ = tuning.split(params, seed=2)
    assert (other[kernel + DOWN] != trained[kernel + DOWN]).any()


def test_the_penalty_weighs_what_is_trained_alone(params):
    tuning = Tuning(lambda name: name != "norm/scale", strength=2.0)
    shifted = {name: array + 0.5 for name, array in params.items()}
    trained, fixed = tuning.split(shifted, anchor=Anchor(params))
    assert "norm/scale" not in fixed.anchor.start
    assert float(tuning.penalty(trained, fixed)) == pytest.approx(2.0 * 0.25 * 28, rel=1e-5)  # no factor 1/2
    importance = {name: jnp.full_like(array, float(array.ndim == 1)) for name, array in params.items()}
    trained, fixed = tuning.split(shifted, anchor=Anchor(params, importance))
    assert float(tuning.penalty(trained, fixed)) == pytest.approx(2.0 * 0.25 * 4, rel=1e-5)
    assert Tuning().split(params, anchor=Anchor(params))[1].anchor == Anchor()  # nothing to hold without a strength
