"""What a training configuration refuses, and what it is as JSON."""

import functools
import json

import pytest

from seqrec_jax.describe import describe
from seqrec_jax.errors import InputError
from seqrec_jax.evaluation.ranking import Ranking
from seqrec_jax.losses.full_softmax import full_softmax
from seqrec_jax.losses.negatives import shared
from seqrec_jax.losses.sampled_softmax import sampled_softmax
from seqrec_jax.training.config import TrainConfig


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"epochs": 0}, "TrainConfig.epochs = 0 is below 1"),
        ({"eval_every": 0}, "TrainConfig.eval_every = 0 is below 1"),
        ({"accumulation_steps": 0}, "TrainConfig.accumulation_steps = 0 is below 1"),
        ({"train_batch_size": 0}, "TrainConfig.train_batch_size = 0 is below 1"),
        ({"train_batch_size": "all"}, "TrainConfig.train_batch_size = 'all' is neither a number nor 'auto'"),
        ({"stopping_step": -1}, "TrainConfig.stopping_step = -1 is below 0"),
        ({"skip_nonfinite": -1}, "TrainConfig.skip_nonfinite = -1 is below 0"),
        ({"seed": -1}, r"TrainConfig.seed = -1: must be a whole number, from 0 to 2\^32 - 1"),
        ({"seed": 1 << 32}, r"TrainConfig.seed = 4294967296: must be a whole number"),
        ({"learning_rate": 0.0}, "TrainConfig.learning_rate = 0.0 is not above 0"),
        ({"max_grad_norm": 0.0}, "TrainConfig.max_grad_norm = 0.0 is not above 0"),
        ({"ema_decay": 1.0}, r"TrainConfig.ema_decay = 1.0 is not in \(0, 1\)"),
        ({"compute_dtype": "float8"}, "TrainConfig.compute_dtype = 'float8' is not one of float32, bfloat16"),
        ({"loss_positions": "some"}, "TrainConfig.loss_positions = 'some' is not one of all, last"),
        ({"valid_metric": "auc"}, "TrainConfig.valid_metric = 'auc' is not one of recall_at_5"),
        ({"valid_metric": "ndcg_at_7"}, "TrainConfig.valid_metric = 'ndcg_at_7'"),
        ({"ranking": Ranking(ks=(5,))}, "TrainConfig.valid_metric = 'ndcg_at_10' is not one of recall_at_5"),
    ],
)
def test_senseless_settings_are_refused_by_name(settings, words):
    with pytest.raises(InputError, match=words):
        TrainConfig(**settings)


def test_a_configuration_is_json_and_equal_for_equal_settings():
    config = TrainConfig(loss=functools.partial(sampled_softmax, negatives=shared, n_negatives=64))
    described = describe(config)
    assert json.loads(json.dumps(described)) == described
    assert described["loss"] == describe(functools.partial(sampled_softmax, n_negatives=64, negatives=shared))
    assert described["loss"]["n_negatives"] == 64
    assert described["optimizer"]["name"] == "adam"
    assert describe(TrainConfig(loss=full_softmax)) != described
    assert TrainConfig(train_batch_size="auto").train_batch_size == "auto"
