"""What goes wrong around a pipeline: links, killed runs, files that change, a machine that refuses, hostile ids."""

import os
import resource
import time
from pathlib import Path

import pytest
from tables import with_the_hash_of

from etl import steps
from etl.build_datasets import build_datasets
from etl.plan import Plan
from etl.raw.bad_rows import BadRow, BadRows
from etl.raw.interaction_files import InteractionFiles
from etl.raw.item_files import ItemFiles
from etl.running.workers import Workers
from seqrec_jax.data.format import sha256_of
from seqrec_jax.data.store import open_dataset
from seqrec_jax.errors import InputError

T = 1_600_000_000
ITEMS = "item_id,title\na,Blue coffee grinder\nb,Milk jug\nc,Paper filters\n"
LOG = f"user_id,item_id,timestamp\nu1,a,{T}\nu1,b,{T + 50}\nu1,c,{T + 90}\nu2,b,{T + 70}\n"
DOMAIN = f"user_id,item_id,timestamp\nu3,a,{T}\nu3,z,{T + 1}\n"


@pytest.fixture
def raw(tmp_path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "items.csv").write_text(ITEMS)
    (folder / "log.csv").write_text(LOG)
    (folder / "domain.csv").write_text(DOMAIN)
    return folder


def build(raw: Path, output: Path, **changes) -> Path:
    """Runs the pipeline in this process, with one worker, on a log and a domain."""
    plan = Plan(
        **{
            "source": str(raw),
            "output": str(output),
            "name": "shop",
            "items": ItemFiles(["items.csv"], texts={"title": "title"}, max_tokens={"title": 8}),
            "interactions": InteractionFiles(["log.csv"]),
            "domains": {"corner": InteractionFiles(["domain.csv"])},
            "vocab_size": 40,
        }
        | changes
    )
    build_datasets(plan, Workers(processes=1))
    return output


def histories(folder: Path) -> dict[str, list[str]]:
    dataset = open_dataset(folder, verify=True)
    ids = dataset.items_table["item_id"].to_pylist()
    users = dataset.interactions_table["user_id"].to_pylist()
    return {user: [ids[row] for row in dataset.user_items(place)] for place, user in enumerate(users)}


SHOP, CORNER = {"u1": ["a", "b", "c"], "u2": ["b"]}, {"u3": ["a", "z"]}


def test_links_stay_and_lead_to_the_datasets(raw, tmp_path):
    disk, output = tmp_path / "disk", tmp_path / "out"
    for name in ("out", "full", "corner"):
        (disk / name).mkdir(parents=True)
    output.symlink_to(disk / "out")
    (output / "shop-full").symlink_to(disk / "full")
    (output / "shop-corner").symlink_to("../corner")
    for vocab_size in (40, 41):
        build(raw, output, vocab_size=vocab_size)
        assert histories(disk / "full") == SHOP
        assert histories(disk / "corner") == CORNER
    assert {path.name for path in tmp_path.rglob("*") if path.is_symlink()} == {"out", "shop-full", "shop-corner"}
    assert sorted(path.name for path in disk.iterdir()) == ["corner", "full", "out"]


def test_a_run_that_was_killed_between_two_renames_is_mended_and_strangers_stay(raw, tmp_path):
    output = build(raw, tmp_path / "out")
    stamp = (output / "shop-full" / "manifest.json").stat().st_mtime_ns
    os.replace(output / "shop-full", output / ".shop-full.old-999999999")
    for name in (".shop-full.partial-999999999", ".shop-full.backup", ".shop-full.old-999999998", ".shop-corner.mine"):
        (output / name).mkdir()
    (output / ".shop-full.old-999999998" / "thesis").write_text("precious")
    build(raw, output)
    assert (output / "shop-full" / "manifest.json").stat().st_mtime_ns == stamp
    left = {path.name for path in output.iterdir() if path.name.startswith(".shop")}
    assert left == {".shop-full.backup", ".shop-full.old-999999998", ".shop-corner.mine"}


