"""The reference's unit of cost, against figures from the paper's own runs."""

from types import SimpleNamespace

import pytest

from seqrec_jax.describe import describe
from seqrec_jax.losses.full_softmax import full_softmax
from seqrec_jax.model import parameters
from seqrec_jax.model.spec import Architecture, Spec
from seqrec_jax.runs.flops import forward_multiply_adds, total_multiply_adds
from seqrec_jax.runs.reference_params import reference_params
from seqrec_jax.training.config import TrainConfig


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


def params_of(corpus, config, **architecture):
    spec = Spec.of(Architecture(**architecture), corpus.data)
    model = SimpleNamespace(spec=spec, graph=spec.graph(), params=spec.graph().shapes)
    return model, reference_params(model, corpus, describe(config), 1000, 128)


def test_parameters_are_counted_as_the_reference_counted_them(corpus):
    model, params = params_of(corpus, TrainConfig(), n_layers=8, hidden_size=64, inner_size=64)
    assert params["model_non_emb_params"] == parameters.count(model.params, model.graph.tables) == 213_312
    assert params["model_total_params"] == 213_312 + sum(f.rows for f in model.spec.texts) * 64
    assert params["selected_features"] == [f.name for f in model.spec.texts]
    assert (params["loss"], params["nce_sampling_strategy"]) == ("sampled_softmax", "popularity")
    assert (params["nce_num_negatives"], params["nce_global_negatives"]) == (300, False)
    assert (params["weight_decay"], params["nce_temperature"]) == (1e-5, 1.0)


def test_the_full_softmax_encodes_the_catalog_once_a_step(corpus):
    config = TrainConfig(loss=full_softmax)
    model, params = params_of(corpus, config, n_layers=1, hidden_size=16, item_encoder="text_and_id")
    assert params["loss"] == "full_softmax"
    assert params["nce_num_negatives"] == corpus.data.n_items
    item = len(model.spec.texts) * 16 * 16
    assert params["total_flops"] == params["forward_flops"] + (128 + corpus.data.n_items) * item
    assert params["selected_features"][-1] == "item_id"
