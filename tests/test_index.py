"""A model laid over a catalog: what it recommends, what it takes for alike, and that nothing is compiled twice."""

import logging
import time

import jax
import numpy as np
import pyarrow as pa
import pytest

import seqrec_jax as sr

ARCHITECTURE = sr.Architecture(n_layers=1, n_heads=2, hidden_size=16, inner_size=16, max_length=12, lexical_size=16)


@pytest.fixture(scope="module")
def model(shop_folder):
    model = sr.Recommender.create(sr.Corpus(str(shop_folder)), ARCHITECTURE, seed=0)
    return model.replace(params={name: 3 * array for name, array in model.params.items()})


@pytest.fixture(scope="module")
def index(model, shop_folder):
    return model.index(sr.open_dataset(shop_folder))


@pytest.fixture(scope="module")
def ids(index):
    return index.data.items_table["item_id"].to_pylist()[1:]


def scores_by_hand(index, history):
    """Scores of the whole catalog, a position at a time."""
    network, rows = index.model.graph.merge(index.model.params), np.asarray(history)[-12:]
    columns = np.arange(len(rows))
    hidden = network.encode_sequences(index.catalog[rows][None], np.ones_like(columns)[None], columns[None])
    return np.array(hidden[0, -1] @ index.catalog.T)


@pytest.mark.parametrize("n", [1, 3, 70])
def test_lists_are_the_catalog_sorted_by_score(index, n):
    histories = [index.data.user_items(user) for user in range(n)]
    items, scores = index.top(histories, k=5, exclude_seen=True)
    for row in {0, n // 2, n - 1}:
        history = histories[row]
        expected = scores_by_hand(index, history)
        expected[[0, *history]] = -np.inf
        np.testing.assert_allclose(scores[row], np.sort(expected)[::-1][:5], rtol=1e-4)
        np.testing.assert_allclose(expected[items[row]], scores[row], rtol=1e-4)


def test_users_and_their_histories_get_the_same_table(index):
    users = index.data.interactions_table["user_id"].slice(0, 2).to_pylist()
    by_user = index.recommend(users=users, k=3)
    rows = [index.data.user_items(user) for user in range(2)]
    names = index.data.items_table["item_id"]
    by_history = index.recommend(histories=[names.take(pa.array(row)).to_pylist() for row in rows], k=3)
    assert by_user.schema.names == ["user", "rank", "item", "score"]
    assert by_user["user"].to_pylist() == [users[0]] * 3 + [users[1]] * 3
    assert by_user["rank"].to_pylist() == [1, 2, 3] * 2
    assert by_history["user"].to_pylist() == ["0"] * 3 + ["1"] * 3
    for column in ("item", "score"):
        assert by_user[column].equals(by_history[column])


def test_what_may_be_shown(index, ids):
    history = [ids[:4]]
    best = index.recommend(histories=history, k=200)["item"].to_pylist()
    assert len(best) == len(ids) - 4
    assert set(best) == set(ids[4:])
    seen = index.recommend(histories=history, k=200, exclude_seen=False)["item"].to_pylist()
    assert set(seen) == set(ids)
    few = index.recommend(histories=history, k=10, allow=[best[7], best[2], ids[0]])["item"].to_pylist()
    assert few == [best[2], best[7]]
    assert index.recommend(histories=history, k=1, deny=best[:3])["item"].to_pylist() == [best[3]]
    brands = index.data.items_table["brand"].to_pylist()[1:]
    of_brand = index.recommend(histories=history, k=200, where={"brand": [brands[9]]})["item"].to_pylist()
    assert of_brand == [item for item in best if brands[ids.index(item)] == brands[9]]
    assert index.recommend(histories=[]).num_rows == 0


def test_similar_items_are_by_cosine(index, ids):
    table = index.similar([ids[3], ids[8]], k=4)
    assert table.schema.names == ["query", "rank", "item", "score"]
    unit = np.asarray(index.catalog) / np.linalg.norm(np.asarray(index.catalog), axis=1, keepdims=True).clip(1e-9)
    cosine = unit[4] @ unit.T
    cosine[[0, 4]] = -np.inf
    np.testing.assert_allclose(table["score"].to_numpy()[:4], np.sort(cosine)[::-1][:4], rtol=1e-4)
    assert ids[3] not in table["item"].to_pylist()[:4]


def test_a_new_item_is_known_by_its_content_alone(index, ids):
    row = {name: index.data.items_table[name].to_pylist()[5] for name in ("title", "brand")}
    new = pa.table({"item_id": ["new"]} | {name: [text] for name, text in row.items()})
    grown = index.with_items(new)
    np.testing.assert_allclose(grown.catalog[-1], index.catalog[5], atol=1e-4)  # the same text, the same embedding
    assert index.recommend(histories=[[ids[0]]], k=300).num_rows == len(ids) - 1
    found = grown.recommend(histories=[[ids[0], "new"]], k=300, exclude_seen=False)
    assert set(found["item"].to_pylist()) == {*ids, "new"}
    alike = grown.similar(["new"], k=1)
    assert alike["score"][0].as_py() == pytest.approx(1, abs=1e-3)
    for wrong, words in (
        (new, "'new' is there already"),
        (pa.table({"title": ["x"]}), "with one column item_id"),
    ):
        with pytest.raises(sr.InputError, match=words):
            grown.with_items(wrong)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "takes users or histories, one of the two"),
        ({"users": ["u1"], "histories": [["a"]]}, "takes users or histories, one of the two"),
        ({"users": ["nobody"]}, "users: 'nobody' is not in"),
        ({"users": "nobody"}, "users: 'nobody' is no list of ids"),
        ({"histories": ["100001"]}, r"histories\[0\]: '100001' is no list of ids"),
        ({"histories": [["no item"]]}, r"histories\[0\]: item 'no item' is not in"),
        ({"histories": [[]]}, r"histories\[0\] is empty"),
        ({"histories": [["100001"]], "k": 0}, "Index.recommend: k = 0 is no number from 1"),
        ({"histories": [["100001"]], "k": 2.5}, "Index.recommend: k = 2.5 is no number from 1"),
        ({"histories": 5}, "histories: 5 is no list of lists of ids"),
        ({"histories": [["100001"]], "where": "x"}, "where: 'x' is no mapping of a column"),
        ({"histories": [], "allow": ["no item"]}, None),
        ({"histories": ["FIRST"], "allow": ["no item"]}, "allow: item 'no item' is not in"),
        ({"histories": ["FIRST"], "where": {"colour": ["red"]}}, "where: 'colour' is no column of the items: item_id"),
    ],
)
def test_what_makes_no_sense_is_refused(index, ids, arguments, words):
    if arguments.get("histories") == ["FIRST"]:
        arguments = arguments | {"histories": [[ids[0]]]}
    if words is None:
        assert index.recommend(**arguments).num_rows == 0
        return
    with pytest.raises(sr.InputError, match=words):
        index.recommend(**arguments)