def test_a_folder_of_something_else_is_refused_and_left_as_it_is(raw, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match=r"out: is not empty, and etl has not made 'thesis.txt' in it; bind OUTPUT to"):
        build(raw, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]
    (tmp_path / "out" / "thesis.txt").unlink()
    build(raw, tmp_path / "out")
    (tmp_path / "out" / "shop-full" / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match=r"shop-full: is not empty and is no dataset alone \('thesis.txt' is in it\)"):
        build(raw, tmp_path / "out", vocab_size=41)
    assert (tmp_path / "out" / "shop-full" / "thesis.txt").read_text() == "precious"


def after(monkeypatch, module, name, change):
    """Has a change made as soon as a function has run."""
    function = getattr(module, name)

    def changing(*arguments, **named):
        found = function(*arguments, **named)
        change()
        return found

    monkeypatch.setattr(module, name, changing)


def rewrite(path: Path, text: str) -> None:
    """Another text, of the same size and the same time."""
    status = path.stat()
    assert len(text) == status.st_size
    path.write_text(text)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


CHANGES = {
    "items": (steps.catalog, "index_catalog", "items.csv", ITEMS.replace("jug", "mug")),
    "log": (steps.by_user, "partition_bits", "log.csv", LOG.replace("u2", "u4")),
    "domain": (steps, "_check_log", "domain.csv", DOMAIN.replace("z", "b")),
}


@pytest.mark.parametrize("which", CHANGES)
def test_a_raw_file_that_changes_while_it_is_read_is_named_and_the_next_run_is_right(raw, tmp_path, monkeypatch, which):
    module, function, name, text = CHANGES[which]
    before = (raw / name).read_text()
    after(monkeypatch, module, function, lambda: rewrite(raw / name, text))
    with pytest.raises(InputError, match=f"{name}: has changed while it was read; run the same command again"):
        build(raw, tmp_path / "out")
    monkeypatch.undo()
    rewrite(raw / name, before)  # so that the hashes are those of before, but what was read is not
    build(raw, tmp_path / "out")
    assert histories(tmp_path / "out" / "shop-full") == SHOP
    assert histories(tmp_path / "out" / "shop-corner") == CORNER
    rewrite(raw / name, text)
    build(raw, tmp_path / "out")
    inputs = open_dataset(tmp_path / "out" / "shop-full").manifest["inputs"]
    assert all(record["sha256"] == sha256_of(raw / record["name"]) for record in inputs)


def test_a_raw_file_that_is_removed_is_one_line(raw, tmp_path, monkeypatch):
    after(monkeypatch, steps.catalog, "index_catalog", (raw / "log.csv").unlink)
    with pytest.raises(InputError, match=r"log.csv: No such file or directory; mend that and run the same command"):
        build(raw, tmp_path / "out")


def test_a_file_that_comes_while_others_are_read_belongs_to_the_next_run(raw, tmp_path, monkeypatch):
    log = {"interactions": InteractionFiles(["log*.csv"])}
    later = LOG.replace("u1", "v1").replace("u2", "v2")
    after(monkeypatch, steps.catalog, "index_catalog", lambda: (raw / "log2.csv").write_text(later))
    build(raw, tmp_path / "out", **log)
    assert histories(tmp_path / "out" / "shop-full") == SHOP
    build(raw, tmp_path / "out", **log)
    assert set(histories(tmp_path / "out" / "shop-full")) == {"u1", "u2", "v1", "v2"}


