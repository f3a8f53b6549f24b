"""Evaluation with intervals, slices and baselines, and the comparison of two checkpoints."""

import json
import subprocess
import sys

import gin
import ir_measures
import numpy as np
import pytest

from seqrec_jax.errors import InputError
from seqrec_jax.evaluation.metrics import summarize
from seqrec_jax.tasks.compare import compare
from seqrec_jax.tasks.evaluate import evaluate


@pytest.fixture(scope="module")
def two_runs(shop_folder, tmp_path_factory):
    """A run of one epoch, and one of four."""
    folder = tmp_path_factory.mktemp("two")
    for name, epochs in (("one", 1), ("four", 4)):
        command = [sys.executable, "-m", "seqrec_jax.main", "--gin_file=gin/beauty.gin"]
        bound = [
            f"DATASET='{shop_folder}'",
            f"RUN_DIR='{folder / name}'",
            f"EPOCHS={epochs}",
            "Tracker.uri=None",
            "sampled_softmax.n_negatives=64",
        ]
        subprocess.run([*command, *(f"--gin_bindings={binding}" for binding in bound)], check=True, capture_output=True)
    return [str(folder / name) for name in ("one", "four")]


def test_evaluation_tells_intervals_slices_and_baselines(two_runs, shop_folder, tmp_path, capsys):
    folder = str(tmp_path / "evaluation")
    results = evaluate(two_runs[1], str(shop_folder), run_dir=folder, draws=200, category="brand", sasrec=two_runs[0])
    assert results == json.loads((tmp_path / "evaluation" / "results.json").read_text())
    low, high = results["intervals"]["test"]["ndcg_at_10"]
    assert low < results["test"]["ndcg_at_10"] < high
    for names in (("history",), ("head", "middle", "tail", "cold"), ("brand: ",)):
        slices = [of for name, of in results["slices"].items() if name.startswith(names)]
        users = np.array([of["targets"] for of in slices])
        assert users.sum() == 300
        whole = users @ [of["ndcg_at_10"] for of in slices] / users.sum()
        assert whole == pytest.approx(results["test"]["ndcg_at_10"], abs=1e-12)
    assert list(results["baselines"]) == [
        "popularity", "recent popularity", "item-to-item transitions", "text neighbours", "transition graph",
        "SASRec, trained",
    ]  # fmt: skip
    assert 0 < results["catalog"]["coverage_at_20"] <= 1
    assert 0 <= results["catalog"]["gini_at_20"] < 1
    printed = capsys.readouterr().out
    for told in ("95 % interval", "Slices of test", "% of the catalog", "text neighbours", "brand: others"):
        assert told in printed


def test_several_targets_a_user_are_evaluated_and_another_split_is_told(two_runs, shop_folder, caplog):
    gin.parse_config("evaluate.split = @by_ratio\nby_ratio.test = 0.3")
    results = evaluate(two_runs[1], str(shop_folder), draws=100)
    targets = [of["targets"] for name, of in results["slices"].items() if name.startswith("history")]
    assert sum(targets) > 600
    assert "was trained with SPLIT = @leave_one_out, and is now evaluated with SPLIT = @by_ratio" in caplog.text
    assert "by_ratio.test = 0.3" in caplog.text


def test_a_column_that_the_catalog_lacks_is_named(two_runs, shop_folder):
    with pytest.raises(InputError, match=r"evaluate\.category = 'colour': .* only title, brand"):
        evaluate(two_runs[1], str(shop_folder), draws=100, category="colour")


def test_a_sample_of_the_catalog_has_popularity_alone(two_runs, shop_folder):
    gin.bind_parameter("Ranking.mode", "popular50")
    results = evaluate(two_runs[0], str(shop_folder), draws=100)
    assert list(results["baselines"]) == ["popularity"]


def test_two_checkpoints_are_compared_user_by_user(two_runs, shop_folder, tmp_path, capsys):
    gin.bind_parameter("Tracker.uri", None)
    found = compare(two_runs, str(shop_folder), run_dir=str(tmp_path / "compared"), draws=500)
    assert found == json.loads((tmp_path / "compared" / "comparison.json").read_text())
    one, four = (evaluate(run, str(shop_folder), draws=100)["test"] for run in two_runs)
    for name, of in found["metrics"].items():
        assert of["first"] == pytest.approx(one[name])
        assert of["second"] == pytest.approx(four[name])
        assert of["difference"] == pytest.approx(four[name] - one[name])
    assert found["metrics"]["ndcg_at_10"]["p"] < 0.01
    assert "difference" in capsys.readouterr().out
    same = compare([two_runs[0], two_runs[0]], str(shop_folder), draws=100)
    assert same["metrics"]["ndcg_at_10"]["p"] == 1


@pytest.mark.parametrize(
    ("bound", "message"),
    [
        ({"checkpoints": ["a"]}, "must name two"),
        ({"metric": "ndcg_at_7"}, "compare.metric = 'ndcg_at_7' is not one of recall_at_5"),
        ({"draws": 3}, "compare.draws = 3 is below 100"),
    ],
)
def test_bad_bindings_are_refused(two_runs, shop_folder, bound, message):
    with pytest.raises(InputError, match=message):
        compare(**({"checkpoints": two_runs, "dataset": str(shop_folder)} | bound))


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
    for name, measure in theirs.items():
        for k in (5, 10):
            asked = ir_measures.parse_measure(measure.format(k))
            expected = ir_measures.calc_aggregate([asked], qrels, run)[asked]
            assert ours[f"{name}_at_{k}"] == pytest.approx(expected, abs=1e-9)
