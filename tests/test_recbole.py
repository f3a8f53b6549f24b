"""Atomic files to a dataset, with every trap that the format holds."""

import errno
import json
import os

import numpy as np
import pyarrow.compute as pc
import pytest
from conftest import shared_file

from etl import dataset_writer, recbole, tokenizer
from etl.recbole import convert
from seqrec_jax.data.store import open_dataset
from seqrec_jax.errors import InputError

ITEMS = """item_id:token\ttitle:token_seq\tbrand:token_seq
a\tRed "Wool" Hat, large\tNorth
b\t\tSouth
c\tBlue hat\t
d\tÉtoile éclair ☕\tNorth
c\tagain\tWest
"""
INTERACTIONS = """user_id:token\titem_id:token\trating:float\ttimestamp:float
u1\tb\t5\t30
u2\ta\t4\t1.5e1
u1\ta\t3\t10
u1\tc\t2\t30
u1\ta\t1\t10
u2\tzzz\t5\t16
u3\td\t5\t-7.5
"""


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "x.item").write_text(ITEMS, encoding="utf-8")
    (folder / "x.inter").write_text(INTERACTIONS, encoding="utf-8")
    return folder


def run(source, **settings):
    output = source.parent / "dataset"
    return convert(source=str(source), output=str(output), **{"vocab_size": 60} | settings), output


def test_rows_order_counts_and_rejections(source):
    manifest, output = run(source)
    assert manifest["counts"] == {"users": 3, "items": 4, "interactions": 6}
    assert manifest["rejected"] == {"item not in the .item file": 1, "item listed again": 1}
    dataset = open_dataset(output, verify=True)
    table = dataset.interactions_table
    assert table["user_id"].to_pylist() == ["u1", "u2", "u3"]
    assert table["items"].to_pylist() == [[1, 1, 2, 3], [1], [4]]
    assert table["timestamps"].to_pylist() == [[10, 10, 30, 30], [15], [-8]]
    assert table["ratings"].to_pylist() == [[3, 1, 5, 2], [4], [5]]
    assert dataset.items_table["item_id"].to_pylist() == ["", "a", "b", "c", "d"]
    assert dataset.items_table["title"].to_pylist() == ["", 'Red "Wool" Hat, large', "", "Blue hat", "Étoile éclair ☕"]
    assert dataset.features == ("title", "brand")


def test_ties_are_counted_and_random_ones_do_not_depend_on_the_file(source, caplog):
    lines = [f"u{user}\ti{item:02d}\t{item // 4}.5\n" for user in range(40) for item in range(12)]
    lines.append("u0\ti11\t2.75\n")  # within the same second, but not at the same time
    items = "item_id:token\ttitle:token_seq\n" + "".join(f"i{item:02d}\that {item}\n" for item in range(12))
    (source / "x.item").write_text(items)
    header = "user_id:token\titem_id:token\ttimestamp:float\n"
    (source / "x.inter").write_text(header + "".join(lines))
    manifest, output = run(source)
    assert manifest["ties"] == {"order": "file", "neighbours": 40 * 3 * 3, "of": 40 * 11 + 1}
    assert "82 % of neighbouring interactions of a user have the same time; they are in the order of the" in caplog.text
    assert caplog.text.count("TIES = 'random' shuffles them") == 1
    in_file = dict(open_dataset(output).interactions_table.select(["user_id", "items"]).to_pydict().items())
    caplog.clear()
    orders = []
    for permutation, seed in ((np.arange(len(lines)), 42), (np.arange(len(lines))[::-1], 42), (np.arange(481), 7)):
        (source / "x.inter").write_text(header + "".join(lines[row] for row in permutation))
        manifest, output = run(source, ties="random", seed=seed)
        assert manifest["ties"] == {"order": "random", "seed": seed, "neighbours": 360, "of": 441}
        table = open_dataset(output).interactions_table
        orders.append(dict(zip(table["user_id"].to_pylist(), table["items"].to_pylist(), strict=True)))
    assert orders[0] == orders[1] != orders[2]
    assert caplog.text.count("82 % of neighbouring interactions") == 0  # of no harm, so no warning
    for user, items in zip(in_file["user_id"], in_file["items"], strict=True):
        assert items == [*range(1, 13), *([12] if user == "u0" else [])]
        of_user = orders[0][user]
        assert [sorted(of_user[first : first + 4]) for first in (0, 4, 8)] == [items[:4], items[4:8], items[8:12]]
    rises = np.concatenate([np.diff(items).reshape(-1) > 0 for user, items in orders[0].items() if user != "u0"])
    tied = rises.reshape(39, 11)[:, [0, 1, 2, 4, 5, 6, 8, 9, 10]]
    assert 0.42 < tied.mean() < 0.58


