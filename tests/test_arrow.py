"""Datasets from strangers, whose checksums fit what they hold: each is refused with one line."""

import hashlib
import json
import shutil

import numpy as np
import pyarrow as pa
import pytest

import seqrec_jax as sr
from seqrec_jax.data import format
from seqrec_jax.data.arrow import read_table
from seqrec_jax.data.corpus import users_named_in

PACKED = pa.ipc.IpcWriteOptions(compression="zstd")


def write(path, table, options=None):
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema, options=options) as writer:
        writer.write_table(table)


def refit(folder, **manifest):
    """Gives a dataset the sizes and checksums of its files, as an attacker does."""
    record = json.loads((folder / format.MANIFEST).read_text()) | manifest
    for name in format.DATA_FILES:
        content = (folder / name).read_bytes()
        record["sizes"][name], record["checksums"][name] = len(content), hashlib.sha256(content).hexdigest()
    record["sha256"] = format.digest_of(record)
    (folder / format.MANIFEST).write_text(json.dumps(record))


@pytest.fixture
def folder(shop_folder, tmp_path):
    return shutil.copytree(shop_folder, tmp_path / "copy")


@pytest.fixture(scope="module")
def model(shop_folder):
    return sr.Recommender.create(sr.Corpus(str(shop_folder)), sr.Architecture(n_layers=1, hidden_size=8), seed=1)


def check_refused(folder, model, words):
    for use in (lambda: sr.Corpus(str(folder)), lambda: model.index(sr.open_dataset(folder)),
                lambda: model.adapt(sr.open_dataset(folder)), lambda: users_named_in([str(folder)])):  # fmt: skip
        with pytest.raises(sr.InputError, match=words) as refused:
            use()
        assert "\n" not in str(refused.value)
        assert len(str(refused.value)) < 1000


def lists(column, values=None, offsets=None, kind=pa.large_list):
    """A list column with other values or offsets, whatever they are."""
    old = column.combine_chunks()
    values = old.values if values is None else values
    offsets = np.frombuffer(old.buffers()[1], np.int64)[: len(old) + 1] if offsets is None else offsets
    buffers = [None, pa.py_buffer(np.ascontiguousarray(offsets))]
    return pa.Array.from_buffers(kind(values.type), len(old), buffers, children=[values])


def items_with(place, value):
    """A change of one item of the log."""

    def change(column):
        values = column.combine_chunks().values.to_numpy().copy()
        values[place] = value
        return lists(column, pa.array(values, pa.int32()))

    return change


def offsets_with(place, value):
    """A change of one user's offset."""

    def change(column):
        offsets = column.combine_chunks().offsets.to_numpy().copy()
        offsets[place] = value
        return lists(column, offsets=offsets)

    return change


def broken_texts(column):
    texts = column.combine_chunks()
    content = bytearray(texts.buffers()[2].to_pybytes())
    content[3] = 0xFF
    return pa.Array.from_buffers(pa.string(), len(texts), [None, texts.buffers()[1], pa.py_buffer(bytes(content))])


def with_null(column):
    return pa.array([None, *column.to_pylist()[1:]], column.type)


def with_inner_null(column):
    rows = column.to_pylist()
    return pa.array([*rows[:1], [None, *rows[1][1:]], *rows[2:]], column.type)


def doubled(column):
    ids = column.to_pylist()
    return pa.array([*ids[:-1], ids[1]], column.type)


def backwards(column):
    return pa.array([list(reversed(row)) for row in column.to_pylist()], column.type)