def test_whoever_names_users_and_items_can_neither_join_nor_shadow_others(raw, tmp_path):
    user, item = "A1B2C3D4E5F6G7", "B0000001AAAAAAAA"
    users, items = with_the_hash_of(user)[:2], with_the_hash_of(item)[:3]
    (raw / "items.csv").write_text(ITEMS + f"{items[0]},green lamp\n{item},red lamp\n{items[1]},blue lamp\n")
    rows = [(user, item), (user, items[2]), (users[0], items[1]), (users[1], item)]
    (raw / "log.csv").write_text(LOG + "".join(f"{one},{other},{T}\n" for one, other in rows))
    (raw / "domain.csv").write_text(DOMAIN + f"{users[1]},{item},{T}\nu4,{items[2]},{T}\nu5,{items[0]},{T}\n")
    output = build(raw, tmp_path / "out", whole_catalog=True)
    assert histories(output / "shop-full") == {**SHOP, user: [item], users[0]: [items[1]]}
    data = open_dataset(output / "shop-full")
    assert data.items_table["item_id"].to_pylist()[1:] == ["a", "b", "c", items[0], item, items[1]]
    assert data.manifest["rejected"] == {"item has no metadata": 1, "user is held out": 1}
    assert histories(output / "shop-corner") == {**CORNER, users[1]: [item], "u4": [items[2]], "u5": [items[0]]}
    assert open_dataset(output / "shop-corner").manifest["items_without_text"] == 2


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", ".etl", "a\0b"])
def test_names_lead_nowhere_else(raw, tmp_path, name):
    for changes in ({"name": name}, {"domains": {name: InteractionFiles(["domain.csv"])}}):
        with pytest.raises(InputError, match="is no name of a folder in OUTPUT"):
            build(raw, tmp_path / "out", **changes)


def test_seconds_among_milliseconds_are_told_with_the_binding_to_change(raw, tmp_path, caplog):
    (raw / "log.csv").write_text(LOG + f"u1,a,{T * 1_000}\nu1,b,{T * 1_000}\nu2,b,-7\n")
    words = "timestamp is outside 1995..2035 in InteractionFiles.unit = 's', but not in 'ms'"
    with pytest.raises(InputError, match=rf"log.csv, line 6: {words}: .* above MAX_BAD_ROWS = 0.001"):
        build(raw, tmp_path / "out")
    output = build(raw, tmp_path / "out", max_bad_rows=0.5)
    rejected = open_dataset(output / "shop-full").manifest["rejected"]
    assert rejected == {words: 2, "timestamp is outside 1995..2035": 1}
    assert caplog.text.count(f"{words}: u1,a,") == 1
    assert "1995..2035: u2,b,-7" in caplog.text


def test_a_files_name_is_shown_as_a_terminal_may_have_it(tmp_path):
    bad = BadRows(1.0)
    bad.add(os.fsdecode(b"\xff\x1b[31m.csv"), 0, 1, [BadRow.of(1, "is bad", "x")])
    assert bad.examples == ["\\udcff\\x1b[31m.csv, line 1: is bad: x"]
    assert bad.listed[0][0].encode()


@pytest.mark.parametrize("size", [150, 2_000, 9_000])
def test_a_full_disk_is_one_line_and_loses_nothing(raw, tmp_path, size):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        with pytest.raises(InputError, match=r"out: no space is left on the disk; .*it goes on from what is finished"):
            build(raw, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    build(raw, tmp_path / "out")
    assert histories(tmp_path / "out" / "shop-full") == SHOP


@pytest.mark.slow
@pytest.mark.parametrize("megabytes", [900, 1_200, 1_600, 2_000])
def test_little_memory_is_one_line_or_enough(raw, run_module, megabytes):
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, before[1]))
    try:
        done = run_module(
            "etl.main", "gin/etl_interactions.gin", SOURCE=repr(str(raw)), OUTPUT="'out'", INTERACTIONS="['log.csv']",
            ITEMS="['items.csv']", VOCAB_SIZE="40",
        )  # fmt: skip
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert "Traceback" not in done.stderr
    assert done.returncode == 0 or "memory" in next(line for line in done.stderr.splitlines() if "error:" in line)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.3, 0.8, 1.5, 2.5])
def test_workers_end_with_their_parent_at_whatever_moment(raw, tmp_path, seconds):
    import subprocess
    import sys

    import psutil

    flags = [f"SOURCE={str(raw)!r}", f"OUTPUT={str(tmp_path / 'out')!r}", "INTERACTIONS=['log.csv']", "VOCAB_SIZE=40"]
    command = [sys.executable, "-m", "etl.main", "--gin_file=gin/etl_interactions.gin"]
    process = subprocess.Popen([*command, *(f"--gin_bindings={flag}" for flag in flags)], stderr=subprocess.DEVNULL)
    time.sleep(seconds)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
