"""Checkpoints from strangers, whose checksums fit what they hold: each is refused with one line, still packed."""

import json
import os
import shutil

import numpy as np
import pyarrow as pa
import pytest
import tensorstore
from mutants import BOMB, whole_model, zstd_bomb

import seqrec_jax as sr
from seqrec_jax.model import storage, stored_arrays
from seqrec_jax.model.terms.transitions import Transitions


@pytest.fixture(scope="module")
def bundle(shop_folder, tmp_path_factory):
    model = whole_model(shop_folder)
    model.save(tmp_path_factory.mktemp("bundle") / "model")
    return tmp_path_factory.getbasetemp() / "bundle0" / "model", model


@pytest.fixture
def folder(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "SECONDS_BETWEEN_TRIES", 0)
    return shutil.copytree(bundle[0], tmp_path / "model")


def place_of(folder):
    return folder / "checkpoints" / "1"


def check_refused(folder, words):
    storage.write_checksums(place_of(folder))
    with pytest.raises(sr.InputError, match=words) as refused:
        sr.load(folder)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 1000


def store_of(folder, item="params"):
    base = {"driver": "file", "path": f"{place_of(folder) / item}/"}
    return tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()


def test_shapes_and_types_are_told_without_reading(bundle):
    folder, model = bundle
    found = stored_arrays.shapes_of(place_of(folder) / "params")
    assert {name: (of.shape, of.dtype) for name, of in found.items()} == {
        name: (of.shape, of.dtype) for name, of in model.params.items()
    }
    assert stored_arrays.shapes_of(place_of(folder) / "training").keys() == {"step"}


KERNEL = "norm/scale"
ARRAYS = {
    "unpacks to more than": {"shape": [1 << 40], "chunks": [1]},
    "unpacks to more than #chunk": {"chunks": [1 << 40]},
    "unpacks to more than #huge": {"shape": [10**200, 10**200]},
    "is no parameter #negative": {"shape": [-8]},
    "is no parameter #text": {"shape": ["8"]},
    "is no parameter #type": {"dtype": "|O"},
    "is no parameter #structured": {"dtype": "<U8"},
    "another way than by zstd": {"compressor": {"id": "blosc"}},
    "another way than by zstd #zlib": {"compressor": {"id": "zlib", "level": 1}},
    "another way than by zstd #filters": {"filters": [{"id": "delta"}]},
    "another way than by zstd #version": {"zarr_format": 3},
    "has shape": {"shape": [4], "chunks": [4]},
    "error while reading array": {"dtype": "<f8"},
    "is damaged": {"shape": 8},
}  # fmt: skip


@pytest.mark.parametrize("words", ARRAYS)
def test_an_array_that_says_that_it_is_another_is_refused(folder, words):
    store, key = store_of(folder), f"{KERNEL}/.zarray".encode()
    store.write(key, json.dumps(json.loads(store.read(key).result().value) | ARRAYS[words]).encode()).result()
    check_refused(folder, words.split(" #")[0])


def test_a_bomb_in_a_chunk_is_not_unpacked(folder, bundle):
    store = store_of(folder)
    store.write(f"{KERNEL}/0".encode(), zstd_bomb(BOMB)).result()
    assert sum(path.stat().st_size for path in place_of(folder).rglob("*") if path.is_file()) < 1 << 20
    check_refused(folder, "unpacks to more than 1,073,741,824 bytes")


def test_a_bomb_among_the_files_is_not_unpacked(folder):
    """As in the nodes of the store itself, which TensorStore unpacks to find anything."""
    (path, *_) = sorted((place_of(folder) / "params" / "d").iterdir())
    path.write_bytes(path.read_bytes() + zstd_bomb(BOMB))
    check_refused(folder, "unpacks to more than 1,073,741,824 bytes")


@pytest.mark.parametrize("n", [10, 1000, 1 << 17, 1_000_000])
@pytest.mark.parametrize("kind", ["zeros", "noise"])
@pytest.mark.parametrize("before", [b"", b"\x28\xb5\x2f", b"abc" * 9])
def test_what_a_frame_becomes_is_never_underrated(n, kind, before):
    content = bytes(n) if kind == "zeros" else np.random.default_rng(0).bytes(n)
    packed = before + pa.compress(content, "zstd", asbytes=True) + b"after"
    assert n <= sum(stored_arrays._blocks(packed, len(before))) <= n + (1 << 17)
    unpacked = stored_arrays._Budget(n + (1 << 17))
    unpacked.spend_frames(packed)
    with pytest.raises(ValueError, match="unpacks to more than"):
        stored_arrays._Budget(n - 1).spend_frames(packed)


