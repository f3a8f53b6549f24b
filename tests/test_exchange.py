"""Weights to and from safetensors under the reference's names."""

import dataclasses

import numpy as np
import pytest
from conftest import shared_file
from safetensors.numpy import load_file, save_file

from seqrec_jax.data.store import open_dataset
from seqrec_jax.errors import InputError
from seqrec_jax.model import parameters
from seqrec_jax.model.recommender import Architecture, build
from seqrec_jax.model.torch_names import TOKEN_TABLE, from_torch, to_torch
from seqrec_jax.tasks.exchange import export_weights, import_weights
from seqrec_jax.training.checkpoint import restore, write_model
from seqrec_jax.training.model_record import ModelRecord

FEATURES = {"title": 8, "brand": 3}
ARCHITECTURE = Architecture(2, 2, 16, 32, 8, 12)


def recorded(shop, architecture, vocab_sizes):
    return ModelRecord(architecture, vocab_sizes, FEATURES, shop.tokenizer_sha256)


def written(shop, folder, architecture=ARCHITECTURE):
    sizes = dict.fromkeys(("title", "brand"), shop.vocab_size)
    if architecture.item_encoder == "text_and_id":
        sizes["item_id"] = shop.n_items + 1
    _, params = build(architecture, sizes, seed=1)
    write_model(folder, recorded(shop, architecture, sizes), params, step=3)
    return {name: np.asarray(array) for name, array in parameters.named(params).items()}


@pytest.mark.parametrize("item_encoder", ["text", "text_and_id"])
def test_weights_come_back_as_they_were(shop, tmp_path, item_encoder):
    more = item_encoder != "text"
    architecture = Architecture(2, 2, 16, 32, 8, 12, item_encoder=item_encoder, repeat_offset=more, transitions=more)
    arrays = written(shop, tmp_path / "run", architecture)
    arrays.pop("transitions", None)  # of which the weight is nothing without the counts
    export_weights(str(tmp_path / "run"), str(tmp_path / "model.safetensors"))
    import_weights(str(tmp_path / "model.safetensors"), str(shop.folder), str(tmp_path / "again"))
    restored = restore(tmp_path / "again")
    assert restored.record.architecture == dataclasses.replace(architecture, transitions=False)
    again = parameters.named(restored.params)
    assert again.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, again[name])


def test_shapes_tell_the_model_of_another_file(shop, tmp_path):
    arrays = written(shop, tmp_path / "run")
    save_file(to_torch(arrays, ["title", "brand"]), tmp_path / "theirs.safetensors")
    import_weights(str(tmp_path / "theirs.safetensors"), str(shop.folder), str(tmp_path / "again"), FEATURES)
    record = restore(tmp_path / "again").record
    assert (record.architecture.n_layers, record.architecture.inner_size, record.architecture.max_length) == (2, 32, 12)
    assert record.max_tokens == FEATURES
    export_weights(str(tmp_path / "again"), str(tmp_path / "back.safetensors"))
    theirs, back = load_file(tmp_path / "theirs.safetensors"), load_file(tmp_path / "back.safetensors")
    assert theirs.keys() == back.keys()
    for name, array in theirs.items():
        np.testing.assert_array_equal(array, back[name])
    assert theirs["trm_encoder.layer.0.feed_forward.dense_1.weight"].shape == (32, 16)  # [out, in], as in PyTorch


def test_what_is_no_recommender_is_refused(shop, tmp_path):
    arrays = to_torch(written(shop, tmp_path / "run"), ["title", "brand"])
    cases = {
        "lacks 'position_embedding.weight'": {n: a for n, a in arrays.items() if n != "position_embedding.weight"},
        "head.weight: not a parameter": arrays | {"head.weight": np.zeros(3, np.float32)},
        "parameter norm/bias is missing": {n: a for n, a in arrays.items() if n != "LayerNorm.bias"},
        "bind import_weights.max_tokens": {n: a for n, a in arrays.items() if n != f"{TOKEN_TABLE}.1.weight"},
        "fewer than the tokenizer's": arrays | {f"{TOKEN_TABLE}.1.weight": np.zeros((3, 8), np.float32)},
    }
    for ordinal, (message, content) in enumerate(cases.items()):
        save_file(content, tmp_path / f"{ordinal}.safetensors")
        with pytest.raises(InputError, match=message):
            import_weights(
                str(tmp_path / f"{ordinal}.safetensors"),
                str(shop.folder),
                str(tmp_path / "no"),
                {"title": 8, "brand": 3},
            )
        assert not (tmp_path / "no").exists()
    (tmp_path / "text").write_text("no weights")
    with pytest.raises(InputError, match="is no safetensors file"):
        import_weights(str(tmp_path / "text"), str(shop.folder), str(tmp_path / "no"))


def test_a_checkpoint_of_a_newer_version_says_so(shop, tmp_path):
    written(shop, tmp_path / "run")
    record = restore(tmp_path / "run").record.to_json()
    assert ModelRecord.from_json(record).to_json() == record
    for newer in ({"version": 2}, {"architecture": record["architecture"] | {"telepathy": True}}):
        with pytest.raises(InputError, match="newer version of seqrec_jax; install that"):
            ModelRecord.from_json(record | newer)


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


def test_a_dataset_of_another_tokenizer_is_refused(shop, tmp_path):
    written(shop, tmp_path / "run")
    record = restore(tmp_path / "run").record
    write_model(
        tmp_path / "other", record._replace(tokenizer_sha256="0" * 64), restore(tmp_path / "run").params, step=1
    )
    export_weights(str(tmp_path / "other"), str(tmp_path / "model.safetensors"))
    with pytest.raises(InputError, match="another tokenizer"):
        import_weights(str(tmp_path / "model.safetensors"), str(open_dataset(shop.folder).folder), str(tmp_path / "no"))
