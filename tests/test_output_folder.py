"""What lies where a dataset is to go: followed, settled, refused, and never removed unless etl made it."""

import os
import shutil
import subprocess
import sys

import pytest

from etl import output_folder
from seqrec_jax.data.format import DATA_FILES, MANIFEST
from seqrec_jax.errors import InputError


def dead_process() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def dataset(shop_folder, tmp_path):
    """A copy of the shop's dataset."""
    return shutil.copytree(shop_folder, tmp_path / "data" / "shop")


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def replace_with(folder, text):
    partial = output_folder.partial_folder(output_folder.prepare(folder))
    (partial / MANIFEST).write_text(text)
    output_folder.replace(partial, output_folder.real_folder(folder))


def test_a_folder_that_is_not_there_yet_may_be_written_and_then_replaced(dataset, tmp_path):
    replace_with(dataset, "new")
    assert content(dataset) == {MANIFEST: b"new"}
    (tmp_path / "other").mkdir()
    replace_with(tmp_path / "other" / "fresh", "first")
    assert content(tmp_path / "other" / "fresh") == {MANIFEST: b"first"}
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["fresh"]


@pytest.mark.parametrize("deep", [1, 2])
def test_a_link_is_followed_and_stays(dataset, tmp_path, deep):
    link = tmp_path / "link"
    link.symlink_to(dataset)
    if deep == 2:
        link, before = tmp_path / "again", link
        link.symlink_to(before)
    replace_with(link, "new")
    assert link.is_symlink()
    assert content(dataset) == {MANIFEST: b"new"}
    assert sorted(path.name for path in dataset.parent.iterdir()) == ["shop"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.write_text("x"), "is a file; bind OUTPUT to a folder"),
        (lambda path: path.symlink_to(path.parent / "nowhere"), "is a link to nothing"),
        (lambda path: path.symlink_to(path), "is a link to nothing"),
        (lambda path: (path / "thesis").mkdir(parents=True), "is not empty and is no dataset alone .'thesis' is in it"),
        (lambda path: (path / ".git").mkdir(parents=True), "is no dataset alone .'.git' is in it"),
    ],
)
def test_what_is_no_folder_or_not_etls_is_refused(tmp_path, make, words):
    make(tmp_path / "out")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=words):
        output_folder.prepare(tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dataset_with_something_else_in_it_is_refused(dataset):
    (dataset / "notes.txt").write_text("precious")
    with pytest.raises(InputError, match=r"'notes.txt' is in it.; bind OUTPUT to another folder, or move that elsewhe"):
        output_folder.prepare(dataset)
    (dataset / "notes.txt").unlink()
    assert output_folder.prepare(dataset) == dataset


@pytest.mark.parametrize("manifest", ['{"name": "a web page"}', "", "\0" * 100, "[1]", '{"schema_version": 2}'])
def test_another_ones_manifest_is_refused(tmp_path, manifest):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / MANIFEST).write_text(manifest)
    with pytest.raises(InputError, match=r"manifest.json: .*; remove .*/out and run the same command again"):
        output_folder.prepare(tmp_path / "out")


def test_a_mount_point_is_refused(dataset, monkeypatch):
    monkeypatch.setattr(os.path, "ismount", lambda path: str(path) == str(dataset))
    with pytest.raises(InputError, match="is a mount point, which cannot be replaced; bind OUTPUT to a folder in it"):
        output_folder.prepare(dataset)


def test_a_kill_between_the_two_renames_loses_nothing(dataset):
    before, pid = content(dataset), dead_process()
    partial = dataset.with_name(f".shop.partial-{pid}")
    partial.mkdir()
    for name in (*DATA_FILES, MANIFEST):
        (partial / name).write_text("half")
    os.replace(dataset, dataset.with_name(f".shop.old-{pid}"))
    assert output_folder.prepare(dataset) == dataset
    assert content(dataset) == before
    assert sorted(path.name for path in dataset.parent.iterdir()) == ["shop"]


def test_only_what_a_killed_run_was_writing_is_removed(dataset, tmp_path):
    pid = dead_process()
    kept = [".shop.partial", ".shop.backup", ".shop.old-x", f".shop2.partial-{pid}", f".shop.old-{os.getppid()}"]
    kept += [f".shop.partial-{pid}0000000000"]
    for name in kept:
        (dataset.parent / name).mkdir()
    mine = dataset.parent / f".shop.partial-{pid}"
    mine.mkdir()
    (mine / "thesis.txt").write_text("precious")
    link = dataset.parent / f".shop.old-{pid}"
    link.symlink_to(tmp_path)
    output_folder.prepare(dataset)
    assert {path.name for path in dataset.parent.iterdir()} == {"shop", mine.name, link.name, *kept}
    (mine / "thesis.txt").rename(mine / "items.arrow")
    (dataset.parent / f".shop.partial-{os.getpid()}").mkdir()
    output_folder.prepare(dataset)
    assert {path.name for path in dataset.parent.iterdir()} == {"shop", link.name, *kept}


def test_a_rename_that_fails_puts_the_old_dataset_back(dataset, monkeypatch):
    before, rename = content(dataset), os.replace

    def failing(source, target):
        if "partial" in source.name:
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="Input/output"):
        replace_with(dataset, "new")
    assert content(dataset) == before