def test_repeated_pairs_at_one_time_stay_in_the_order_of_the_file(source):
    _, output = run(source, ties="random")
    table = open_dataset(output).interactions_table
    assert table["items"].to_pylist()[0][:2] == [1, 1]
    assert table["ratings"].to_pylist()[0][:2] == [3, 1]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ties": "day"}, "TIES = 'day': must be 'file' or 'random'"),
        ({"ties": None}, "TIES = None: must be 'file' or 'random'"),
        ({"seed": -1}, "SEED = -1: must be a whole number"),
        ({"seed": 0.5}, "SEED = 0.5: must be a whole number"),
    ],
)
def test_another_order_of_ties_is_refused(source, settings, words):
    with pytest.raises(InputError, match=words):
        run(source, **settings)


@pytest.mark.parametrize(("ties", "ascending"), [("file", 1.0), ("random", 0.5)])
def test_half_of_beautys_neighbours_of_a_day_ascend_once_they_are_shuffled(tmp_path, ties, ascending):
    source = shared_file("data/amazon-beauty-timed")
    manifest = convert(source=str(source), output=str(tmp_path / "beauty"), max_tokens={}, ties=ties)
    assert manifest["ties"]["neighbours"] / manifest["ties"]["of"] == pytest.approx(0.44, abs=0.005)
    data = open_dataset(tmp_path / "beauty")
    items = data.items.take(np.arange(data.n_interactions))
    times = data.interactions_table["timestamps"].combine_chunks().values.to_numpy()
    tied = times[1:] == times[:-1]
    tied[data.offsets[1:-1] - 1] = False
    assert tied.sum() == manifest["ties"]["neighbours"]
    rank = np.argsort(np.argsort(np.array(data.items_table["item_id"].to_pylist())))[items]
    assert (rank[1:] > rank[:-1])[tied].mean() == pytest.approx(ascending, abs=0.01)


def test_an_empty_text_is_unknown(source):
    _, output = run(source)
    dataset = open_dataset(output)
    tokens = tokenizer.load(output).encode([tokenizer.UNKNOWN], 40)[0]
    assert tokens
    assert dataset.items_table["title_tokens"][2].as_py() == tokens
    assert dataset.items_table["brand_tokens"][3].as_py() == tokens


def test_the_same_inputs_give_the_same_bytes(source):
    run(source)
    first = {path.name: path.read_bytes() for path in (source.parent / "dataset").iterdir()}
    run(source)
    assert {path.name: path.read_bytes() for path in (source.parent / "dataset").iterdir()} == first
    assert str(source.parent) not in json.dumps(json.loads(first["manifest.json"]))


def test_windows_line_ends_and_a_missing_last_newline(source):
    run(source)
    expected = open_dataset(source.parent / "dataset").interactions_table
    text = (source / "x.inter").read_text().replace("\n", "\r\n").rstrip("\r\n")
    (source / "x.inter").write_bytes(text.encode())
    _, output = run(source)
    assert open_dataset(output).interactions_table.equals(expected)


def test_an_existing_tokenizer_is_used_as_it_is(source):
    _, output = run(source)
    model = (output / "tokenizer.model").read_bytes()
    kept = source.parent / "kept.model"
    kept.write_bytes(model)
    (source / "x.item").write_text(ITEMS.replace("Blue hat", "Something else entirely"))
    manifest, output = run(source, tokenizer_from=str(kept))
    assert (output / "tokenizer.model").read_bytes() == model
    assert manifest["parameters"]["trained_tokenizer"] is False


