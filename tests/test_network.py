"""The network against a plain NumPy implementation written from the description of SRT."""

from math import erf

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import graph_of
from flax import nnx

from seqrec_jax.dropout import DropoutKeys
from seqrec_jax.model.blocks.attention import SelfAttention, attention_bias
from seqrec_jax.model.network import items_read
from seqrec_jax.model.parameters import Knob, Norm, Table, count
from seqrec_jax.model.spec import Architecture

VOCAB = {"title": 30, "brand": 12}


def numpy_layer_norm(x, p, name):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12) * p[f"{name}/scale"] + p[f"{name}/bias"]


def numpy_items(p, tokens):
    pooled = [
        np.stack([p[f"item_encoder/tables/{name}"][ids[ids > 0]].sum(0) for ids in tokens[name]]) for name in VOCAB
    ]
    return np.concatenate(pooled, -1) @ p["item_encoder/projection/kernel"] + p["item_encoder/projection/bias"]


def numpy_sequence(p, items, n_layers, n_heads):
    """[length, hidden] of one unpadded history -> [length, hidden]."""
    length = len(items)
    x = numpy_layer_norm(items + p["position_table"][:length], p, "norm")
    for i in range(n_layers):

        def linear(y, name, block=f"blocks/{i}"):
            return y @ p[f"{block}/{name}/kernel"] + p[f"{block}/{name}/bias"]

        q, k, v = (linear(x, f"attention/{name}") for name in ("query", "key", "value"))
        heads = []
        for part in np.split(np.arange(x.shape[1]), n_heads):
            logits = q[:, part] @ k[:, part].T / np.sqrt(len(part))
            logits[np.triu_indices(length, 1)] = -np.inf
            weights = np.exp(logits - logits.max(-1, keepdims=True))
            heads.append(weights / weights.sum(-1, keepdims=True) @ v[:, part])
        x = numpy_layer_norm(x + linear(np.concatenate(heads, -1), "attention/output"), p, f"blocks/{i}/attention/norm")
        inner = linear(x, "feed_forward/inner")
        inner = inner * 0.5 * (1 + np.vectorize(erf)(inner / np.sqrt(2)))
        x = numpy_layer_norm(x + linear(inner, "feed_forward/output"), p, f"blocks/{i}/feed_forward/norm")
    return x


@pytest.mark.parametrize(("n_layers", "n_heads", "embedding_size"), [(1, 1, None), (3, 4, 24), (2, 2, 8)])
def test_outputs_equal_plain_numpy(n_layers, n_heads, embedding_size):
    rng = np.random.default_rng(0)
    architecture = Architecture(
        n_layers=n_layers, n_heads=n_heads, hidden_size=16, inner_size=40, embedding_size=embedding_size, max_length=7
    )
    graph = graph_of(architecture, **VOCAB)
    p = {name: rng.normal(0, 0.3, of.shape) for name, of in graph.shapes.items()}
    model = graph.merge({name: jnp.asarray(array, jnp.float32) for name, array in p.items()})
    tokens = {name: rng.integers(0, size, (9, 5)) for name, size in VOCAB.items()}
    items = numpy_items(p, tokens)
    np.testing.assert_allclose(model.encode_items(tokens), items, atol=2e-5)

    history = [3, 1, 1, 8, 5]
    expected = numpy_sequence(p, items[history], n_layers, n_heads)
    padded = np.array([[*history, 0, 0]])
    columns = np.arange(7)
    outputs = model.encode_sequences(
        jnp.asarray(items, jnp.float32)[padded], (columns < 5).astype(int)[None], columns[None]
    )
    np.testing.assert_allclose(outputs[0, :5], expected, atol=5e-5)
    alone = model.encode_histories(jnp.asarray(items, jnp.float32), jnp.asarray(padded), jnp.array([5]))
    np.testing.assert_allclose(alone[0], expected[-1], atol=5e-5)


def test_pooling_leaves_padding_out():
    tokens = {"title": np.array([[3, 4, 0], [5, 0, 0]]), "brand": np.array([[1], [2]])}
    for pooling in ("sum", "mean", "max"):
        graph = graph_of(Architecture(hidden_size=8, n_heads=1, pooling=pooling), **VOCAB)
        longer = {name: np.pad(ids, ((0, 0), (0, 3))) for name, ids in tokens.items()}
        model = graph.merge(graph.init(0))
        np.testing.assert_array_equal(model.encode_items(tokens), model.encode_items(longer))