def test_frames_that_lie_in_one_another_are_all_seen():
    bomb = zstd_bomb(1 << 25)
    raw = (len(bomb) << 3 | 1).to_bytes(3, "little")
    outer = b"\x28\xb5\x2f\xfd\x00\x58" + raw + bomb
    with pytest.raises(ValueError, match="unpacks to more than"):
        stored_arrays._Budget(1 << 24).spend_frames(outer)
    for cut in range(len(bomb) - 1, len(bomb) - 40, -1):
        stored_arrays._Budget(1 << 26).spend_frames(bomb[:cut])
    stored_arrays._Budget(0).spend_frames(b"\x28\xb5\x2f\xfd")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n_layers": 10**6}, "it says that it has 1,000,000 blocks, and has parameters of 1"),
        ({"n_layers": 10**12}, "n_layers = 1000000000000 is above 1,048,576"),
        ({"n_layers": 10**400}, "n_layers = 1000"),
        ({"n_layers": "2"}, "n_layers = '2' is no int"),
        ({"n_layers": True}, "n_layers = True is no int"),
        ({"hidden_size": -8}, "hidden_size = -8 is below 1"),
        ({"hidden_size": 1 << 19}, "has shape"),
        ({"hidden_size": float("nan")}, "hidden_size = nan is not finite"),
        ({"max_length": 1 << 20}, "has shape"),
        ({"embedding_size": 1 << 20}, "has shape"),
        ({"lexical_size": 1 << 20}, "features are not those of its architecture"),
        ({"block": "../../evil"}, "block = '../../evil' is not one of"),
        ({"item_encoder": "id"}, "its texts are"),
        ({"item_encoder": "text"}, "features are not those of its architecture"),
        ({"pooling": ["sum"]}, "is damaged"),
        ({"unknown": 1}, "unexpected keyword argument 'unknown'"),
    ],
)
def test_a_hostile_architecture_is_refused(folder, bundle, change, words):
    record = bundle[1].spec.to_json()
    record["architecture"] |= change
    (place_of(folder) / "model" / "metadata").write_text(json.dumps(record))
    check_refused(folder, words)


def features(spec, **changes):
    record = spec.to_json()
    for feature in record["features"]:
        feature |= changes.get(feature["kind"], {})
    return record


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"text": {"rows": 10**12}}, "features are not those|sizes of"),
        ({"text": {"rows": "500"}}, "rows = '500' is no int"),
        ({"text": {"max_tokens": -1}}, "its features have sizes of"),
        ({"text": {"max_tokens": 0}}, "its features have sizes of"),
        ({"text": {"name": "title"}}, "its texts are"),
        ({"text": {"name": 5}}, "name = 5 is no str"),
        ({"text": {"appended": 5}}, "is damaged"),
        ({"text": {"appended": [["a", 1, 2]]}}, "is damaged"),
        ({"text": {"appended": [["a", "b"]]}}, "is damaged"),
        ({"text": {"appended": [["a", 1 << 40]]}}, "its texts are|sizes of"),
        ({"lexical": {"size": 1 << 30}}, "features are not those"),
        ({"lexical": {"vocab_size": 1 << 40}}, "features are not those"),
        ({"lexical": {"texts": ["nothing"]}}, "features are not those"),
        ({"item_id": {"rows": 1 << 40}}, "sizes of"),
        ({"item_id": {"rows": 5}}, "has shape"),
        ({"item_id": {"kind": "os.system"}}, "is damaged"),
        ({"item_id": {"kind": []}}, "is damaged"),
    ],
)
def test_hostile_features_are_refused(folder, bundle, changes, words):
    (place_of(folder) / "model" / "metadata").write_text(json.dumps(features(bundle[1].spec, **changes)))
    check_refused(folder, words)


@pytest.mark.parametrize("content", [
    "null", "[]", "3", '"x"', "{}", "[" * 99_999, "", '{"version": 2}', '{"version": "2\\n3"}',
    '{"version": 2, "architecture": 3, "features": 4}',
])  # fmt: skip
def test_what_is_no_spec_is_refused(folder, content):
    (place_of(folder) / "model" / "metadata").write_text(content)
    check_refused(folder, "damaged|was written in version")


