"""The reference's unit of cost, against figures from the paper's own runs."""

import pytest

from seqrec_jax.model import parameters
from seqrec_jax.model.recommender import Architecture, build
from seqrec_jax.training.flops import forward_multiply_adds, total_multiply_adds


@pytest.mark.parametrize(
    ("layers", "hidden", "heads", "negatives", "forward", "total"),
    [
        (1, 64, 1, 100, 215_584_000, 321_490_176),
        (2, 64, 1, 300, 377_100_800, 692_722_176),
        (2, 64, 2, 100, 379_008_000, 484_914_176),
        (16, 256, 4, 100, 41_381_478_400, 43_075_977_216),
        (24, 256, 4, 300, 61_649_510_400, 66_699_452_416),
    ],
)
def test_costs_are_those_the_reference_logged(layers, hidden, heads, negatives, forward, total):
    architecture = Architecture(n_layers=layers, hidden_size=hidden, inner_size=hidden, n_heads=heads)
    assert forward_multiply_adds(architecture, 2, 128) == forward
    assert total_multiply_adds(architecture, 2, 128, negatives, shared=False) == total


def test_parameters_are_counted_as_the_reference_counted_them():
    _, params = build(Architecture(n_layers=8, hidden_size=64, inner_size=64), {"title": 100, "brand": 50}, seed=0)
    assert parameters.count(params, with_tables=False) == 213_312
    assert parameters.count(params) == 213_312 + 150 * 64