def test_an_item_has_its_text_its_own_row_or_their_sum():
    features = {"title": np.array([[3, 4], [5, 0]]), "brand": np.array([[1], [2]]), "item_id": np.array([4, 0])}
    rows = VOCAB | {"item_id": 9}
    graph = graph_of(Architecture(hidden_size=8, n_heads=1, item_encoder="text_and_id"), **rows)
    params = graph.init(0)
    own = np.array(params["item_encoder/tables/item_id"])[[4, 0]] * [[1], [0]]  # row 0 is no row
    text = numpy_items({name: np.asarray(array) for name, array in params.items()}, features)
    np.testing.assert_allclose(graph.merge(params).encode_items(features), text + own, atol=1e-7)
    assert count(params, graph.tables) == count(params) - 9 * 8 - 8 * sum(VOCAB.values())

    graph = graph_of(Architecture(hidden_size=8, n_heads=1, item_encoder="id"), item_id=9)
    np.testing.assert_array_equal(
        graph.merge(graph.init(0)).encode_items(features)[0], graph.init(0)["item_encoder/tables/item_id"][4]
    )


def test_id_dropout_leaves_whole_rows_out_and_scales_the_others():
    architecture = Architecture(hidden_size=8, n_heads=1, item_encoder="id", id_dropout=0.25)
    graph = graph_of(architecture, item_id=4001)
    model, items = graph.merge(graph.init(0)), {"item_id": np.arange(4001)}
    full, dropped = model.encode_items(items), np.asarray(model.encode_items(items, jax.random.key(0)))
    gone = (dropped == 0).all(1)
    assert gone.mean() == pytest.approx(0.25, abs=0.03)
    np.testing.assert_allclose(dropped[~gone], np.asarray(full)[~gone] / 0.75, rtol=1e-5)
    some = {"item_id": np.array([7, 4000, 7, 12])}
    np.testing.assert_array_equal(model.encode_items(some, jax.random.key(0)), dropped[some["item_id"]])


def test_token_dropout_leaves_the_same_words_out_everywhere_in_a_step():
    architecture = Architecture(hidden_size=8, n_heads=1, token_dropout=0.4)
    graph = graph_of(architecture, title=2001)
    model, alone = graph.merge(graph.init(0)), np.arange(2001)[:, None]
    nothing = np.asarray(model.encode_items({"title": np.zeros((1, 1), np.int32)}))
    full = np.asarray(model.encode_items({"title": alone}))
    dropped = np.asarray(model.encode_items({"title": alone}, jax.random.key(0)))
    gone = np.isclose(dropped, nothing).all(1)
    assert gone.mean() == pytest.approx(0.4, abs=0.04)
    np.testing.assert_allclose(dropped[~gone] - nothing, (full[~gone] - nothing) / 0.6, rtol=1e-4, atol=1e-7)
    pairs = np.stack([alone[1:-1, 0], alone[2:, 0]], 1)
    both = np.asarray(model.encode_items({"title": pairs}, jax.random.key(0)))
    np.testing.assert_allclose(both, dropped[1:-1] + dropped[2:] - nothing, atol=1e-6)


def test_histories_hold_each_item_of_the_window_once():
    items = jnp.array([[3, 5, 3, 4, 3, 9], [1, 2, 2, 0, 0, 0]])
    positions = jnp.array([[0, 1, 2, 0, 1, 2], [0, 1, 2, 0, 0, 0]])
    slots = [2, 1, 5, 8]
    row_items, counts = items_read(items, positions, jnp.array(slots))
    held = [sorted(row[mask].tolist()) for row, mask in zip(np.asarray(row_items), np.asarray(counts), strict=True)]
    assert held == [[3, 5], [3, 5], [3, 4, 9], [1, 2]]


