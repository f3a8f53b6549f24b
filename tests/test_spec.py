"""What a recommender is: its architecture and the features that it reads."""

import dataclasses
import json

import pytest

from seqrec_jax.errors import InputError
from seqrec_jax.model.spec import Architecture, Spec

SMALL = Architecture(n_layers=1, n_heads=2, hidden_size=8, inner_size=8, max_length=6)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"hidden_size": 65}, "Architecture.hidden_size = 65 is not divisible by Architecture.n_heads = 2"),
        ({"pooling": "median"}, "Architecture.pooling = 'median'"),
        ({"hidden_dropout": 1.0}, "Architecture.hidden_dropout"),
        ({"n_layers": 0}, "Architecture.n_layers = 0"),
    ],
)
def test_impossible_shapes_are_refused(wrong, words):
    with pytest.raises(InputError, match=words):
        Architecture(**wrong)


@pytest.mark.parametrize("more", [{}, {"item_encoder": "text_and_id", "lexical_size": 16}, {"item_encoder": "id"}])
def test_a_spec_comes_back_from_json(shop, more):
    spec = Spec.of(dataclasses.replace(SMALL, **more), shop, {"title": 4, "brand": 2})
    again = Spec.from_json(json.loads(json.dumps(spec.to_json())))
    assert again == spec
    assert again.graph() is spec.graph()
    assert spec.output_size == 8 + more.get("lexical_size", 0)
    assert spec.has_rows == (spec.catalog_sha256 is not None) == ("item_encoder" in more)


def test_a_model_of_another_version_is_refused(shop):
    record = Spec.of(SMALL, shop).to_json()
    with pytest.raises(InputError, match=r"was written in version 1 .* this program reads 2; train it again"):
        Spec.from_json(record | {"version": 1})


@pytest.mark.parametrize(
    ("max_tokens", "words"),
    [({"colour": 3}, "max_tokens names 'colour'; .* has title, brand"), ({}, r"max_tokens = \{\} names no text")],
)
def test_texts_that_are_not_there_are_refused(shop, max_tokens, words):
    with pytest.raises(InputError, match=words):
        Spec.of(SMALL, shop, max_tokens)