def test_similar_refuses_what_it_does_not_know(index):
    unknown, none = "item 'nothing' is not in", "k = 0 is no number from 1"
    for arguments, words in (((["nothing"],), unknown), ((["nothing"], 0), none)):
        with pytest.raises(sr.InputError, match=words):
            index.similar(*arguments)


class Compilations(logging.Handler):
    """Counts the programs that JAX compiles."""

    def __init__(self):
        super().__init__()
        self.names = []

    def emit(self, record):
        if "Finished XLA compilation of" in record.getMessage() or "Compiling" in record.getMessage():
            self.names.append(record.getMessage())


@pytest.fixture
def compilations():
    handler, logger = Compilations(), logging.getLogger("jax")
    logger.addHandler(handler)
    with jax.log_compiles():
        yield handler
    logger.removeHandler(handler)


def test_a_second_call_compiles_nothing_and_neither_do_new_items(index, ids, compilations):
    jax.jit(lambda x: x + 1)(np.ones(3))
    assert compilations.names  # it does count
    index.recommend(histories=[ids[:5]], k=10)
    index.similar(ids[:1])
    grown = index.with_items(pa.table({"item_id": ["n1"], "title": ["Blue grinder"]}))
    grown.with_items(pa.table({"item_id": ["n2"], "title": ["Red grinder"]}))
    compilations.names.clear()
    grown.with_items(pa.table({"item_id": ["n3", "n4"], "title": ["Green grinder", ""]}))
    for history in (ids[:5], ids[3:9], ids[:1], [*ids[:4], "n1"]):
        grown.recommend(histories=[history], k=7, deny=ids[20:22])
    index.recommend(users=["u2"], k=3)
    index.similar(ids[4:5], k=3)
    assert not compilations.names


def test_one_history_takes_milliseconds(index, ids):
    index.recommend(histories=[ids[:5]])
    seconds = []
    for place in range(20):
        started = time.perf_counter()
        index.recommend(histories=[ids[place : place + 5]])
        seconds.append(time.perf_counter() - started)
    assert np.median(seconds) < 0.05  # 1 ms on an idle machine
