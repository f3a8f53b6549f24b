"""What each method trains, phase after phase, and what stays as it was."""

import jax
import numpy as np
import pytest

from seqrec_jax.devices import device_mesh, split_rows
from seqrec_jax.errors import InputError
from seqrec_jax.finetuning.methods import (
    from_scratch,
    full,
    head_first,
    low_rank,
    only_embeddings,
    progressive,
    untrained,
    with_something_to_train,
)
from seqrec_jax.losses.full_softmax import full_softmax
from seqrec_jax.model.recommender import Recommender
from seqrec_jax.model.spec import Architecture
from seqrec_jax.training.compile import StepCompiler, make_catalog
from seqrec_jax.training.config import TrainConfig
from seqrec_jax.training.tuning import Tuning
from tests.conftest import graph_of

ARCHITECTURE = Architecture(
    n_layers=3, n_heads=1, hidden_size=4, inner_size=4, max_length=10, item_encoder="text_and_id", repeat_offset=True,
    transitions=True, lexical_size=4,
)  # fmt: skip
NAMES = set(graph_of(ARCHITECTURE, title=10, item_id=5).shapes)
ROWS, REPEAT = "item_encoder/tables/item_id", "terms/repeat/offset"
INPUTS = {"item_encoder", "position_table", "norm", "terms"}


def trained_by(phase):
    return {name for name in NAMES if phase.trains(name) or phase.adapts(name)}


def groups(names):
    """Blocks by number, and the first part of the other names, without what is the target's alone."""
    return {name.split("/")[name.startswith("blocks/")] for name in names - {ROWS, REPEAT}}


def test_progressive_frees_one_block_more_in_each_phase_and_everything_last():
    phases = progressive(3, epochs_per_layer=4, final_epochs=7)
    assert [phase.epochs for phase in phases] == [4, 4, 4, 7]
    of_phases = [trained_by(phase) for phase in phases]
    assert [groups(names) for names in of_phases[:3]] == [{"2"}, {"1", "2"}, {"0", "1", "2"}]
    assert of_phases[3] == NAMES
    assert all(names >= {ROWS, REPEAT} for names in of_phases)  # there is nothing pre-trained to keep


def test_other_methods_train_what_they_are_named_after():
    assert trained_by(full(3)[0]) == NAMES
    assert groups(trained_by(full(3, freeze_embeddings=True, unfreeze_n_layers=1)[0])) == {"2"}
    assert groups(trained_by(full(3, unfreeze_n_layers=0)[0])) == INPUTS
    assert groups(trained_by(only_embeddings(3)[0])) == INPUTS
    first, second = head_first(3)
    assert {name.split("/")[1] for name in trained_by(first)} == {"lexical", "repeat"}
    assert trained_by(second) == NAMES
    scratch = from_scratch(3)[0]
    assert scratch.fresh
    assert trained_by(scratch) == NAMES
    assert untrained(3) == []


def test_phases_that_a_model_has_nothing_for_are_left_out():
    plain = graph_of(Architecture(n_layers=1, hidden_size=4, inner_size=4, transitions=True), title=10).shapes
    assert [phase.name for phase in with_something_to_train(head_first(1), plain)] == ["everything"]
    with pytest.raises(InputError, match="trains no parameter of the model"):
        with_something_to_train(head_first(1)[:1], plain)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: full(3, unfreeze_n_layers=4), r"full.unfreeze_n_layers = 4, but the model has 3 blocks"),
    (lambda: full(3, freeze_embeddings=True, unfreeze_n_layers=0), "leave nothing to train"),
    (lambda: progressive(3, final_epochs=0), r"progressive.final_epochs = 0 is below 1"),
    (lambda: low_rank(3, rank=0), r"low_rank.rank = 0 is below 1"),
])  # fmt: skip
def test_settings_that_fit_no_model_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


@pytest.fixture
def take_steps(corpus):
    """f(phase) -> parameters before and after three steps, and names of what the optimizer keeps."""
    model, config = Recommender.create(corpus, ARCHITECTURE, seed=0), TrainConfig(loss=full_softmax, learning_rate=0.01)
    mesh = device_mesh(jax.devices()[:1])
    catalog = make_catalog(model, corpus, config, mesh)

    def take(phase):
        tuning = Tuning(phase.trains, phase.adapts, phase.rank)
        compiler = StepCompiler(config, corpus, model.spec, catalog, mesh, model.params, tuning)
        compiled = compiler.compile(80)
        state = compiler.init(compiled.optimizer)
        for step in range(3):
            state, _ = compiled.step(state, catalog, split_rows(mesh, compiled.batches.batch(step)))
        moments = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state.optimizer)]
        return model.params, tuning.whole(state.params, state.fixed), moments

    return take


def test_frozen_parameters_stay_bit_identical_and_have_no_optimizer_state(take_steps):
    phase = progressive(3)[0]
    before, after, moments = take_steps(phase)
    unused = {"terms/transitions/weight"}
    for name, array in before.items():
        assert np.array_equal(array, after[name]) == (name not in trained_by(phase) - unused), name
    assert any("blocks/2/" in path for path in moments)
    assert not any(part in path for path in moments for part in ("blocks/0/", "blocks/1/", "position_table", "title"))


def test_low_rank_additions_alone_are_trained(take_steps):
    before, after, _ = take_steps(low_rank(3, rank=2)[0])
    change = np.asarray(after["blocks/1/feed_forward/inner/kernel"] - before["blocks/1/feed_forward/inner/kernel"])
    assert np.linalg.matrix_rank(change, tol=1e-6) == 2
    for name in ("position_table", "blocks/1/feed_forward/inner/bias"):
        np.testing.assert_array_equal(after[name], before[name])


def test_phases_of_a_fine_tuning_share_their_batches(corpus):
    model, config = Recommender.create(corpus, ARCHITECTURE), TrainConfig(loss=full_softmax)
    mesh = device_mesh(jax.devices()[:1])
    catalog = make_catalog(model, corpus, config, mesh)
    first, second = (
        StepCompiler(config, corpus, model.spec, catalog, mesh, model.params, Tuning(phase.trains)).batches(80)
        for phase in progressive(3)[:2]
    )
    assert first is second
