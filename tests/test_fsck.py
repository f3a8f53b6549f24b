"""The full check of datasets, runs, studies, models and files of arrays: whole, damaged, and hostile."""

import functools
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

import seqrec_jax as sr
from seqrec_jax import fsck
from seqrec_jax.files import write_arrays
from seqrec_jax.model import storage
from seqrec_jax.model.exchange import export_safetensors
from seqrec_jax.model.terms.transitions import count_transitions


@pytest.fixture(scope="module")
def wholes(shop_folder, tmp_path_factory):
    """A run, a study of two runs, a saved model, and files of arrays."""
    place = tmp_path_factory.mktemp("wholes")
    corpus = sr.Corpus(str(shop_folder))
    model = sr.Recommender.create(corpus, sr.Architecture(n_layers=1, hidden_size=8, inner_size=8))
    config = sr.TrainConfig(
        epochs=1, train_batch_size=400, ranking=sr.Ranking(ks=(10,)), valid_metric="ndcg_at_10",
        loss=functools.partial(sr.sampled_softmax, n_negatives=20),
    )  # fmt: skip
    sr.fit(model, corpus, config, place / "run")
    (place / "study").mkdir()
    (place / "study" / "config.json").write_text('{"Sweep": {}}')
    for name in ("1", "2"):
        shutil.copytree(place / "run", place / "study" / "trials" / name)
    counted = count_transitions(corpus.train, corpus.data.catalog_sha256())
    counting = model.adapt(corpus.data, {"transitions": True}).replace(statistics={"transitions": counted})
    counting.save(place / "model")
    export_safetensors(model, place / "model.safetensors")
    write_arrays(place / "fisher.npz", {"a": np.arange(5.0)})
    return place


def copied(wholes, shop_folder, tmp_path, name):
    source = shop_folder if name == "dataset" else wholes / name
    copy = shutil.copytree if source.is_dir() else shutil.copyfile
    return copy(source, tmp_path / source.name)


@pytest.mark.parametrize("name", ["dataset", "run", "study", "model", "model.safetensors", "fisher.npz"])
def test_what_is_whole_is_said_to_be(wholes, shop_folder, name, capsys):
    path = shop_folder if name == "dataset" else wholes / name
    assert fsck.main([str(path)]) == 0
    assert capsys.readouterr().out == f"{path}: whole\n"