INTERACTIONS = {
    "items are not all of 1 to 200 #0": ("items", items_with(5, 0)),
    "items are not all of 1 to 200 #above": ("items", items_with(5, 201)),
    "items are not all of 1 to 200 #below": ("items", items_with(5, -3)),
    "items are not all of 1 to 200 #huge": ("items", items_with(5, 2_000_000_000)),
    "items are not all of 1 to 200 #null": ("items", with_inner_null),
    "lists do not follow one another #beyond": ("items", offsets_with(5, 10**9)),
    "lists do not follow one another #below": ("items", offsets_with(5, -(10**9))),
    "lists do not follow one another #unordered": ("items", offsets_with(5, 0)),
    "it holds .* where its manifest has": ("items", offsets_with(0, 1)),
    "lists do not follow one another #gap": ("items", offsets_with(-1, 3700)),
    "a user has no interactions": ("items", lambda column: offsets_with(1, 0)(column)),
    "column 'items' of type large_list<.*> is missing #list": (
        "items", lambda column: pa.array(column.to_pylist(), pa.list_(pa.int32()))),
    "column 'items' of type large_list<.*> is missing #int64": (
        "items", lambda column: pa.array(column.to_pylist(), pa.large_list(pa.int64()))),
    "column 'items' is of type large_list<.*large_list": (
        "items", lambda column: pa.array([[[1]]] * len(column), pa.large_list(pa.large_list(pa.int32())))),
    "a user's timestamps are not ascending": ("timestamps", backwards),
    "users have not as many times as items": (
        "timestamps", lambda column: pa.array([row[:1] for row in column.to_pylist()], column.type)),
    "a user has no items, or no times": ("timestamps", with_inner_null),
    "column 'timestamps' of type .* is missing": (
        "timestamps", lambda column: pa.array(column.to_pylist(), pa.large_list(pa.int32()))),
    "a user_id is missing, or is there twice #null": ("user_id", with_null),
    "a user_id is missing, or is there twice #twice": ("user_id", doubled),
    "is damaged .*UTF8": ("user_id", broken_texts),
    "column 'user_id' is of type dictionary": ("user_id", lambda column: column.combine_chunks().dictionary_encode()),
    "column 'user_id' is of type string_view": ("user_id", lambda column: column.cast(pa.string_view())),
    "column 'user_id' is of type null": ("user_id", lambda column: pa.nulls(len(column))),
    "column 'user_id' of type string is missing": ("user_id", lambda column: column.cast(pa.large_string())),
}  # fmt: skip
TOKENS = "title_tokens"
ITEMS = {
    "title_tokens are not all of 1 to": (
        TOKENS, lambda column: pa.array([[60_000] * len(row) for row in column.to_pylist()], column.type)),
    "title_tokens are not all of 1 to #below": (
        TOKENS, lambda column: pa.array([[-1] * len(row) for row in column.to_pylist()], column.type)),
    "title_tokens are not all of 1 to #null": (TOKENS, with_inner_null),
    "title and title_tokens are no texts and tokens": (TOKENS, with_null),
    "title and title_tokens are no texts and tokens #large": (
        TOKENS, lambda column: pa.array(column.to_pylist(), pa.large_list(pa.int32()))),
    "title_tokens has more tokens than the manifest says": (
        TOKENS, lambda column: pa.array([[1] * 99, *column.to_pylist()[1:]], column.type)),
    "or padding has some": (TOKENS, lambda column: pa.array([[1], *column.to_pylist()[1:]], column.type)),
    "a item_id is missing, or is there twice": ("item_id", doubled),
    "item_id is no column of texts whose first is empty": ("item_id", with_null),
    "item_id holds a NUL character": (
        "item_id", lambda column: pa.array(["", "a\0b", *column.to_pylist()[2:]], pa.string())),
    "is damaged .*UTF8 #title": ("title", broken_texts),
    "title and title_tokens are no texts and tokens #int": ("title", lambda column: pa.array(range(len(column)))),
    "column 'title' is of type struct": ("title", lambda column: pa.array([{"a": 1}] * len(column))),
    "column 'title' is of type list_view": (
        "title", lambda column: pa.array([[1]] * len(column), pa.list_view(pa.int32()))),
    "column 'title' is of type map": (
        "title", lambda column: pa.array([[("a", 1)]] * len(column), pa.map_(pa.string(), pa.int32()))),
    "column 'title' is of type run_end_encoded": (
        "title", lambda column: pa.RunEndEncodedArray.from_arrays([len(column)], pa.array(["x"]))),
    "column 'title' is of type dense_union": (
        "title", lambda column: pa.UnionArray.from_dense(
            pa.array([0] * len(column), pa.int8()), pa.array(range(len(column)), pa.int32()), column.chunks)),
    "column 'title' is of type extension": (
        "title", lambda column: pa.ExtensionArray.from_storage(pa.json_(pa.string()), column.combine_chunks())),
}  # fmt: skip


