"""Weights to and from safetensors under the reference's names."""

import dataclasses
import json
import os

import ml_dtypes
import numpy as np
import pytest
from conftest import shared_file
from safetensors.numpy import load_file, save_file

from seqrec_jax.data.corpus import Corpus
from seqrec_jax.errors import InputError
from seqrec_jax.model.exchange import METADATA, TRANSITIONS, export_safetensors, import_safetensors
from seqrec_jax.model.recommender import Recommender
from seqrec_jax.model.spec import Architecture
from seqrec_jax.model.torch_names import TOKEN_TABLE, from_torch, to_torch

FEATURES = {"title": 8, "brand": 3}
ARCHITECTURE = Architecture(2, 2, 16, 32, 8, 12)


def made(shop, **changes):
    architecture = dataclasses.replace(ARCHITECTURE, **changes)
    return Recommender.create(Corpus(shop), architecture, seed=1, max_tokens=FEATURES)


def arrays_of(model):
    return {name: np.asarray(array) for name, array in model.params.items()}


def theirs(model):
    """The arrays under the reference's names, as a file of theirs has them, without a word of what the model is."""
    return to_torch(arrays_of(model), list(FEATURES))


@pytest.mark.parametrize("item_encoder", ["text", "text_and_id"])
def test_weights_come_back_as_they_were(shop, tmp_path, item_encoder):
    more = item_encoder != "text"
    lexical = {"lexical_size": 8, "repeat_offset": True, "transitions": True} if more else {}
    model = made(shop, item_encoder=item_encoder, **lexical)
    arrays = arrays_of(model)
    arrays.pop(TRANSITIONS, None)  # of which the weight is nothing without the counts
    export_safetensors(model, tmp_path / "model.safetensors")
    again = import_safetensors(tmp_path / "model.safetensors", shop)
    assert again.architecture == dataclasses.replace(model.architecture, transitions=False)
    assert again.spec.features == model.spec.features
    assert again.params.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, again.params[name])
    again.save(tmp_path / "run")
    with pytest.raises(InputError, match="holds a checkpoint"):
        again.save(tmp_path / "run")


def test_shapes_tell_the_model_of_another_file(shop, tmp_path):
    model = made(shop)
    save_file(theirs(model), tmp_path / "theirs.safetensors")
    again = import_safetensors(tmp_path / "theirs.safetensors", shop, Architecture(n_heads=4), FEATURES)
    assert again.architecture == dataclasses.replace(ARCHITECTURE, n_heads=4)
    assert {text.name: text.max_tokens for text in again.spec.texts} == FEATURES
    export_safetensors(again, tmp_path / "back.safetensors")
    first, back = load_file(tmp_path / "theirs.safetensors"), load_file(tmp_path / "back.safetensors")
    assert first.keys() == back.keys()
    for name, array in first.items():
        np.testing.assert_array_equal(array, back[name])
    assert first["trm_encoder.layer.0.feed_forward.dense_1.weight"].shape == (32, 16)  # [out, in], as in PyTorch


def test_what_is_no_recommender_is_refused(shop, tmp_path):
    arrays = theirs(made(shop))
    cases = {
        "lacks 'position_embedding.weight'": {n: a for n, a in arrays.items() if n != "position_embedding.weight"},
        "head.weight: not a parameter": arrays | {"head.weight": np.zeros(3, np.float32)},
        "parameter norm/bias is missing": {n: a for n, a in arrays.items() if n != "LayerNorm.bias"},
        "bind import_weights.max_tokens": {n: a for n, a in arrays.items() if n != f"{TOKEN_TABLE}.1.weight"},
        "parameter norm/bias holds 16 values of 16 that are not finite": arrays
        | {"LayerNorm.bias": np.full(16, np.nan, np.float32)},
        "fewer than the tokenizer's": arrays | {f"{TOKEN_TABLE}.1.weight": np.zeros((3, 8), np.float32)},
    }
    for ordinal, (message, content) in enumerate(cases.items()):
        save_file(content, tmp_path / f"{ordinal}.safetensors")
        with pytest.raises(InputError, match=message):
            import_safetensors(tmp_path / f"{ordinal}.safetensors", shop, max_tokens=FEATURES)
    (tmp_path / "text").write_text("no weights")
    with pytest.raises(InputError, match="is no safetensors file"):
        import_safetensors(tmp_path / "text", shop)
    with pytest.raises(InputError, match="no such file"):
        import_safetensors(tmp_path / "nothing", shop)


