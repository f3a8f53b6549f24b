"""Vectors that only shared words make alike, and the head that reads them."""

import jax.numpy as jnp
import numpy as np
from conftest import graph_of
from flax import nnx

from seqrec_jax.items.lexical import lexical_vectors
from seqrec_jax.model.blocks.attention import attention_bias
from seqrec_jax.model.spec import Architecture
from seqrec_jax.model.terms.lexical import LexicalTerm


def tokens(*items):
    padded = np.zeros((len(items) + 1, 6), np.uint16)
    for row, item in enumerate(items, 1):
        padded[row, : len(item)] = item
    return padded


def tf_idf(catalog, vocab_size):
    counts = np.zeros((len(catalog) - 1, vocab_size))
    for row, item in enumerate(catalog[1:]):
        counts[row, np.unique(item[item > 0])] = 1
    weighted = counts * np.log(len(counts) / np.maximum(counts.sum(0), 1))
    return weighted / np.maximum(np.linalg.norm(weighted, axis=1, keepdims=True), 1e-9)


def test_products_are_the_cosines_of_tf_idf():
    rng = np.random.default_rng(0)
    catalog = tokens(*(rng.integers(1, 50, rng.integers(1, 7)) for _ in range(40)))
    vectors = lexical_vectors([catalog[:, :3], catalog[:, 3:]], 50, 4096).astype(np.float64)
    expected = tf_idf(catalog, 50)
    assert np.abs(vectors[1:] @ vectors[1:].T - expected @ expected.T).max() < 0.1
    assert not vectors[0].any()
    np.testing.assert_allclose(np.linalg.norm(vectors[1:], axis=1), 1, rtol=1e-3)


def test_each_catalog_has_frequencies_of_its_own_and_the_same_projection():
    first, second = tokens([1, 2], [1, 3], [2, 4]), tokens([1, 5], [5, 6], [1, 6])
    joined = lexical_vectors([np.concatenate([first, second[1:]])], 10, 32, np.array([0, 3, 6]))
    np.testing.assert_array_equal(joined[:4], lexical_vectors([first], 10, 32))
    np.testing.assert_array_equal(joined[4:], lexical_vectors([second], 10, 32)[1:])


def test_a_word_that_every_item_has_tells_nothing():
    vectors = lexical_vectors([tokens([7, 1], [7, 2], [7])], 10, 64)
    assert abs(float(vectors[1].astype(np.float32) @ vectors[2].astype(np.float32))) < 0.5
    assert not vectors[3].any()


def test_a_fresh_head_asks_for_the_words_of_the_latest_items_of_the_same_user():
    head = LexicalTerm(Architecture(hidden_size=8, max_length=6, lexical_size=6), rngs=nnx.Rngs(0))
    segments = jnp.array([[1, 1, 1, 2, 2, 0]])
    vectors = jnp.eye(6)[None]
    nothing = jnp.zeros((1, 6, 8))
    asked = np.asarray(head.read_sequence(nothing, nothing, vectors, attention_bias(segments)))[0, :, 8:]
    assert (np.diff(asked[2, :3]) > 0).all()  # the later, the more
    np.testing.assert_allclose(asked[2].sum(), 5, rtol=1e-5)
    np.testing.assert_allclose(asked[4, :3], 0, atol=1e-6)
    assert asked[4, 4] > asked[4, 3] > 0


def test_an_untrained_model_finds_what_shares_words(shop):
    graph = graph_of(Architecture(1, 2, 8, 8, max_length=20, lexical_size=64), title=shop.vocab_size)
    title = shop.tokens("title")
    features = {"title": title, "lexical": lexical_vectors([title], shop.vocab_size, 64)}
    model = graph.merge(graph.init(0))
    catalog = model.encode_items(features)
    assert catalog.shape == (shop.n_items + 1, 72)
    items = jnp.arange(1, 41)
    ones, zeros = jnp.ones((40, 1), jnp.int32), jnp.zeros((40, 1), jnp.int32)
    hidden = model.encode_sequences(catalog[items][:, None], ones, zeros)[:, 0]
    assert float(((hidden @ catalog[1:].T).argmax(1) == items - 1).mean()) > 0.9  # an item is most like itself
