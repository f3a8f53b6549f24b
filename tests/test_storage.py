"""Recommenders on disk."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

import seqrec_jax as sr
from seqrec_jax.model import parameters, storage
from seqrec_jax.model.terms.transitions import count_transitions


@pytest.fixture
def saved(corpus, tmp_path):
    architecture = sr.Architecture(
        n_layers=1, hidden_size=8, inner_size=8, max_length=6, item_encoder="text_and_id", transitions=True
    )
    model = sr.Recommender.create(corpus, architecture, seed=1)
    model = model.replace(statistics={"transitions": count_transitions(corpus.train, corpus.data.catalog_sha256())})
    model.save(tmp_path / "model")
    return model, tmp_path / "model"


def test_a_saved_model_comes_back_as_it_was(saved, shop):
    model, folder = saved
    again = sr.load(folder)
    assert again.spec == model.spec
    assert parameters.sha256(again.params) == parameters.sha256(model.params)
    assert again.tokenizer == model.tokenizer == (shop.folder / "tokenizer.model").read_bytes()
    for name, array in model.statistics["transitions"]._asdict().items():
        np.testing.assert_array_equal(array, getattr(again.statistics["transitions"], name))
    assert sr.Index(again, shop).recommend(users=["u2"], k=4).equals(sr.Index(model, shop).recommend(users=["u2"], k=4))


def test_a_folder_that_holds_a_model_is_not_written_over(saved):
    model, folder = saved
    with pytest.raises(sr.InputError, match="holds a checkpoint; bind RUN_DIR to another folder"):
        model.save(folder)


def test_what_was_altered_is_not_loaded(saved):
    _, folder = saved
    path = folder / "checkpoints" / "1" / "model" / "metadata"
    path.write_text(path.read_text().replace("8", "9", 1))
    with pytest.raises(sr.InputError, match=r"the checkpoint is damaged \(model/metadata is damaged\)"):
        sr.load(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"version": 1}, "was written in version 1 of its format"), ({"architecture": {"hidden_size": 16}}, "has shape")],
)
def test_a_model_that_is_not_what_it_says_is_refused(saved, change, words):
    model, folder = saved
    place = folder / "checkpoints" / "1"
    record = model.spec.to_json()
    if "architecture" in change:
        change = {"architecture": record["architecture"] | change["architecture"]}
    (place / "model" / "metadata").write_text(json.dumps(record | change))
    storage.write_checksums(place)
    with pytest.raises(sr.InputError, match=words):
        sr.load(folder)


@pytest.mark.parametrize("best", [-1, 2, 10**400, "1", None])
def test_a_best_checkpoint_that_cannot_be_is_refused(saved, best):
    place = saved[1] / "checkpoints" / "1"
    (place / "progress" / "metadata").write_text(json.dumps({"best_step": best}))
    storage.write_checksums(place)
    with pytest.raises(sr.InputError, match=r"names no best checkpoint up to its own step; move the checkpoint away"):
        sr.load(saved[1])


def test_parameters_that_are_not_finite_are_not_loaded(saved, tmp_path):
    model, _ = saved
    name = "norm/scale"
    storage.save(tmp_path / "broken", model.replace(params=model.params | {name: model.params[name] * jnp.nan}))
    with pytest.raises(sr.InputError, match=r"broken/checkpoints/1: parameter norm/scale holds .* that are not finite"):
        sr.load(tmp_path / "broken")


def test_statistics_that_are_missing_are_missed(saved):
    _, folder = saved
    (folder / "transitions.npz").unlink()
    with pytest.raises(sr.InputError, match=r"is damaged \(transitions\.npz is missing\); copy the whole folder"):
        sr.load(folder)
    storage.write_checksums(folder / "checkpoints" / "1")
    with pytest.raises(sr.InputError, match=r"is missing or damaged .*, and the checkpoint's scores need it"):
        sr.load(folder)


def test_a_folder_without_a_model_says_so(tmp_path):
    with pytest.raises(sr.InputError, match="holds no checkpoints folder; bind CHECKPOINT to the RUN_DIR"):
        sr.load(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(sr.InputError, match="holds no finished checkpoint"):
        sr.load(tmp_path)


def test_a_spec_is_a_value(saved):
    model, _ = saved
    assert dataclasses.replace(model.spec) == model.spec
    assert hash(dataclasses.replace(model.spec)) == hash(model.spec)