def test_what_cannot_be_exported_is_refused(shop, tmp_path):
    with pytest.raises(InputError, match="'ligr' has no counterpart"):
        export_safetensors(made(shop, block="ligr"), tmp_path / "m.safetensors")
    with pytest.raises(InputError, match="is a folder, or lies in none"):
        export_safetensors(made(shop), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_dataset_of_another_tokenizer_is_refused(shop, tmp_path):
    model = made(shop)
    other = model.replace(spec=dataclasses.replace(model.spec, tokenizer_sha256="0" * 64))
    export_safetensors(other, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="another tokenizer"):
        import_safetensors(tmp_path / "model.safetensors", shop)


def test_the_references_own_weights_come_back():
    with np.load(shared_file("parity/srt_tiny.npz")) as file:
        theirs = {name.removeprefix("param/"): file[name] for name in file if name.startswith("param/")}
    ours, unknown = from_torch(theirs, ["title", "brand"])
    assert not unknown
    back = to_torch(ours, ["title", "brand"])
    assert back.keys() == theirs.keys()
    for name, array in theirs.items():
        np.testing.assert_array_equal(array, back[name])
    again, _ = from_torch(back, ["title", "brand"])
    for name, array in ours.items():
        np.testing.assert_array_equal(array, again[name])


def test_unknown_names_are_told():
    known, unknown = from_torch({"LayerNorm.bias": np.zeros(2), "trm_encoder.layer.0.other.weight": np.zeros(2)}, [])
    assert list(known) == ["norm/bias"]
    assert unknown == ["trm_encoder.layer.0.other.weight"]


@pytest.mark.parametrize(
    "content", [b"notes\n", b"", b"SQLite format 3\0" * 9, b"{}" * 99, bytes([9] + [0] * 7) + b"["]
)
def test_a_file_that_is_no_weights_is_not_replaced(shop, tmp_path, content):
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"notes\.txt: is no safetensors file, and is not replaced"):
        export_safetensors(made(shop), path)
    assert path.read_bytes() == content
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="is no safetensors file, and is not replaced"):
        export_safetensors(made(shop), tmp_path / "pipe")
    assert sorted(of.name for of in tmp_path.iterdir()) == ["notes.txt", "pipe"]


def test_weights_are_replaced_whole(shop, tmp_path):
    path = tmp_path / "model.safetensors"
    export_safetensors(made(shop), path)
    before = path.read_bytes()
    export_safetensors(made(shop, n_layers=1), path)
    assert len(load_file(path)) < len(before)
    assert [of.name for of in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_floats_of_other_widths_become_float32(shop, tmp_path, kind):
    model = made(shop)
    save_file({name: array.astype(kind) for name, array in theirs(model).items()}, tmp_path / "m.safetensors")
    again = import_safetensors(tmp_path / "m.safetensors", shop, max_tokens=FEATURES)
    for name, array in arrays_of(model).items():
        assert again.params[name].dtype == np.float32
        np.testing.assert_allclose(again.params[name], array.astype(kind).astype(np.float32))


@pytest.mark.parametrize("kind", [np.int32, np.uint8, bool, ml_dtypes.bfloat16])
def test_numbers_of_other_types_are_refused(shop, tmp_path, kind):
    arrays = theirs(made(shop))
    save_file(arrays | {"LayerNorm.bias": arrays["LayerNorm.bias"].astype(kind)}, tmp_path / "m.safetensors")
    with pytest.raises(InputError, match=r"is no safetensors file that can be read \(LayerNorm.bias is of "):
        import_safetensors(tmp_path / "m.safetensors", shop, max_tokens=FEATURES)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"position_embedding.weight": np.zeros(16, np.float32)}, "an array that is no matrix"),
        ({f"{TOKEN_TABLE}.0.weight": np.zeros((), np.float32)}, "an array that is no matrix"),
        ({f"{TOKEN_TABLE}.7.weight": np.zeros((9, 9), np.float32)}, "has 3 token tables"),
        ({f"trm_encoder.layer.{'9' * 9}.feed_forward.dense_1.bias": np.zeros(3, np.float32)}, "blocks/2/.* is missing"),
        ({f"trm_encoder.layer.{'9' * 5000}.feed_forward.dense_1.bias": np.zeros(3, np.float32)}, "blocks/2/"),
        ({"LayerNorm.weight": np.zeros((16, 16), np.float32)}, r"parameter norm/scale has shape \(16, 16\)"),
    ],
)  # fmt: skip
def test_arrays_of_other_shapes_are_refused(shop, tmp_path, changes, words):
    save_file(theirs(made(shop)) | changes, tmp_path / "m.safetensors")
    with pytest.raises(InputError, match=words) as refused:
        import_safetensors(tmp_path / "m.safetensors", shop, max_tokens=FEATURES)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("{", "what it says of itself is damaged"),
        ("[" * 99_999, "what it says of itself is damaged"),
        ("\ud800", "is no safetensors file|damaged"),
        ("null", "was written in version None"),
        ('{"version": 2}', "what the model says of itself is damaged"),
        ({"n_layers": 10**9}, "n_layers = 1000000000 is above"),
        ({"n_layers": 10**5}, "it says that it has 100,000 blocks, and has parameters of 2"),
        ({"hidden_size": 1 << 18}, "has shape"),
        ({"max_length": "12"}, "max_length = '12' is no int"),
    ],
)
def test_a_file_that_says_that_it_is_another_model_is_refused(shop, tmp_path, said, words):
    model = made(shop)
    record = model.spec.to_json()
    if isinstance(said, dict):
        said = json.dumps(record | {"architecture": record["architecture"] | said})
    path = tmp_path / "m.safetensors"
    save_file(theirs(model), path, {METADATA: said.encode("utf-8", "replace").decode()})
    with pytest.raises(InputError, match=words) as refused:
        import_safetensors(path, shop)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("length", [0, 1, 1 << 20, 1 << 40, (1 << 64) - 1])
def test_a_header_of_another_length_is_refused(shop, tmp_path, length):
    path = tmp_path / "m.safetensors"
    export_safetensors(made(shop), path)
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
    with pytest.raises(InputError, match="is no safetensors file that can be read"):
        import_safetensors(path, shop)
