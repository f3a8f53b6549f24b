"""The benchmarks run as their docstrings say, on the tiny shop."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "arguments", "words"),
    [
        ("train_step.py", ["--shapes", "small", "--batch", "128", "--turns", "1", "--seconds", "0.5"], "ratio"),
        ("losses.py", ["--epochs", "2", "--batch", "200", "--runs", "full softmax", "bpr, uniform, 1 local"], "HR@10"),
        ("loss_positions.py", ["--epochs", "2", "--batch", "200", "--negatives", "100"], "95 % interval"),
    ],
)
def test_a_benchmark_prints_its_table(shop_folder, tmp_path, script, arguments, words):
    command = [sys.executable, str(BENCHMARKS / script), "--dataset", str(shop_folder), "--json", "figures.json"]
    process = subprocess.run(command + arguments, cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert words in process.stdout
    assert json.loads((tmp_path / "figures.json").read_text())
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]


def figures_of(folder, script, *arguments):
    """What a script that makes its own data writes with --json."""
    command = [sys.executable, str(BENCHMARKS / script), *arguments, "--json", "figures.json"]
    process = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return json.loads((folder / "figures.json").read_text())


@pytest.mark.slow
def test_a_large_catalog_trains_with_every_proposal(tmp_path):
    sizes = ["--items", "20000", "--layers", "2", "--hidden", "32", "--batch", "200", "--negatives", "20"]
    figures = figures_of(tmp_path, "large_catalog.py", *sizes, "--candidates", "500")
    assert [row["proposal"] for row in figures] == ["popularity", "knn"]
    assert len(figures[1]["refresh_seconds"]) == 2


@pytest.mark.slow
def test_every_user_of_a_made_up_log_is_ranked(tmp_path):
    figures = figures_of(tmp_path, "evaluation.py", "--users", "2000", "--items", "500")
    assert figures["users"] == 2000
    assert figures["targets_per_second"] > 0
    whole = figures_of(tmp_path, "evaluation.py", "--users", "500", "--items", "200", "--whole")
    assert set(figures) - set(whole) == {"targets_per_second", "scores_per_second"}


@pytest.mark.slow
def test_our_side_of_the_comparison_with_peers_leaves_a_curve(shop, tmp_path):
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import peers
    finally:
        sys.path.remove(str(BENCHMARKS))
    settings = {"length": 12, "epochs": 2, "layers": 1, "heads": 2, "hidden": 16, "dropout": 0.2, "negatives": 8}
    settings |= {"learning_rate": 1e-2, "users": 64}
    peers.write_input(shop, tmp_path / "input.npz", argparse.Namespace(**settings))
    worker = [sys.executable, str(peers.WORKERS / "seqrec_sasrec.py"), str(tmp_path / "input.npz")]
    assert peers.run([*worker, str(tmp_path / "ours"), "bpr"], tmp_path / "ours") > 0
    figures = peers.read(tmp_path / "ours", shop, 2)
    assert [point["epoch"] for point in figures["curve"]] == [1, 2]
    assert 0 < figures["curve"][0]["seconds"] < figures["curve"][1]["seconds"]
    assert 0 < figures["test_ndcg"] < figures["test_recall"]


@pytest.mark.slow
def test_the_etl_ends_with_the_same_users_as_its_peers(tmp_path):
    pytest.importorskip("polars")
    pytest.importorskip("duckdb")
    sizes = ["--ratings", "300000", "--items", "20000"]
    command = [sys.executable, str(BENCHMARKS / "etl.py"), *sizes, "--json", "figures.json"]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert "ours is faster by" in process.stdout
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert set(figures["ratings_job"]) == {"seqrec_jax", "polars", "duckdb"}
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]
