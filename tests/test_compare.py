"""The comparison of two models on the same users."""

import json
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from seqrec_jax.data.corpus import Corpus
from seqrec_jax.data.split import Targets, leave_one_out
from seqrec_jax.data.store import open_dataset
from seqrec_jax.errors import InputError
from seqrec_jax.evaluation.compare import compare
from seqrec_jax.evaluation.evaluate import evaluate
from seqrec_jax.evaluation.ranking import Ranking
from seqrec_jax.model.recommender import Recommender
from seqrec_jax.model.spec import Architecture
from seqrec_jax.model.terms.transitions import count_transitions

RANKING = Ranking(ks=(5, 10))


@pytest.fixture(scope="module")
def corpus(shop_folder):
    return Corpus(open_dataset(shop_folder))


@pytest.fixture(scope="module")
def models(corpus):
    """A model that knows nothing, and one that knows what followed what in training."""
    architecture = Architecture(n_layers=1, hidden_size=16, inner_size=16, max_length=8, transitions=True)
    counted = {"transitions": count_transitions(corpus.train, corpus.data.catalog_sha256())}
    nothing = replace(Recommender.create(corpus, architecture, seed=1), statistics=counted)
    return nothing, replace(nothing, params={**nothing.params, "terms/transitions/weight": jnp.float32(1.0)})


def test_two_models_are_compared_user_by_user(models, corpus):
    found = compare(*models, corpus, ranking=RANKING, draws=500)
    one, other = (evaluate(model, corpus, ranking=RANKING, draws=100).test for model in models)
    for name, of in found.metrics.items():
        assert of.first == pytest.approx(one[name])
        assert of.second == pytest.approx(other[name])
        assert of.difference == pytest.approx(other[name] - one[name])
    assert found.metrics["ndcg_at_10"].difference > 0
    assert found.metrics["ndcg_at_10"].p < 0.01
    as_json = found.to_json()
    assert json.loads(json.dumps(as_json)) == as_json
    assert as_json["dataset"] == corpus.summary()
    assert as_json["metrics"]["mrr_at_5"] == found.metrics["mrr_at_5"]._asdict()
    assert any(name.startswith("tail_items (") and name.endswith(" targets)") for name in as_json["slices"])
    table = found.table()
    assert table["targets"].to_pylist() == ["all"] * 6 + list(found.slices)
    assert table["p"].to_pylist()[:6] == [of.p for of in found.metrics.values()]


def test_no_target_of_validation_is_needed(models, corpus):
    def without_valid(data):
        return leave_one_out(data)._replace(valid=Targets(*np.zeros((2, 0), np.int64)))

    found = compare(*models, Corpus(corpus.data, split=without_valid), ranking=RANKING, draws=100)
    assert found.metrics["ndcg_at_10"].difference > 0


def test_a_model_is_no_better_than_itself(models, corpus):
    of = compare(models[0], models[0], corpus, ranking=RANKING, draws=100).metrics["ndcg_at_10"]
    assert (of.difference, of.p, of.better, of.worse) == (0.0, 1.0, 0, 0)


def test_a_model_with_one_broken_row_is_not_compared(models, corpus):
    name = "item_encoder/tables/title"
    broken = replace(models[0], params={**models[0].params, name: models[0].params[name].at[7].set(jnp.nan)})
    with pytest.raises(InputError, match=rf"parameter {name} holds \d+ values of [\d,]+ that are not finite"):
        compare(models[0], broken, corpus, ranking=RANKING, draws=100)


def test_bad_arguments_are_refused(models, corpus):
    other = replace(corpus.data, folder=Path("other"))
    other.__dict__["checked"] = other
    for arguments, message in (
        ({"metric": "ndcg_at_7"}, r"compare\.metric = 'ndcg_at_7' is not one of recall_at_5"),
        ({"draws": 3}, r"compare\.draws = 3 is below 100"),
        ({"corpus": Corpus([corpus.data, other])}, r"Corpus\.datasets = dataset, other: compare takes one dataset"),
    ):
        with pytest.raises(InputError, match=message):
            compare(**({"first": models[0], "second": models[1], "corpus": corpus} | arguments))
