"""Ranking metrics from ranks."""

import ir_measures
import numpy as np
import pytest

from seqrec_jax.evaluation.metrics import per_user, standard_error, summarize


def test_metrics_of_one_rank():
    assert {name: float(values[0]) for name, values in per_user(np.array([2]), 5).items()} == pytest.approx(
        {"recall": 1, "hit": 1, "mrr": 1 / 3, "ndcg": 0.5, "precision": 0.2}
    )
    assert summarize(np.array([0, 9, 10]), (10,))["recall_at_10"] == pytest.approx(2 / 3)


def test_over_no_targets_there_is_no_metric():
    assert summarize(np.zeros(0, int), (10,)) == {}


def test_metrics_are_those_of_ir_measures():
    ranks = np.random.default_rng(0).geometric(0.05, 500) - 1
    shown = np.where(ranks < 100, ranks, 10**6)
    qrels = {f"u{user}": {"target": 1} for user in range(500)}
    run = {
        f"u{user}": {("target" if place == rank else f"i{place}"): 100.0 - place for place in range(100)}
        for user, rank in enumerate(shown)
    }
    theirs = {"recall": "R@{}", "ndcg": "nDCG@{}", "mrr": "RR@{}", "hit": "Success@{}", "precision": "P@{}"}
    ours = summarize(shown, (5, 10))
    asked = {f"{name}_at_{k}": ir_measures.parse_measure(of.format(k)) for name, of in theirs.items() for k in (5, 10)}
    expected = ir_measures.calc_aggregate(list(asked.values()), qrels, run)
    for name, measure in asked.items():
        assert ours[name] == pytest.approx(expected[measure], abs=1e-9)


def test_the_standard_error_of_a_metric():
    ranks = np.random.default_rng(0).geometric(0.1, 300) - 1
    values = per_user(ranks, 10)["ndcg"]
    assert standard_error(ranks, "ndcg_at_10") == pytest.approx(np.std(values, ddof=1) / np.sqrt(len(values)))
    assert standard_error(ranks[:1], "ndcg_at_10") == 0.0
