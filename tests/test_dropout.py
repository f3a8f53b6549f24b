import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqrec_jax.dropout import dropout


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_the_share_that_is_zeroed_and_the_mean(rate):
    x = np.full((301, 7, 101), 2.0, np.float32)  # an odd number of elements
    dropped = np.asarray(dropout(jnp.asarray(x), rate, jax.random.key(0)))
    assert (dropped == 0).mean() == pytest.approx(rate, abs=0.005)
    np.testing.assert_allclose(dropped[dropped != 0], 2 / (1 - rate), rtol=1e-4)


def test_elements_are_dropped_apart_from_their_neighbours():
    zero = np.asarray(dropout(jnp.ones(1 << 18), 0.5, jax.random.key(1))) == 0
    for shift in (1, 2, 3, 64):
        assert abs(np.corrcoef(zero[shift:], zero[:-shift])[0, 1]) < 0.01


def test_keys_differ_and_repeat_and_none_switches_off():
    x = jnp.ones(1000)
    one, other = (dropout(x, 0.5, jax.random.key(seed)) for seed in (0, 1))
    assert not np.array_equal(one, other)
    np.testing.assert_array_equal(one, dropout(x, 0.5, jax.random.key(0)))
    assert dropout(x, 0.5, None) is x
    assert dropout(x, 0.0, jax.random.key(0)) is x