def test_datasets_in_a_folder_are_checked_one_by_one(shop_folder, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(shop_folder, tmp_path / name)
    assert list(fsck.problems(tmp_path)) == []
    flipped(tmp_path / "b" / "items.arrow")
    (problem,) = fsck.problems(tmp_path)
    assert problem.startswith(f"{tmp_path}/b/items.arrow")


def flipped(path, place=-20):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def altered(path):
    path.write_text(path.read_text().replace('"ndcg_at_10": 0.', '"ndcg_at_10": 0.9'))


def largest_of(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def checkpoint(folder):
    (place,) = sorted(folder.glob("checkpoints/[0-9]*"))[-1:]
    return place


DAMAGES = {
    ("dataset", "items.arrow: its checksum"): lambda path: flipped(path / "items.arrow"),
    ("dataset", "tokenizer.model: its checksum"): lambda path: flipped(path / "tokenizer.model"),
    ("dataset", "interactions.arrow: is missing"): lambda path: (path / "interactions.arrow").unlink(),
    ("dataset", "bytes where the manifest has"): lambda path: (path / "tokenizer.model").write_bytes(b"x"),
    ("dataset", "manifest.json: is damaged"): lambda path: (path / "manifest.json").write_text("[" * 1000),
    ("run", "is damaged"): lambda path: flipped(largest_of(checkpoint(path) / "params")),
    ("run", "training/.* is damaged"): lambda path: flipped(largest_of(checkpoint(path) / "training")),
    ("run", "checksums.json cannot be read"): lambda path: (checkpoint(path) / "checksums.json").write_text("{"),
    ("run", "was not finished"): lambda path: (checkpoint(path) / "checksums.json").unlink(),
    ("run", "tokenizer.model is damaged"): lambda path: flipped(path / "tokenizer.model"),
    ("run", "results.json: is damaged"): lambda path: (path / "results.json").write_bytes(b""),
    ("run", "results.json: is not as it was written"): lambda path: altered(path / "results.json"),
    ("run", "config.json: is damaged"): lambda path: (path / "config.json").write_bytes(bytes(9)),
    ("run", "belongs to another run"): lambda path: (path / "config.json").write_text('{"a": 1}'),
    ("run", "metrics.jsonl, line 2: is damaged"): lambda path: (path / "metrics.jsonl").write_text("{}\n\0\n"),
    ("run", "metadata is a link"): lambda path: linked(checkpoint(path) / "model" / "metadata"),
    ("run", "metadata is no file"): lambda path: piped(checkpoint(path) / "model" / "metadata"),
    ("study", "trials/2/checkpoints/.* is damaged"): lambda path: flipped(largest_of(path / "trials/2/checkpoints")),
    ("study", "trials/1/results.json: is damaged"): lambda path: (path / "trials/1/results.json").write_text("x"),
    ("model", "transitions.npz is damaged"): lambda path: flipped(path / "transitions.npz", 300),
    ("model", "transitions.npz is missing"): lambda path: (path / "transitions.npz").unlink(),
    ("model", "does not belong to it"): lambda path: (checkpoint(path) / "params" / "extra").write_text("x"),
    ("model", "was written in version 1"): lambda path: says(path, version=1),
    ("model", "says of itself is damaged"): lambda path: says(path, features=[{"kind": "text", "rows": 10**12}]),
    ("model.safetensors", "is no safetensors file"): lambda path: path.write_bytes(path.read_bytes()[:-1]),
    ("fisher.npz", "fisher.npz: "): lambda path: flipped(path, 80),
}  # fmt: skip


def linked(path):
    shutil.move(path, path.parent.parent.parent.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent.parent.parent.parent / "elsewhere")


def piped(path):
    path.unlink()
    os.mkfifo(path)


def says(folder, **more):
    path = checkpoint(folder) / "model" / "metadata"
    path.write_text(json.dumps(json.loads(path.read_text()) | more))
    storage.write_checksums(checkpoint(folder))


@pytest.mark.parametrize(("name", "words"), list(DAMAGES))
def test_what_is_damaged_is_named_in_a_line(wholes, shop_folder, tmp_path, name, words):
    path = copied(wholes, shop_folder, tmp_path, name)
    DAMAGES[name, words](path)
    lines = list(fsck.problems(path))
    assert any(re.search(words, line) for line in lines), lines
    assert all(str(path) in line and "\n" not in line for line in lines), lines
    assert fsck.main([str(path)]) == 1


def test_all_that_is_wrong_is_named(wholes, shop_folder, tmp_path, capsys):
    path = copied(wholes, shop_folder, tmp_path, "dataset")
    flipped(path / "items.arrow")
    flipped(path / "tokenizer.model")
    (tmp_path / "empty").mkdir()
    assert fsck.main([str(path), str(shop_folder), str(tmp_path / "nothing"), str(tmp_path / "empty")]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 5
    assert printed[2] == f"{shop_folder}: whole"
    assert all("is neither a dataset (manifest.json) nor a run" in line for line in printed[3:])


def test_a_folder_that_holds_itself_ends(wholes, shop_folder, tmp_path):
    path = copied(wholes, shop_folder, tmp_path, "study")
    (path / "trials" / "round").symlink_to(path)
    (path / "trials" / "1" / "runs").mkdir()
    (path / "trials" / "1" / "runs" / "up").symlink_to(path)
    assert list(fsck.problems(path)) == []


def test_status_and_lines_of_the_commands(wholes, tmp_path):
    (tmp_path / "a\x1b[31m").mkdir()
    for module, before in (("seqrec_jax.fsck", []), ("seqrec_jax.main", ["check"])):

        def run(*paths, command=(sys.executable, "-m", module, *before)):
            return subprocess.run([*command, *paths], capture_output=True, text=True, cwd=tmp_path, timeout=120)

        assert run(str(wholes / "fisher.npz")).returncode == 0
        strange = run("a\x1b[31m")
        assert (strange.returncode, strange.stderr) == (1, "")
        assert strange.stdout.startswith(r"a\x1b[31m: is neither a dataset")
        assert run().returncode == run("--help").returncode == 2
