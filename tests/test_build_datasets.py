"""From raw files to datasets: every trap counted by hand, the same bytes however it is run, bad input in one line."""

import gzip
import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import csv, parquet

from etl.synthetic_amazon import make_amazon
from seqrec_jax.data.store import open_dataset

T = 1_400_000_000
DATASETS = ("amazon-10", "amazon-full", "amazon-beauty", "amazon-sports")


def item(asin, title="A plain title", brand="Marlum", category=("Sports", "Balls"), **more) -> str:
    record = {"asin": asin, "title": title, "brand": brand, "category": category, "price": "$1", **more}
    return json.dumps({name: value for name, value in record.items() if value is not None})


ITEMS = [
    item("I1", "Blue Ball", also_buy=["I2", "I3"]),
    item("I2", "Red\tBall, 12\u201d caf\u00e9 \u7403", brand=None),
    item("I3", "Ball", category=["x" * 40, "y" * 39, "Balls", "Toys", "More"]),
    item("I4", "Net", category="Sports"),
    item("I1", "Blue ball again"),
    item("I5", "var t = (new Date()).getTime();"),
    item("I6", "   "),
    item("I7", title=None),
    '{"asin": "I8", "title": "Cut sho',
    item("I9", "Lone surrogate \ud83d", brand=7),
]
KEPT = ["I1", "I2", "I3", "I4", "I9"]


def rows(user: str, *items: str, start: int = T) -> list[str]:
    return [f"{name},{user},5.0,{start + 10 * i}" for i, name in enumerate(items)]


RATINGS = [
    *rows("five", "I1", "I2", "I3", "I4", "I9"),
    *rows("four", "I1", "I2", "I3", "I4"),
    *rows("four-after", "I1", "I2", "I3", "I4", "I5"),  # the fifth has a refused title
    *rows("five-after", "I1", "I2", "I3", "I4", "I9", "I6", "NOWHERE"),
    *rows("held-out", "I1", "I2", "I3", "I4", "I9"),
    # Out of order, two at the same second, and the same pair twice, the second time at another time.
    f"I3,order,1.0,{T + 50}",
    f"I1,order,2.0,{T + 10}",
    f"I2,order,3.0,{T + 50}",
    f"I4,order,4.0,{T}",
    f"I1,order,5.0,{T + 60}",
    "I1,three,5.0",
    f"I1,columns,5.0,{T},x",
    "I1,when,5.0,yesterday",
    "I1,when,5.0,99",
    f"I1,when,good,{T}",
    *rows("na\u00efve \u7528\u6237", "I1", "I1", "I1", "I2", "I2"),
    f"I1,,5.0,{T}",
]
WINDOWS_LINE = f"I1,four,5.0,{T + 99}\r"  # the user's fifth


def review(user: str, asin: str, time: int) -> str:
    return json.dumps(
        {"reviewerID": user, "asin": asin, "overall": 4.0, "unixReviewTime": time, "reviewText": "\u00e9" * 9}
    )


BEAUTY = [
    review("held-out", "I2", T),
    review("held-out", "B1", T + 1),
    review("other", "I6", T),
    review("other", "I1", T),
]
SPORTS = [review("held-out", "I1", T)]


def gzipped(path: Path, lines: list[str], end: str = "\n") -> None:
    path.write_bytes(gzip.compress(("\n".join(lines) + end).encode()))


@pytest.fixture
def raw(tmp_path) -> Path:
    """The hand-written raw files."""
    folder = tmp_path / "raw"
    folder.mkdir()
    gzipped(folder / "All_Amazon_Meta.json.gz", ITEMS)
    (folder / "all_csv_files.csv").write_text(
        "\n".join([*RATINGS[:5], "", *RATINGS[5:], WINDOWS_LINE]) + "\n" + RATINGS[0]
    )
    gzipped(folder / "reviews_Beauty_5.json.gz", BEAUTY)
    gzipped(folder / "reviews_Sports_and_Outdoors_5.json.gz", SPORTS, end="")
    return folder


