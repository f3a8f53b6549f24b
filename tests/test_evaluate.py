"""Evaluation with intervals, slices and baselines."""

import dataclasses
import functools
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import trusted

from seqrec_jax.data.corpus import Corpus
from seqrec_jax.data.split import Targets, by_ratio, leave_one_out
from seqrec_jax.data.store import open_dataset
from seqrec_jax.errors import InputError
from seqrec_jax.evaluation import baselines
from seqrec_jax.evaluation.evaluate import Report, evaluate
from seqrec_jax.evaluation.ranking import Ranking
from seqrec_jax.model.recommender import Recommender
from seqrec_jax.model.spec import Architecture
from seqrec_jax.model.terms.transitions import count_transitions


@pytest.fixture(scope="module")
def corpus(shop_folder):
    return Corpus(open_dataset(shop_folder))


@pytest.fixture(scope="module")
def model(corpus):
    """A model that knows no more than what followed what in training."""
    architecture = Architecture(n_layers=1, hidden_size=16, inner_size=16, max_length=8, transitions=True)
    made = Recommender.create(corpus, architecture, seed=1)
    counted = count_transitions(corpus.train, corpus.data.catalog_sha256())
    return dataclasses.replace(
        made,
        params={**made.params, "terms/transitions/weight": jnp.float32(1.0)},
        statistics={"transitions": counted},
        trained_with=json.loads(json.dumps(corpus.settings())),
    )


@pytest.fixture(scope="module")
def report(model, corpus) -> Report:
    return evaluate(model, corpus, draws=200, category="brand", sasrec=model)


def test_intervals_slices_and_baselines_stand_beside_the_metrics(report, corpus):
    low, high = report.intervals["test"]["ndcg_at_10"]
    assert low < report.test["ndcg_at_10"] < high
    for names in (("history",), ("head", "middle", "tail", "cold"), ("brand: ",)):
        slices = [of for name, of in report.slices.items() if name.startswith(names)]
        users = np.array([of["targets"] for of in slices])
        assert users.sum() == report.targets["test"] == len(corpus.division.test.users) == 300
        whole = sum(of["targets"] * of["ndcg_at_10"] for of in slices if of["targets"]) / users.sum()
        assert whole == pytest.approx(report.test["ndcg_at_10"], abs=1e-12)
    assert list(report.baselines) == [
        "popularity", "recent popularity", "item-to-item transitions", "text neighbours", "transition graph",
        "SASRec, trained",
    ]  # fmt: skip
    assert report.baselines["SASRec, trained"] == report.test
    assert 0 < report.catalog["coverage_at_20"] <= 1
    assert 0 <= report.catalog["gini_at_20"] < 1


def test_the_report_is_json_and_a_table(report, corpus):
    as_json = report.to_json()
    assert json.loads(json.dumps(as_json)) == as_json
    assert list(as_json) == [
        "targets", "valid", "test", "baselines", "intervals", "slices", "catalog", "params_sha256", "dataset",
    ]  # fmt: skip
    assert as_json["dataset"] == corpus.summary()
    table = report.table()
    assert table.column_names == ["kind", "name", "targets", "metric", "value", "low", "high"]
    rows = {(row["kind"], row["name"], row["metric"]): row for row in table.to_pylist()}
    slices = [of for of in report.slices.values() if of["targets"]]
    assert len(rows) == table.num_rows == 15 * (2 + len(report.baselines) + len(slices))
    assert not any("ndcg_at_10" in of for of in report.slices.values() if not of["targets"])
    assert rows["model", "valid", "mrr_at_5"]["value"] == report.valid["mrr_at_5"]
    of_popularity = rows["baseline", "popularity", "ndcg_at_10"]
    assert [of_popularity["low"], of_popularity["high"]] == report.intervals["baselines"]["popularity"]["ndcg_at_10"]
    assert rows["slice", "tail_items", "recall_at_20"]["targets"] == report.slices["tail_items"]["targets"]


def test_an_index_is_made_once_or_given(report, model, corpus, monkeypatch):
    index = model.index(corpus.data)
    monkeypatch.setattr(Recommender, "index", lambda *arguments: pytest.fail("the catalog was encoded again"))
    given = evaluate(model, corpus, draws=200, category="brand", index=index)
    assert (given.valid, given.test, given.catalog) == (report.valid, report.test, report.catalog)
    with pytest.raises(InputError, match=r"evaluate\.index is of another model"):
        evaluate(dataclasses.replace(model), corpus, index=index)


def test_several_targets_a_user_are_evaluated_and_another_split_is_told(model, corpus, report, caplog):
    other = Corpus(corpus.data, split=functools.partial(by_ratio, test=0.3))
    results = evaluate(model, other, draws=100)
    assert results.targets["test"] > 600
    assert sum(of["targets"] for name, of in results.slices.items() if name.startswith("history")) > 600
    assert results.catalog["histories"] > 600
    assert results.catalog["users"] == 300
    assert "was trained with Corpus.split = leave_one_out(), and is now evaluated with by_ratio(" in caplog.text
    assert "test=0.3" in caplog.text


def test_the_same_split_and_an_unknown_one_are_not_told(model, corpus, caplog):
    sampled = Ranking(mode="sampled20", ks=(5,))
    evaluate(model, corpus, ranking=sampled, draws=100)
    evaluate(dataclasses.replace(model, trained_with={}), corpus, ranking=sampled, draws=100)
    assert "may know the targets" not in caplog.text
    assert "orders models differently than the whole catalog does" in caplog.text


def test_a_sample_of_the_catalog_has_popularity_alone(model, corpus):
    assert list(evaluate(model, corpus, ranking=Ranking(mode="popular50"), draws=100).baselines) == ["popularity"]


def test_of_many_scores_baselines_are_measured_on_a_sample_that_is_named(model, corpus, report, monkeypatch):
    monkeypatch.setattr(baselines, "MOST_SCORES", 100 * corpus.data.n_items)
    found = evaluate(model, corpus, draws=100)
    assert list(found.baselines) == [
        "popularity", "recent popularity", "item-to-item transitions, 100 targets", "text neighbours, 100 targets",
        "transition graph, 100 targets",
    ]  # fmt: skip
    assert found.test == report.test
    for name in ("popularity", "recent popularity"):
        assert found.baselines[name] == report.baselines[name]
    assert found.targets["text neighbours, 100 targets"] == 100
    rows = [row for row in found.table().to_pylist() if row["name"] == "text neighbours, 100 targets"]
    assert {row["targets"] for row in rows} == {100}


def test_bad_arguments_are_refused(model, corpus):
    other = trusted(dataclasses.replace(corpus.data, folder=Path("other")))
    few = Corpus(corpus.data, split=lambda data: leave_one_out(data)._replace(test=Targets(*np.zeros((2, 0), int))))
    for arguments, message in (
        ({"draws": 3}, r"evaluate\.draws = 3 is below 100"),
        ({"category": "colour"}, r"evaluate\.category = 'colour': .* only title, brand"),
        ({"corpus": Corpus([corpus.data, other])}, r"Corpus\.datasets = dataset, other: evaluate takes one dataset"),
        ({"corpus": few}, r"Corpus\.split leaves no target in test"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate(**({"model": model, "corpus": corpus} | arguments))
