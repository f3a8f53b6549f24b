"""The examples run as their docstrings say, on the tiny shop."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def run(folder, script, *arguments):
    command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    process = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.fixture(scope="module")
def trained(shop_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("examples")
    return folder / "run", run(folder, "train.py", shop_folder, "run", 2)


def test_train_evaluates_recommends_and_finds_similar_items(trained):
    printed = trained[1]
    for words in ("test NDCG@10", "popularity", "user: string", "query: string", "score"):
        assert words in printed


def test_train_has_twenty_lines_at_most():
    lines = (EXAMPLES / "train.py").read_text().splitlines()
    assert len([line for line in lines if line.strip()]) <= 20


@pytest.mark.slow
def test_finetune_tells_before_and_after(trained, shop_folder):
    printed = run(trained[0].parent, "finetune.py", trained[0], shop_folder, "tuned", 1)
    assert "before" in printed
    assert "user: string" in printed