@pytest.fixture
def etl(run_module, tmp_path):
    """Runs a pipeline on the hand-written or other raw files."""

    def run(source: Path, output="out", gin_file="gin/etl_amazon.gin", step="all", **macros):
        small = {"SIZES": "[10]", "VOCAB_SIZE": "90", "MAX_BAD_ROWS": "0.5", "PROCESSES": "1"}
        small = {name: value for name, value in {**small, **macros}.items() if value is not None}
        where = {"SOURCE": repr(str(source)), "OUTPUT": repr(str(tmp_path / output))}
        return run_module("etl.main", gin_file, f"--step={step}", **where, **small)

    return run


def datasets_of(output: Path) -> dict[str, str]:
    """SHA-256 of every file of every dataset."""
    files = sorted(
        path for folder in output.iterdir() if folder.name[0] != "." and folder.is_dir() for path in folder.iterdir()
    )
    return {f"{path.parent.name}/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def report_of(output: Path) -> dict[str, dict]:
    steps = json.loads((output / "etl_report.json").read_text())["steps"]
    return {step["step"]: step for step in steps}


def histories(folder: Path) -> dict[str, list[str]]:
    dataset = open_dataset(folder, verify=True)
    ids = dataset.items_table["item_id"].to_pylist()
    users = dataset.interactions_table["user_id"].to_pylist()
    return {user: [ids[row] for row in dataset.user_items(place)] for place, user in enumerate(users)}


def test_every_trap_is_counted_as_worked_out_by_hand(etl, raw, tmp_path):
    done = etl(raw)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir() if path.name[0] != ".") == sorted([*DATASETS, "etl_report.json"])
    report = report_of(out)

    metadata = report["metadata"]
    assert metadata["rows_in"] == 10
    assert metadata["rows_out"] == 5
    assert metadata["rejected"] == {
        "title contains 'getTime'": 1,
        "title is empty": 2,
        "item is listed again": 1,
        "is not a JSON object": 1,
    }
    assert metadata["examples"] == [
        f"{raw / 'All_Amazon_Meta.json.gz'}, line 9: is not a JSON object: " + ITEMS[8],
    ]

    ratings = report["ratings"]
    assert ratings["rows_in"] == len(RATINGS) + 2
    # 'five' with its last line twice, 'four' with its Windows line, 'five-after', 'order' and the one in other scripts.
    assert ratings["rows_out"] == 6 + 5 + 5 + 5 + 5
    assert ratings["rejected"] == {
        "item has no metadata": 3,
        "user is held out": 5,
        "user has fewer than 5 interactions": 4,
        "has 3 columns, not 4": 1,
        "has 5 columns, not 4": 1,
        "timestamp is no number": 1,
        "timestamp is outside 1995..2035": 1,
        "rating is no number": 1,
        "user id is empty": 1,
    }
    line = 1 + 1 + RATINGS.index("I1,three,5.0")  # counted from 1, and one line is blank
    assert f"{raw / 'all_csv_files.csv'}, line {line}: has 3 columns, not 4: I1,three,5.0" in ratings["examples"]
    assert any(f"line {line + 2}: timestamp is no number" in example for example in ratings["examples"])
    listed = (out / ".etl" / "amazon" / "ratings" / "bad_rows.tsv").read_text().splitlines()
    assert len(listed) == 6
    assert f"{raw / 'all_csv_files.csv'}\t{line}\thas 3 columns, not 4\tI1,three,5.0" in listed

    for step in ("metadata", "ratings", "downstream"):
        assert report[step]["rows_in"] == report[step]["rows_out"] + sum(report[step]["rejected"].values())
        assert report[step]["peak_rss_bytes"] > 0
        assert report[step]["seconds"] > 0

    full = histories(out / "amazon-full")
    assert set(full) == {"five", "four", "five-after", "order", "na\u00efve \u7528\u6237"}
    assert [full["order"][:2], sorted(full["order"][2:4]), full["order"][4:]] == [["I4", "I1"], ["I2", "I3"], ["I1"]]
    assert full["five"] == ["I1", "I1", "I2", "I3", "I4", "I9"]
    assert full["four"] == ["I1", "I2", "I3", "I4", "I1"]
    manifest = open_dataset(out / "amazon-full").manifest
    assert manifest["counts"] == {"users": 5, "items": 5, "interactions": 26}
    assert manifest["rejected"]["user is held out"] == 5
    assert manifest["ties"] == {"order": "random", "seed": 42, "neighbours": 2, "of": 21}
    assert [record["name"] for record in manifest["inputs"]] == [
        "All_Amazon_Meta.json.gz",
        "all_csv_files.csv",
        "reviews_Beauty_5.json.gz",
        "reviews_Sports_and_Outdoors_5.json.gz",
    ]


