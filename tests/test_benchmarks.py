"""The benchmarks run as their docstrings say, on the tiny shop."""

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
        ("loss_positions.py", ["--epochs", "2", "--batch", "200"], "95 % interval"),
    ],
)
def test_a_benchmark_prints_its_table(shop_folder, tmp_path, script, arguments, words):
    command = [sys.executable, str(BENCHMARKS / script), "--dataset", str(shop_folder), "--json", "figures.json"]
    process = subprocess.run(command + arguments, cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert words in process.stdout
    assert json.loads((tmp_path / "figures.json").read_text())
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]


@pytest.mark.slow
def test_a_large_catalog_trains_with_every_proposal(tmp_path):
    sizes = ["--items", "20000", "--layers", "2", "--hidden", "32", "--batch", "200", "--negatives", "20"]
    command = [
        sys.executable,
        str(BENCHMARKS / "large_catalog.py"),
        *sizes,
        "--candidates",
        "500",
        "--json",
        "figures.json",
    ]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert [row["proposal"] for row in figures] == ["popularity", "knn"]
    assert len(figures[1]["refresh_seconds"]) == 2


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
