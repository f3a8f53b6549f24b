"""The recommender as a value: made, laid over another catalog, averaged."""

import dataclasses
import re

import numpy as np
import pytest

from seqrec_jax.errors import InputError
from seqrec_jax.model import parameters
from seqrec_jax.model.recommender import Recommender
from seqrec_jax.model.spec import Architecture

SMALL = Architecture(n_layers=1, n_heads=2, hidden_size=8, inner_size=8, max_length=6)


def test_parameters_follow_from_the_seed_alone(corpus):
    one, again, other = (Recommender.create(corpus, SMALL, seed=seed) for seed in (1, 1, 2))
    for name, array in one.params.items():
        np.testing.assert_array_equal(array, again.params[name])
    assert not np.array_equal(one.params["position_table"], other.params["position_table"])


def test_an_adapted_model_keeps_what_it_has_and_begins_the_rest_at_nothing(corpus, shop):
    model = Recommender.create(corpus, SMALL, seed=1)
    adapted = model.adapt(shop, {"item_encoder": "text_and_id", "repeat_offset": True, "lexical_size": 16})
    for name, array in model.params.items():
        np.testing.assert_array_equal(array, adapted.params[name])
    assert not adapted.params["item_encoder/tables/item_id"].any()
    assert adapted.params["terms/repeat/offset"] == 0
    assert adapted.params["terms/lexical/query/kernel"].any()
    assert adapted.spec.catalog_sha256 == shop.catalog_sha256()
    trained = adapted.replace(params={name: array + 1 for name, array in adapted.params.items()})
    np.testing.assert_array_equal(trained.adapt(shop).params["item_encoder/tables/item_id"], 1)
    elsewhere = dataclasses.replace(trained.spec, catalog_sha256="another")
    moved = trained.replace(spec=elsewhere).adapt(shop)
    assert not moved.params["item_encoder/tables/item_id"].any()
    assert "item_encoder/tables/item_id" not in trained.adapt(shop, {"item_encoder": "text"}).params


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"hidden_size": 16}, "changes names 'hidden_size'; what .* allow to change is item_encoder"),
     ({"hidden_dropout": 2.0}, "Architecture.hidden_dropout = 2.0 is not in")],
)  # fmt: skip
def test_changes_that_parameters_do_not_fit_are_refused(corpus, shop, changes, words):
    with pytest.raises(InputError, match=words):
        Recommender.create(corpus, SMALL).adapt(shop, changes)


def test_a_model_of_rows_cannot_begin_to_read_text(corpus, shop):
    model = Recommender.create(corpus, dataclasses.replace(SMALL, item_encoder="id"))
    with pytest.raises(InputError, match="has rows for its items and reads no text"):
        model.adapt(shop, {"item_encoder": "text_and_id"})


def test_a_dataset_that_does_not_fit_is_refused(corpus, shop):
    model = Recommender.create(corpus, dataclasses.replace(SMALL, item_encoder="text_and_id"))
    model.check(shop)
    for wrong, words in (
        ({"tokenizer_sha256": "x"}, "another tokenizer"),
        ({"catalog_sha256": "x"}, "another catalog"),
    ):
        with pytest.raises(InputError, match=words):
            model.replace(spec=dataclasses.replace(model.spec, **wrong)).check(shop)


@pytest.mark.parametrize(("broken", "large"), [(np.nan, 1), (np.inf, 1 << 20)])
def test_parameters_that_are_not_finite_are_named(corpus, shop, monkeypatch, broken, large):
    monkeypatch.setattr(parameters, "LARGE", large)  # one array is tested on its device, the other on the host
    model = Recommender.create(corpus, SMALL)
    params = model.params | {"norm/bias": model.params["norm/bias"].at[2].set(broken)}
    other = model.replace(params=params)
    for use in (other.check, other.index):
        with pytest.raises(InputError, match=r"parameter norm/bias holds 1 values of \d+ that are not finite"):
            use(shop)


def test_features_that_a_dataset_lacks_are_read_as_empty_and_new_ones_with_the_first(corpus, shop):
    model = Recommender.create(corpus, SMALL, max_tokens={"title": 5})
    adapted = model.adapt(shop)
    title, brand = shop.tokens("title", 5), shop.tokens("brand")
    np.testing.assert_array_equal(adapted.features(shop)["title"], np.concatenate([title, brand], 1))
    both = Recommender.create(corpus, SMALL)
    lacking = dataclasses.replace(both.spec.texts[0], name="subtitle")
    features = both.replace(spec=dataclasses.replace(both.spec, features=(lacking, both.spec.texts[1]))).features(shop)
    assert not features["subtitle"].any()
    assert features["brand"].any()


def test_the_average_of_two_models(corpus):
    one, other = (Recommender.create(corpus, SMALL, seed=seed) for seed in (1, 2))
    mean = one.average(other, 0.25).params["position_table"]
    expected = 0.75 * one.params["position_table"] + 0.25 * other.params["position_table"]
    np.testing.assert_allclose(mean, expected, atol=1e-7)


def test_settings_of_another_type_are_refused_before_anything_runs():
    for make, message in (
        (lambda: Architecture(n_layers="2"), "Architecture.n_layers = '2' is no int"),
        (lambda: Architecture(embedding_size=0), "Architecture.embedding_size = 0 is below 1"),
        (lambda: Architecture(n_heads=0), "Architecture.n_heads = 0 is below 1"),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            make()