def test_ties_are_as_in_the_files_or_random_and_counted_in_the_unit_of_the_times(etl, raw, tmp_path):
    users = [f"u{user:03d}" for user in range(200)]
    lines = [f"{item},{user},5.0,{T}" for item in ("I1", "I2", "I3", "I4") for user in users]
    lines += [f"I9,{user},5.0,{T + 9}" for user in users]
    (raw / "all_csv_files.csv").write_text("\n".join(lines))
    done = etl(raw, TIES="'file'", output="file")
    assert "amazon-full: 75 % of neighbouring interactions of a user have the same time; they are in" in done.stderr
    assert done.stderr.count("TIES = 'random' shuffles them") == 2  # amazon-full, and of Beauty's
    assert all(seen == KEPT for seen in histories(tmp_path / "file" / "amazon-full").values())
    found = []
    for order, seed in ((lines, "42"), (lines[::-1], "42"), (lines, "7")):
        (raw / "all_csv_files.csv").write_text("\n".join(order))
        done = etl(raw, output="random", SEED=seed, SIZES="[500]")
        assert "TIES" not in done.stderr
        found.append(histories(tmp_path / "random" / "amazon-full"))
    assert found[0] == found[1] != found[2]
    for user, seen in histories(tmp_path / "random" / "amazon-500").items():
        assert seen == found[2][user]
    manifest = open_dataset(tmp_path / "random" / "amazon-500").manifest
    n_users = manifest["counts"]["users"]
    assert manifest["ties"] == {"order": "random", "seed": 7, "neighbours": 3 * n_users, "of": 4 * n_users}
    assert {tuple(seen[:4]) for seen in found[0].values()} == set(itertools.permutations(KEPT[:4]))
    beauty = open_dataset(tmp_path / "random" / "amazon-beauty").manifest
    assert beauty["ties"] == {"order": "random", "seed": 7, "neighbours": 1, "of": 2}