def rewritten(folder, change):
    path = place_of(folder) / storage.CHECKSUMS
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda record: record | {"files": record["files"] | {"../../../secret": "0" * 64}}, "secret is missing"),
        (lambda record: record | {"files": record["files"] | {"/etc/passwd": "0" * 64}}, "/etc/passwd is missing"),
        (lambda record: record | {"beside": {"../secret": "0" * 64}}, "names '../secret', which is no file of a run's"),
        (lambda record: record | {"beside": {"/etc/passwd": "0" * 64}}, "names '/etc/passwd'"),
        (lambda record: record | {"files": [["a", 1], [2, 3]]}, "cannot be read"),
        (lambda record: record | {"files": {}}, "does not belong to it"),
        (lambda record: record | {"files": dict.fromkeys(record["files"], 7)}, "is damaged"),
        (lambda record: [], "cannot be read"),
        (lambda record: {"files": {}}, "cannot be read"),
    ],
)
def test_checksums_that_name_other_places_are_refused(folder, change, words):
    rewritten(folder, change)
    with pytest.raises(sr.InputError, match=words):
        sr.load(folder)


@pytest.mark.parametrize("part", ["model/metadata", "params", "params/d", "training/manifest.ocdbt"])
def test_links_in_a_checkpoint_are_refused(folder, tmp_path, part):
    path = place_of(folder) / part
    shutil.move(path, tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(sr.InputError, match="is a link"):
        sr.load(folder)
    storage.write_checksums(place_of(folder))
    with pytest.raises(sr.InputError, match="is a link"):
        sr.load(folder)


@pytest.mark.parametrize("part", ["checkpoints/1/model/metadata", "checkpoints/1/checksums.json", "tokenizer.model"])
def test_what_would_be_waited_for_is_refused(folder, part):
    (folder / part).unlink()
    os.mkfifo(folder / part)
    with pytest.raises(sr.InputError, match=r"is no file|cannot be read"):
        sr.load(folder)


@pytest.mark.parametrize("name", [".zarray", "zarr.json", "checkpoint"])
def test_other_formats_of_arrays_are_refused(folder, name):
    (place_of(folder) / "params" / name).write_text("{}")
    check_refused(folder, "it is not as Orbax writes it")


@pytest.mark.parametrize("name", ["manifest.ocdbt", "_METADATA"])
def test_what_orbax_needs_is_missed(folder, name):
    (place_of(folder) / "params" / name).unlink()
    check_refused(folder, "it is not as Orbax writes it")


def test_another_tokenizer_is_refused(folder):
    (folder / "tokenizer.model").write_bytes(b"another")
    check_refused(folder, "tokenizer.model is not the model's")


def test_transitions_of_fewer_rows_are_refused(folder, bundle, shop):
    counted = bundle[1].statistics["transitions"]
    short = Transitions(counted.starts[:2], counted.items[:0], counted.scores[:0], counted.catalog_sha256)
    short.write(folder / "transitions.npz")
    storage.write_checksums(place_of(folder))
    with pytest.raises(sr.InputError, match=r"the model's transitions are of 1 rows, but this catalog, .* of 201"):
        sr.load(folder).index(shop)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("starts", lambda of: np.array([0, (1 << 63) - 1, -2, *of[3:]])),  # differences that wrap around
        ("starts", lambda of: of[::-1].copy()),
        ("starts", lambda of: of.astype(np.int32)),
        ("starts", lambda of: of.reshape(1, -1)),
        ("starts", lambda of: of + 1),
        ("items", lambda of: np.where(of == of[0], 2_000_000_000, of).astype(np.int32)),
        ("items", lambda of: -of),
        ("items", lambda of: of * 0),
        ("items", lambda of: of[:-1]),
        ("scores", lambda of: of * np.float32(np.nan)),
        ("scores", lambda of: of.astype(np.float64)),
        ("scores", lambda of: of[:-1]),
        ("catalog_sha256", lambda of: None),
    ],
)
def test_hostile_transitions_are_refused(folder, bundle, name, change):
    counted = bundle[1].statistics["transitions"]
    changed = change(getattr(counted, name))
    if changed is None:
        np.savez(folder / "transitions.npz", starts=counted.starts, items=counted.items, scores=counted.scores)
    else:
        counted._replace(**{name: changed}).write(folder / "transitions.npz")
    check_refused(folder, r"transitions\.npz: is missing or damaged")


def test_steps_are_numbers_of_ascii_digits(folder):
    for name in ("1²", "٣", "007", "9" * 200):
        (folder / "checkpoints" / name).mkdir()
    with pytest.raises(sr.InputError, match="the checkpoint is damaged"):
        sr.load(folder)