@pytest.mark.parametrize(("name", "words"), [
    *((format.INTERACTIONS, words) for words in INTERACTIONS), *((format.ITEMS, words) for words in ITEMS),
])  # fmt: skip
def test_a_hostile_column_is_refused(folder, model, name, words):
    column, change = (INTERACTIONS | ITEMS)[words]
    table = read_table(pa.py_buffer((folder / name).read_bytes()))
    place = table.column_names.index(column)
    write(folder / name, table.set_column(place, column, change(table[column])))
    refit(folder)
    check_refused(folder, model, words.split(" #")[0])


@pytest.mark.parametrize("name", [format.INTERACTIONS, format.ITEMS])
@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_packed_buffers_are_refused_before_they_are_unpacked(folder, model, name, codec):
    table = read_table(pa.py_buffer((folder / name).read_bytes()))
    write(folder / name, table, pa.ipc.IpcWriteOptions(compression=codec))
    refit(folder)
    check_refused(folder, model, "it is packed")
    write(folder / name, pa.table({"user_id": pa.nulls(1, pa.string()), "items": [bytes(1 << 28)]}), PACKED)
    assert (folder / name).stat().st_size < 1 << 20
    before = pa.total_allocated_bytes()
    with pytest.raises(ValueError, match=r"is of type binary|packed"):
        read_table(pa.py_buffer((folder / name).read_bytes()))
    write(folder / name, pa.table({"numbers": np.zeros(1 << 26)}), PACKED)
    with pytest.raises(ValueError, match="it is packed"):
        read_table(pa.py_buffer((folder / name).read_bytes()))
    assert pa.total_allocated_bytes() <= before


@pytest.mark.parametrize("name", [format.INTERACTIONS, format.ITEMS])
@pytest.mark.parametrize("missing", ["all", "first"])
def test_columns_that_are_missing_or_there_twice_are_refused(folder, model, name, missing):
    table = read_table(pa.py_buffer((folder / name).read_bytes()))
    fewer = table.select([]) if missing == "all" else table.drop_columns(table.column_names[0])
    write(folder / name, fewer)
    refit(folder)
    check_refused(folder, model, "is missing|it has no items|is damaged")
    write(folder / name, table.append_column(table.column_names[0], table[0]))
    refit(folder)
    check_refused(folder, model, "two columns have one name")


@pytest.mark.parametrize(("change", "words"), [
    ({"counts": {"users": 299, "items": 200, "interactions": 3772}}, "it holds .* where its manifest has"),
    ({"tokenizer": {"sha256": "0" * 64, "vocab_size": 500}}, "two checksums of the tokenizer"),
    ({"features": [{"name": "title", "max_tokens": 40}]}, "knows no feature of column 'brand_tokens'"),
    ({"features": [{"name": "title", "max_tokens": 40}] * 2}, "features is missing, or is not what it has to be"),
    ({"features": [{"name": "colour", "max_tokens": 40}]}, "is damaged"),
    ({"features": 3}, "features is missing"),
    ({"schema_version": "3\nand more" * 100}, "schema version '3.*but this program reads"),
    ({"schema_version": [[[]]]}, "schema version"),
    ({"counts": {"users": -1, "items": True, "interactions": 1e99}}, "counts.users is missing"),
])  # fmt: skip
def test_a_manifest_that_does_not_fit_is_refused(folder, model, change, words):
    refit(folder, **change)
    check_refused(folder, model, words)