def test_a_tokenizer_with_a_piece_at_id_0_is_shifted_so_that_0_stays_padding(source):
    import io

    import sentencepiece

    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["red hat blue hat"] * 20),
        model_writer=out,
        vocab_size=20,
        model_type="bpe",
        minloglevel=2,
    )
    (source / "plain.model").write_bytes(out.getvalue())
    manifest, output = run(source, tokenizer_from=str(source / "plain.model"))
    tokens = open_dataset(output).items_table["title_tokens"]
    assert pc.min(pc.list_flatten(tokens)).as_py() >= 1
    assert manifest["tokenizer"]["vocab_size"] == 21


def replaced(name, old, new):
    def change(source):
        path = source / name
        path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")

    return change


BAD = {
    r"x\.inter, line 1: column 'timestamp' is missing": replaced("x.inter", "timestamp:float", "time:float"),
    r"x\.inter, line 1: column 'item_id' is missing": replaced("x.inter", "item_id:token", "item:token"),
    r"x\.inter, line 4: has 3 columns, not 4": replaced("x.inter", "u1\ta\t3\t10\n", "u1\ta\t3\n"),
    r"x\.inter, line 5: column 'timestamp' is 'soon', which is no number": replaced("x.inter", "2\t30\n", "2\tsoon\n"),
    r"x\.inter, line 2: column 'timestamp' is 'nan'": replaced("x.inter", "u1\tb\t5\t30", "u1\tb\t5\tnan"),
    r"x\.inter, line 8: column 'rating' is ''": replaced("x.inter", "u3\td\t5\t", "u3\td\t\t"),
    r"x\.item, line 1: has none of the text columns": replaced("x.item", ":token_seq", "_x:token_seq"),
    r"needs exactly one \*\.item file, has none": lambda source: (source / "x.item").unlink(),
    r"needs exactly one \*\.inter file, has x\.inter, y\.inter": lambda source: (source / "y.inter").touch(),
    r"x\.inter, line 2: column 'timestamp' is '0x1E'": lambda source: (source / "x.inter").write_text(
        INTERACTIONS.split("\n")[0] + "\nu1\ta\t1\t0x1E\n"
    ),
    r"x\.inter: has no rows": lambda source: (source / "x.inter").write_text(INTERACTIONS.split("\n")[0] + "\n"),
    r"x\.inter: has no header, nor anything else": lambda source: (source / "x.inter").write_text(""),
    r"x\.inter, line 3: column 'user_id' is an id with a NUL": replaced("x.inter", "u2\ta", "u1\0\ta"),
    r"x\.inter, line 4: column 'item_id' is an id with a NUL": replaced("x.inter", "u1\ta\t3", "u1\ta\0\t3"),
    r"x\.item, line 3: column 'item_id' is an id with a NUL": replaced("x.item", "b\t\t", "\0b\t\t"),
    r"none of its items is in the \.item file": lambda source: (source / "x.inter").write_text(
        INTERACTIONS.split("\n")[0] + "\nu\tq\t1\t1\n"
    ),
}


@pytest.mark.parametrize("words", BAD)
def test_bad_input_names_the_place_and_leaves_nothing(source, words):
    BAD[words](source)
    with pytest.raises(InputError, match=words) as caught:
        run(source)
    assert "\n" not in str(caught.value).split("\n  In call to configurable")[0]
    assert sorted(path.name for path in source.parent.iterdir()) == ["raw"]


def test_an_output_that_is_no_dataset_is_left_alone(source):
    output = source.parent / "dataset"
    output.mkdir()
    (output / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="is not empty and is no dataset"):
        run(source)
    assert (output / "thesis.txt").read_text() == "precious"