def test_plain_attention_agrees_with_the_one_that_drops_weights():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 6, 8)), jnp.float32)
    segments = jnp.array([[1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 1, 1]])
    plain, dropping = (
        SelfAttention(Architecture(hidden_size=8, attention_dropout=rate), rngs=nnx.Rngs(0)) for rate in (0.0, 1e-9)
    )
    bias, keys = attention_bias(segments), DropoutKeys(jax.random.key(0), jnp.arange(2, dtype=jnp.uint32))
    np.testing.assert_allclose(plain.attend(x, bias, None), dropping.attend(x, bias, keys), atol=1e-5)


def test_initialisation_is_the_papers():
    params = graph_of(Architecture(hidden_size=64, inner_size=256), title=5000).init(3)
    for name, array in params.items():
        if name.endswith("/scale"):
            assert (array == 1).all()
        elif name.endswith("/bias"):
            assert (array == 0).all()
        else:
            assert abs(float(array.std()) - 0.02) < 0.002


@pytest.mark.parametrize("block", ["srt", pytest.param("ligr", marks=pytest.mark.slow)])
def test_packed_rows_give_what_each_history_gives_alone(block):
    graph = graph_of(Architecture(hidden_size=8, n_heads=2, inner_size=12, max_length=6, block=block), title=30)
    model = graph.merge({name: 4 * array for name, array in graph.init(0).items()})
    catalog = model.encode_items({"title": np.arange(30)[:, None]})
    packed = jnp.array([[3, 5, 9, 4, 7, 0]])
    hidden = model.encode_sequences(catalog[packed], jnp.array([[1, 1, 1, 2, 2, 0]]), jnp.array([[0, 1, 2, 0, 1, 0]]))
    alone = model.encode_histories(catalog, jnp.array([[3, 5, 9], [4, 7, 0]]), jnp.array([3, 2]))
    np.testing.assert_allclose(hidden[0, [2, 4]], alone, atol=1e-5)


def test_a_ligr_block_is_pre_norm_with_gated_residuals_and_swiglu():
    graph = graph_of(Architecture(n_layers=1, n_heads=1, hidden_size=8, inner_size=12, block="ligr"), title=30)
    params = {name: 10 * array if graph.kinds[name] is not Norm else array for name, array in graph.init(1).items()}
    p = {name.removeprefix("blocks/0/"): np.asarray(array) for name, array in params.items()}

    def linear(y, name):
        return y @ p[f"{name}/kernel"] + p[f"{name}/bias"]

    def sigmoid(y):
        return 1 / (1 + np.exp(-y))

    x = np.random.default_rng(0).normal(size=(1, 8))  # one item, which looks at itself alone
    normed = numpy_layer_norm(x, p, "attention_norm")
    attended = linear(linear(normed, "attention/value"), "attention/output")
    y = x + sigmoid(linear(x, "attention_residual/gate")) * attended
    normed = numpy_layer_norm(y, p, "feed_forward_norm")
    gate = linear(normed, "feed_forward/gate")
    fed = linear(gate * sigmoid(gate) * linear(normed, "feed_forward/inner"), "feed_forward/output")
    expected = y + sigmoid(linear(y, "feed_forward_residual/gate")) * fed
    block = graph.merge(params).blocks[0]
    got = block(jnp.asarray(x, jnp.float32)[None], attention_bias(jnp.ones((1, 1), jnp.int32)), None)
    np.testing.assert_allclose(got[0], expected, atol=1e-4)


def test_parameters_say_by_their_types_what_is_cast():
    architecture = Architecture(hidden_size=8, n_layers=1, lexical_size=4, repeat_offset=True, transitions=True)
    graph = graph_of(architecture, title=30)
    cast = graph.cast(graph.init(0), "bfloat16")
    kept = {name for name, array in cast.items() if array.dtype == jnp.float32}
    assert kept == {name for name, kind in graph.kinds.items() if kind in (Table, Norm, Knob)}
    assert "blocks/0/attention/query/kernel" not in kept
    assert {"item_encoder/tables/title", "norm/scale", "terms/repeat/offset", "terms/lexical/trust"} <= kept
    assert graph.tables == {"item_encoder/tables/title"}


def test_equal_specs_share_one_graph():
    architecture = Architecture(hidden_size=8, n_layers=1)
    assert graph_of(architecture, title=30) is graph_of(Architecture(hidden_size=8, n_layers=1), title=30)
    assert graph_of(architecture, title=30) is not graph_of(architecture, title=31)