def test_a_vocabulary_beyond_its_tokenizer_is_refused(folder, model):
    tokenizer = json.loads((folder / format.MANIFEST).read_text())["tokenizer"]
    refit(folder, tokenizer=tokenizer | {"vocab_size": 10**15})
    check_refused(folder, model, "a vocabulary of 1,000,000,000,000,000 is more than its tokenizer can hold")
    refit(folder, tokenizer=tokenizer | {"vocab_size": tokenizer["vocab_size"] + 1})
    assert sr.Corpus(str(folder))
    with pytest.raises(sr.InputError, match="a vocabulary of 501, but the model, of the same tokenizer, tables of 500"):
        model.index(sr.open_dataset(folder))


def test_a_catalog_whose_padded_tokens_take_all_memory_is_refused(folder, model):
    table = read_table(pa.py_buffer((folder / format.ITEMS).read_bytes()))
    n = 400_000
    ids = pa.array(["", *(f"i{number}" for number in range(n))])
    tokens = pa.array([[], [1] * 10_000, *([[1]] * (n - 1))], pa.list_(pa.int32()))
    columns = {name: pa.array([""] * (n + 1)) for name in table.column_names if not name.endswith("_tokens")}
    columns |= {name: tokens for name in table.column_names if name.endswith("_tokens")} | {"item_id": ids}
    write(folder / format.ITEMS, pa.table(columns))
    manifest = json.loads((folder / format.MANIFEST).read_text())
    features = [feature | {"max_tokens": 10_000} for feature in manifest["features"]]
    refit(folder, counts=manifest["counts"] | {"items": n}, features=features)
    check_refused(folder, model, "title_tokens of 400,001 items, padded to 10,000, are above")


@pytest.mark.parametrize("content", [b"", b"ARROW1", b"ARROW1\0\0" + b"ARROW1", b"ARROW1\0\0" + bytes(64) + b"ARROW1",
                                     b"ARROW1\0\0" + b"\xff" * 64 + b"ARROW1", b"PAR1" * 10])  # fmt: skip
@pytest.mark.parametrize("name", [format.INTERACTIONS, format.ITEMS])
def test_what_is_no_arrow_file_is_refused(folder, model, name, content):
    (folder / name).write_bytes(content)
    refit(folder)
    check_refused(folder, model, "is damaged|cannot be read")


def test_values_that_are_altered_later_are_not_used(folder, model):
    """A dataset is opened by its sizes alone; its checksums are compared before anything is made of it."""
    content = bytearray((folder / format.ITEMS).read_bytes())
    item = read_table(pa.py_buffer(bytes(content)))["item_id"][17].as_py().encode()
    content[content.index(item)] ^= 2
    (folder / format.ITEMS).write_bytes(content)
    data = sr.open_dataset(folder)
    for use in (lambda: sr.Corpus(data), lambda: model.index(data)):
        with pytest.raises(sr.InputError, match=r"items\.arrow: its checksum is not the manifest's"):
            use()


@pytest.mark.parametrize(("name", "column", "size"), [
    (format.INTERACTIONS, "items", 8), (format.INTERACTIONS, "timestamps", 8), (format.INTERACTIONS, "user_id", 4),
    (format.ITEMS, "item_id", 4), (format.ITEMS, "title", 4), (format.ITEMS, "title_tokens", 4),
])  # fmt: skip
@pytest.mark.parametrize("value", [-1, -(1 << 31), (1 << 31) - 1, 1 << 24])
@pytest.mark.parametrize("place", [0, 5, -1])
def test_offsets_in_the_file_that_lead_elsewhere_are_refused(folder, model, name, column, size, value, place):
    content = (folder / name).read_bytes()
    file = pa.py_buffer(content)
    (chunk,) = read_table(file)[column].chunks
    first = chunk.buffers()[1].address - file.address
    at = first + size * (place % (len(chunk) + 1))
    (folder / name).write_bytes(content[:at] + value.to_bytes(size, "little", signed=True) + content[at + size :])
    refit(folder)
    check_refused(folder, model, "is damaged")