def test_a_link_is_followed_and_what_killed_runs_left_is_settled(source):
    folder, link = source.parent / "disk" / "shop", source.parent / "dataset"
    folder.mkdir(parents=True)
    link.symlink_to(folder)
    for _ in range(2):
        run(source)
        assert link.is_symlink()
        assert open_dataset(folder, verify=True).n_users == 3
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    os.replace(folder, folder.with_name(".shop.old-999999999"))
    (folder.parent / ".shop.partial-999999999").mkdir()
    (folder.parent / ".shop.partial-999999999" / "items.arrow").write_text("half")
    (folder.parent / ".shop.mine").mkdir()
    with pytest.raises(InputError, match="no such tokenizer"):
        run(source, tokenizer_from="nowhere")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert sorted(path.name for path in folder.parent.iterdir()) == [".shop.mine", "shop"]


def test_a_file_that_changes_while_it_is_read_is_named_and_nothing_written(source, monkeypatch):
    read = recbole._read_interactions

    def and_then(path, *arguments):
        found = read(path, *arguments)
        with path.open("a") as file:
            file.write("u9\ta\t1\t50\n")
        return found

    monkeypatch.setattr(recbole, "_read_interactions", and_then)
    with pytest.raises(InputError, match=r"x\.inter: has changed while it was read; run the same command again"):
        run(source)
    assert not (source.parent / "dataset").exists()
    monkeypatch.undo()
    manifest, _ = run(source)
    assert manifest["counts"]["users"] == 4


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError("32769 requested and 32736 written"),
        MemoryError(),
        PermissionError(errno.EACCES, "Permission denied", "x"),
    ],
)
def test_what_the_machine_refuses_is_one_line_and_leaves_what_was_there(source, monkeypatch, error):
    _, output = run(source)
    before = {path.name: path.read_bytes() for path in output.iterdir()}

    def failing(path, *_):
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(dataset_writer, "_write_arrow", failing)
    with pytest.raises(InputError, match=r"(dataset|x): .* run the same command again .*\(nothing was written\)"):
        run(source)
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    assert sorted(path.name for path in source.parent.iterdir()) == ["dataset", "raw"]


def test_a_full_disk_is_one_line(source, run_module):
    import resource

    size = 2_000
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        done = run_module(
            "etl.main", "gin/etl_recbole.gin", SOURCE=repr(str(source)), OUTPUT="'out'", VOCAB_SIZE="60"
        )  # fmt: skip
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert done.returncode == 2
    assert "error: out: no space is left on the disk; free some and" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in source.parent.iterdir()) == ["raw"]


def test_a_wrong_tokenizer_is_refused(source):
    with pytest.raises(InputError, match="no such tokenizer"):
        run(source, tokenizer_from=str(source / "none.model"))
    with pytest.raises(InputError, match="is no SentencePiece model"):
        run(source, tokenizer_from=str(source / "x.item"))
    (source / "empty.model").write_bytes(b"")
    with pytest.raises(InputError, match=r"empty\.model: is empty, as of a dataset without text; bind TOKENIZER"):
        run(source, tokenizer_from=str(source / "empty.model"))


@pytest.mark.parametrize(
    ("name", "users", "items", "interactions", "features"),
    [
        ("amazon-beauty", 22363, 12101, 198502, ("title",)),
        ("amazon-sports", 35598, 18357, 296337, ("title", "keywords")),
        ("amazon-office", 3231, 3459, 22447, ("title", "brand")),
        ("ml-100k", 943, 1682, 100000, ("title",)),
    ],
)
def test_real_data_keeps_every_user_item_and_interaction(tmp_path, name, users, items, interactions, features):
    manifest = convert(source=str(shared_file(f"data/{name}")), output=str(tmp_path / name), vocab_size=8000)
    assert manifest["counts"] == {"users": users, "items": items, "interactions": interactions}
    assert manifest["rejected"] == {}
    dataset = open_dataset(tmp_path / name)
    assert dataset.features == features
    assert (dataset.tokens("title")[1:, 0] > 0).all()
    if name == "amazon-beauty":
        assert sum(not title for title in dataset.items_table["title"].to_pylist()[1:]) == 7
    if name == "amazon-office":
        bought = np.unique(dataset.items.take(np.arange(dataset.n_interactions)))
        assert items - len(bought) == 142