def test_ties_are_compared_in_the_unit_of_the_times(run_module, tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    rows = "".join(f"u,{item},{T}{ms}\n" for item, ms in zip("abcd", ("007", "005", "005", "001"), strict=True))
    (raw / "interactions.csv").write_text("user_id,item_id,timestamp\n" + rows)
    (raw / "items.csv").write_text("item_id,title\na,red\nb,blue\nc,green\nd,pink\n")
    flags = {"SOURCE": "'raw'", "OUTPUT": "'out'", "UNIT": "'ms'", "VOCAB_SIZE": "40"}
    assert run_module("etl.main", "gin/etl_interactions.gin", **flags).returncode == 0
    data = open_dataset(tmp_path / "out" / "shop-full")
    assert histories(data.folder) == {"u": ["d", "b", "c", "a"]}
    assert data.interactions_table["timestamps"].to_pylist() == [[T] * 4]
    assert data.ties == {"order": "file", "neighbours": 1, "of": 3}


def test_texts_are_kept_as_they_are_and_tokenized(etl, raw, tmp_path):
    assert etl(raw).returncode == 0
    dataset = open_dataset(tmp_path / "out" / "amazon-full")
    table = dataset.items_table.to_pydict()
    assert table["item_id"] == ["", *KEPT]
    assert table["title"][1:4] == ["Blue Ball", "Red\tBall, 12\u201d caf\u00e9 \u7403", "Ball"]
    assert table["title"][5] == "Lone surrogate ?"
    assert table["brand"] == ["", "Marlum", "", "Marlum", "Marlum", "7"]
    assert table["category_l1"] == [None, "Sports", "Sports", "y" * 39, None, "Sports"]
    assert table["category_l2"][3] == "Balls"
    assert table["category_l3"][3] == "Toys"
    assert table["title_tokens"][0] == []
    assert dataset.tokens("brand")[2].any()  # `unknown`
    assert dataset.features == ("title", "brand")


@pytest.mark.slow
def test_domains_keep_items_without_metadata_unless_they_are_dropped(etl, raw, tmp_path):
    assert etl(raw).returncode == 0
    beauty = histories(tmp_path / "out" / "amazon-beauty")
    assert beauty == {"held-out": ["I2", "B1"], "other": ["I6", "I1"]}
    dataset = open_dataset(tmp_path / "out" / "amazon-beauty")
    assert dataset.items_table["item_id"].to_pylist() == ["", "I1", "I2", "B1", "I6"]
    assert dataset.manifest["items_without_text"] == 2
    unknown = dataset.tokens("title")[3]
    assert unknown.any()
    np.testing.assert_array_equal(unknown, dataset.tokens("title")[4])
    assert dataset.interactions_table["ratings"].to_pylist()[0] == [4.0, 4.0]

    done = etl(raw, DROP_WITHOUT_METADATA="True")
    assert done.returncode == 0
    assert "ratings: is finished already" in done.stderr
    assert histories(tmp_path / "out" / "amazon-beauty") == {"held-out": ["I2"], "other": ["I1"]}
    manifest = open_dataset(tmp_path / "out" / "amazon-beauty").manifest
    assert manifest["rejected"] == {"item has no metadata or title": 2}


@pytest.fixture(scope="session")
def amazon_files(tmp_path_factory) -> Path:
    """Made-up raw files: 40,000 ratings of 3,000 items, 20 rows bad."""
    folder = tmp_path_factory.mktemp("amazon")
    make_amazon(folder, 40_000, 3_000, bad_rows=20)
    return folder


SIZES = {"SIZES": "[5_000, 10_000, 20_000]", "VOCAB_SIZE": "2000", "MAX_BAD_ROWS": "0.001"}


@pytest.fixture(scope="session")
def undisturbed(amazon_files, tmp_path_factory) -> Path:
    """What one run makes of them."""
    output = tmp_path_factory.mktemp("undisturbed")
    done = subprocess.run(command(amazon_files, output, PROCESSES="2"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return output


def command(source: Path, output: Path, **macros: str) -> list[str]:
    bindings = {"SOURCE": repr(str(source)), "OUTPUT": repr(str(output)), **SIZES, **macros}
    flags = [f"--gin_bindings={name}={value}" for name, value in bindings.items()]
    return [sys.executable, "-m", "etl.main", "--gin_file=gin/etl_amazon.gin", *flags]


def test_samples_are_nested_and_of_the_size_to_expect(undisturbed):
    users = [set(histories(undisturbed / f"amazon-{size}")) for size in ("5K", "10K", "20K", "full")]
    for smaller, larger in itertools.pairwise(users):
        assert smaller < larger
    shares = np.array([5_000, 10_000, 20_000]) / open_dataset(undisturbed / "amazon-full").n_interactions
    n_users = len(users[-1])
    spread = np.sqrt(shares * (1 - shares) * n_users)
    np.testing.assert_array_less(np.abs([len(sample) for sample in users[:3]] - shares * n_users), 4 * spread)
    sample = open_dataset(undisturbed / "amazon-5K")
    assert set(np.concatenate([sample.user_items(u) for u in range(sample.n_users)])) == set(
        range(1, sample.n_items + 1)
    )


@pytest.mark.parametrize("processes", [pytest.param("1", marks=pytest.mark.slow), "7"])
def test_the_bytes_do_not_depend_on_the_processes(amazon_files, undisturbed, tmp_path, processes, monkeypatch):
    done = subprocess.run(
        command(amazon_files, tmp_path, PROCESSES=processes, MEMORY_LIMIT="'8GB'"), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert datasets_of(tmp_path) == datasets_of(undisturbed)


@pytest.mark.slow
def test_a_dask_cluster_makes_the_same_bytes(amazon_files, undisturbed, tmp_path):
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        address = repr(cluster.scheduler_address)
        done = subprocess.run(command(amazon_files, tmp_path, EXECUTOR=address), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert datasets_of(tmp_path) == datasets_of(undisturbed)


def kill_and_go_on(amazon_files: Path, output: Path, times: int, seconds: float, seed: int) -> None:
    """Kills a run at random moments, then lets it finish."""
    rng = np.random.default_rng(seed)
    for _ in range(times):
        process = subprocess.Popen(
            command(amazon_files, output, PROCESSES="2"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            process.wait(timeout=rng.uniform(0.2, seconds))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    done = subprocess.run(command(amazon_files, output, PROCESSES="2"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_killed_run_goes_on_to_the_same_bytes(amazon_files, undisturbed, tmp_path):
    kill_and_go_on(amazon_files, tmp_path, times=4, seconds=3.0, seed=0)
    assert datasets_of(tmp_path) == datasets_of(undisturbed)


@pytest.mark.slow
def test_thirty_kills_end_in_the_same_bytes(amazon_files, undisturbed, tmp_path):
    kill_and_go_on(amazon_files, tmp_path, times=30, seconds=3.0, seed=1)
    assert datasets_of(tmp_path) == datasets_of(undisturbed)


@pytest.mark.slow
def test_a_changed_binding_redoes_what_depends_on_it_and_nothing_else(etl, raw, tmp_path):
    assert etl(raw).returncode == 0
    before = datasets_of(tmp_path / "out")
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "amazon-10").iterdir()}
    done = etl(raw, SIZES="[10, 20]")
    for step in ("metadata", "tokenizer", "tokenize", "ratings"):
        assert f"{step}: is finished already" in done.stderr
    assert "amazon-10: is there already" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    after = datasets_of(tmp_path / "out")
    assert {name: after[name] for name in before} == before
    assert "amazon-20/manifest.json" in after

    done = etl(raw, VOCAB_SIZE="80")
    assert "metadata: is finished already" in done.stderr
    assert "ratings: is finished already" in done.stderr
    assert "tokenize: is finished already" not in done.stderr
    assert datasets_of(tmp_path / "out")["amazon-10/tokenizer.model"] != before["amazon-10/tokenizer.model"]


@pytest.mark.slow
def test_a_dataset_that_was_removed_is_made_again(etl, raw, tmp_path):
    assert etl(raw).returncode == 0
    before = datasets_of(tmp_path / "out")
    for path in (tmp_path / "out" / "amazon-beauty").iterdir():
        path.unlink()
    (tmp_path / "out" / "amazon-beauty").rmdir()
    assert etl(raw).returncode == 0
    assert datasets_of(tmp_path / "out") == before


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)


DAMAGE = {
    "metadata/000-00000.arrow": flip,
    "metadata/hashes.npy": Path.unlink,
    "metadata/ids.arrow": lambda path: path.write_bytes(b""),
    "tokenizer/tokenizer.model": flip,
    "tokenize/000-00000.arrow": Path.unlink,
    "ratings/users-00000.arrow": lambda path: os.truncate(path, 100),
    "ratings/held_out/ids.arrow": flip,
}


def test_damaged_intermediate_files_are_named_and_made_again(etl, raw, tmp_path):
    assert etl(raw).returncode == 0
    assert etl(raw, "undisturbed", SIZES="[10, 20]").returncode == 0
    folder = tmp_path / "out" / ".etl" / "amazon"
    for name, damage in DAMAGE.items():
        damage(folder / name)
    done = etl(raw, SIZES="[10, 20]")
    assert done.returncode == 0, done.stderr
    for name in ("tokenizer/tokenizer.model", "tokenize/000-00000.arrow"):
        step = name.split("/")[0]
        assert f"{folder / name}: is missing, or not as it was written; the step {step!r} is run again" in done.stderr
    assert done.stderr.count("is run again") == 4
    assert datasets_of(tmp_path / "out") == datasets_of(tmp_path / "undisturbed")
    assert etl(raw, SIZES="[10, 20]").stderr.count("is finished already") == 4


def test_a_damaged_dataset_is_named_and_made_again(etl, raw, tmp_path):
    assert etl(raw).returncode == 0
    before = datasets_of(tmp_path / "out")
    flip(tmp_path / "out" / "amazon-10" / "items.arrow")
    (tmp_path / "out" / "amazon-full" / "interactions.arrow").unlink()
    os.truncate(tmp_path / "out" / "amazon-beauty" / "tokenizer.model", 9)
    (tmp_path / "out" / ".etl" / "amazon" / "downstream" / "amazon-sports.json").write_text("{}")
    done = etl(raw)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(" is made again (") == 4
    assert "amazon-10: is made again (" in done.stderr
    assert "amazon-10/items.arrow: its checksum is not the manifest's" in done.stderr
    assert datasets_of(tmp_path / "out") == before
    assert etl(raw).stderr.count("is there already") == 4


@pytest.mark.slow
def test_steps_can_be_run_one_by_one(etl, raw, tmp_path):
    wrong = etl(raw, "stepwise", step="tokenize")
    assert wrong.returncode == 2
    assert "error: --step: the step 'metadata' must be run first" in wrong.stderr
    for step in ("metadata", "tokenizer", "tokenize", "ratings", "scale", "downstream"):
        assert etl(raw, "stepwise", step=step).returncode == 0
    assert list(report_of(tmp_path / "stepwise")) == [
        "metadata",
        "tokenizer",
        "tokenize",
        "ratings",
        "scale",
        "downstream",
    ]
    assert etl(raw).returncode == 0
    assert datasets_of(tmp_path / "stepwise") == datasets_of(tmp_path / "out")
    assert "error: --step=tokenise: no such step; one of all, download, metadata" in etl(raw, step="tokenise").stderr


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


WRONG = {
    "All_Amazon_Meta.json.gz: is truncated or no gzip file": lambda raw: truncate(raw / "All_Amazon_Meta.json.gz"),
    "reviews_Beauty_5.json.gz: is truncated or no gzip file": lambda raw: truncate(raw / "reviews_Beauty_5.json.gz"),
    "all_csv_files.csv: is empty": lambda raw: (raw / "all_csv_files.csv").write_bytes(b""),
    "All_Amazon_Meta.json.gz: no item is left of 2": lambda raw: gzipped(raw / "All_Amazon_Meta.json.gz", ITEMS[5:7]),
    "all_csv_files.csv: no interaction is left of 5 (5 user is held out)": lambda raw: (
        raw / "all_csv_files.csv"
    ).write_text("\n".join(rows("held-out", "I1", "I2", "I3", "I4", "I9"))),
}


@pytest.mark.parametrize("words", WRONG)
def test_bad_raw_files_end_in_one_line(etl, raw, tmp_path, words):
    WRONG[words](raw)
    done = etl(raw)
    assert done.returncode == 2
    errors = [line for line in done.stderr.replace("\r", "\n").splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert words in errors[0]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "amazon-full").exists()


@pytest.mark.parametrize("name", ["blank.json", "empty.parquet"])
def test_a_domain_without_a_row_that_can_be_read_is_refused(etl, raw, tmp_path, name):
    (raw / "blank.json").write_text("\n")
    columns = {"reviewerID": pa.string(), "asin": pa.string(), "overall": pa.float32(), "unixReviewTime": pa.int64()}
    parquet.write_table(pa.schema(columns).empty_table(), raw / "empty.parquet")
    done = etl(raw, **{"beauty/InteractionFiles__files": f"['{name}']"})
    assert done.returncode == 2
    assert f"{name}: has no rows that can be read" in done.stderr
    assert not (tmp_path / "out" / "amazon-beauty").exists()


def test_too_many_bad_rows_end_the_run_and_lose_nothing(etl, raw, tmp_path):
    done = etl(raw, MAX_BAD_ROWS="0.12")
    assert done.returncode == 2
    assert "all_csv_files.csv, line" in done.stderr
    assert "6 of 44 rows are bad, above MAX_BAD_ROWS = 0.12" in done.stderr
    done = etl(raw)
    assert done.returncode == 0
    assert "metadata: is finished already" in done.stderr


BINDINGS = {
    "MEMORY_LIMIT = 'much': is no amount of memory": {"MEMORY_LIMIT": "'much'"},
    "MEMORY_LIMIT = 0.30 GB is too little": {"MEMORY_LIMIT": "'300MB'"},
    "PROCESSES = 0: must be 1 or more": {"PROCESSES": "0"},
    "MAX_BAD_ROWS = 2.0: must be a share": {"MAX_BAD_ROWS": "2.0"},
    "SIZES: 0 is no number of interactions": {"SIZES": "[0]"},
    "user_core = 0: must be 1 or more": {"Plan__user_core": "0"},
    "no Dask scheduler answers there": {"EXECUTOR": "'tcp://127.0.0.1:9'"},
    "InteractionFiles.unit = 'min': must be": {"InteractionFiles__unit": "'min'"},
    "no such tokenizer": {"TOKENIZER": "'nowhere.model'"},
    "column 'usr' is missing; it has item, user, rating, timestamp": {"InteractionFiles__user": "'usr'"},
    "no such file (ItemFiles.files)": {"ItemFiles__files": "['meta.json']"},
    "unknown kind of file": {"ItemFiles__files": "['*']"},
    "ItemFiles.required = 'name': is not among ItemFiles.texts": {"ItemFiles__required": "'name'"},
    "TIES = 'days': must be 'file' or 'random'": {"TIES": "'days'"},
    "SEED = -1: must be a whole number": {"SEED": "-1"},
    "NAME = '../amazon': is no name of a folder in OUTPUT": {"Plan__name": "'../amazon'"},
}


@pytest.mark.parametrize("words", BINDINGS)
def test_bad_bindings_end_in_one_line(etl, raw, tmp_path, words):
    (raw / "README").write_text("of another kind")
    done = etl(raw, **BINDINGS[words])
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "amazon-full").exists()


def test_an_output_of_another_schema_is_refused(etl, raw, tmp_path):
    assert etl(raw).returncode == 0
    schema = tmp_path / "out" / ".etl" / "schema.json"
    kept = schema.read_text()
    schema.write_text('{"schema_version": 99}')
    assert "schema version 99, but this program writes 3" in etl(raw).stderr
    schema.write_text(kept)
    manifest = tmp_path / "out" / "amazon-10" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"schema_version": 3', '"schema_version": 2'))
    done = etl(raw)
    assert done.returncode == 2
    assert "amazon-10/manifest.json: schema version 2, but this program reads 3" in done.stderr
    assert "Traceback" not in done.stderr


def test_two_runs_on_one_output_are_refused(amazon_files, tmp_path):
    first = subprocess.Popen(command(amazon_files, tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not (tmp_path / ".etl" / "schema.json").exists():
            assert first.poll() is None
        second = subprocess.run(command(amazon_files, tmp_path), capture_output=True, text=True)
    finally:
        first.kill()
        first.wait()
    assert second.returncode == 2
    assert f"another etl (process {first.pid}) is working on it" in second.stderr


def test_a_full_disk_is_one_line_and_loses_nothing(amazon_files, undisturbed, tmp_path):
    limited = f"ulimit -f 200 && exec {' '.join(map(quoted, command(amazon_files, tmp_path, PROCESSES='1')))}"
    done = subprocess.run(["bash", "-c", limited], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "no space is left on the disk" in done.stderr
    assert "Traceback" not in done.stderr
    done = subprocess.run(command(amazon_files, tmp_path, PROCESSES="1"), capture_output=True, text=True)
    assert done.returncode == 0
    assert datasets_of(tmp_path) == datasets_of(undisturbed)


def quoted(word: str) -> str:
    return "'" + word.replace("'", "'\\''") + "'"


def test_company_tables_in_parquet_and_csv_give_the_same_dataset(etl, tmp_path):
    folder = tmp_path / "company"
    folder.mkdir()
    log = pa.table(
        {
            "customer": ["b", "a", "a", "b", "c", "a"],
            "sku": ["s1", "s2", "s1", "s9", "s3", "s3"],
            "at": [
                "2024-03-01 10:00:02",
                "2024-03-01 10:00:05",
                "2024-03-01 10:00:01",
                "2024-03-01",
                "2024-03-02",
                "2024-03-03",
            ],
        }
    )
    goods = pa.table(
        {"sku": ["s1", "s2", "s3", "s4"], "name": ['Pen, "blue"', "Ink", None, "Paper"], "maker": ["X", "Y", "", "X"]}
    )
    csv.write_csv(log, folder / "log.csv")
    csv.write_csv(goods, folder / "goods.csv")
    timed = log.set_column(2, "at", log["at"].cast(pa.timestamp("ms")))
    parquet.write_table(timed, folder / "log.parquet", row_group_size=4)
    parquet.write_table(goods, folder / "goods.parquet")
    bindings = {
        "USER": "'customer'",
        "ITEM": "'sku'",
        "TIMESTAMP": "'at'",
        "ITEM_ID": "'sku'",
        "TEXTS": "{'title': 'name', 'brand': 'maker'}",
        "MAX_TOKENS": "{'title': 40, 'brand': 8}",
        "VOCAB_SIZE": "40",
        "SIZES": "[]",
    }
    for kind, unit in (("csv", "iso"), ("parquet", "ms")):
        files = {"INTERACTIONS": f"['log.{kind}']", "ITEMS": f"['goods.{kind}']", "UNIT": repr(unit)}
        done = etl(folder, kind, "gin/etl_interactions.gin", **bindings, **files)
        assert done.returncode == 0, done.stderr
    found = histories(tmp_path / "csv" / "shop-full")
    assert found == {"a": ["s1", "s2", "s3"], "b": ["s1"], "c": ["s3"]}
    dataset = open_dataset(tmp_path / "csv" / "shop-full")
    assert dataset.n_items == 4
    assert dataset.items_table["title"].to_pylist()[1:] == ['Pen, "blue"', "Ink", "", "Paper"]
    assert dataset.manifest["rejected"] == {"item has no metadata": 1}
    at = dict(
        zip(
            dataset.interactions_table["user_id"].to_pylist(),
            dataset.interactions_table["timestamps"].to_pylist(),
            strict=True,
        )
    )
    assert at["b"] == [1_709_287_202]
    for name in ("interactions.arrow", "items.arrow", "tokenizer.model"):
        assert (
            datasets_of(tmp_path / "csv")[f"shop-full/{name}"] == datasets_of(tmp_path / "parquet")[f"shop-full/{name}"]
        )


def test_amazon_2023_in_milliseconds_with_a_k_core(etl, tmp_path):
    folder = tmp_path / "2023"
    folder.mkdir()

    def line(user, item, at):
        return json.dumps(
            {"user_id": user, "asin": "x", "parent_asin": item, "timestamp": at, "rating": 5.0, "text": "y"}
        )

    reviews = [line(user, item, 1_600_000_000_000 + at) for user, item, at in CORE]
    meta = [
        json.dumps({"parent_asin": item, "title": f"Thing {item}", "store": "S", "categories": ["A"]})
        for item in "ABCD"
    ]
    gzipped(folder / "All_Beauty.jsonl.gz", reviews[:5])
    gzipped(folder / "Musical_Instruments.jsonl.gz", reviews[5:])
    gzipped(folder / "meta_All_Beauty.jsonl.gz", meta[:2])
    (folder / "meta_Musical_Instruments.jsonl").write_text("\n".join(meta[2:]))
    done = etl(folder, gin_file="gin/etl_amazon_2023.gin", SIZES="[]", VOCAB_SIZE="30", USER_CORE="2", ITEM_CORE="2")
    assert done.returncode == 0, done.stderr
    assert histories(tmp_path / "out" / "amazon-2023-full") == {"u1": ["B", "A"], "u2": ["A", "B"]}
    assert report_of(tmp_path / "out")["ratings"]["rejected"] == {
        "user has fewer than 2 interactions": 1,
        "not in the k-core": 3,
    }
    times = open_dataset(tmp_path / "out" / "amazon-2023-full").interactions_table["timestamps"].to_pylist()
    assert sorted(times) == [[1_600_000_000, 1_600_000_000], [1_600_000_000, 1_600_000_001]]


# u4 goes first, for it has one interaction; then C and D, which u3 alone has left; then u3, who has one left.
CORE = [
    ("u1", "A", 999),
    ("u1", "B", 1),
    ("u2", "A", 3),
    ("u2", "B", 1_003),
    ("u3", "A", 4),
    ("u3", "C", 5),
    ("u3", "D", 6),
    ("u4", "C", 7),
]


def test_what_is_printed_says_what_became_of_the_rows(etl, raw):
    done = etl(raw)
    assert "What became of the rows" in done.stdout
    assert "ratings: 5 left out: user is held out" in done.stdout


def test_ctrl_c_ends_in_good_order(amazon_files, undisturbed, tmp_path):
    process = subprocess.Popen(command(amazon_files, tmp_path), stderr=subprocess.PIPE, text=True)
    while not (tmp_path / ".etl" / "amazon" / "metadata").exists():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, printed = process.communicate()
    assert process.returncode == 130
    assert "the same command goes on from what is finished" in printed
    assert "Traceback" not in printed
    assert subprocess.run(command(amazon_files, tmp_path), capture_output=True).returncode == 0
    assert datasets_of(tmp_path) == datasets_of(undisturbed)


def test_no_process_is_left_behind_by_a_killed_run(amazon_files, tmp_path):
    import psutil

    process = subprocess.Popen(
        command(amazon_files, tmp_path, PROCESSES="2"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    children: list[psutil.Process] = []
    while len(children) < 3 and process.poll() is None:
        children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) == 3  # two workers, and Python's tracker of shared resources
    os.kill(process.pid, 9)
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
