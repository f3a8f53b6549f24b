"""What each method trains, stage after stage, and what stays as it was."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from seqrec_jax.data.batches import PackedBatches
from seqrec_jax.data.packing import all_positions, pack
from seqrec_jax.data.split import leave_one_out, training_log
from seqrec_jax.devices import device_mesh, replicate, split_rows
from seqrec_jax.errors import InputError
from seqrec_jax.losses.full_softmax import full_softmax
from seqrec_jax.losses.proposals.by_count import popularity
from seqrec_jax.model import parameters
from seqrec_jax.model.recommender import Architecture, build
from seqrec_jax.training.carry import carry
from seqrec_jax.training.fisher import fisher
from seqrec_jax.training.step import Catalog, TrainState, make_loss_and_grads, make_train_step
from seqrec_jax.training.transfer import (
    everything,
    ewc,
    from_scratch,
    full,
    head_first,
    l2_sp,
    low_rank,
    only_embeddings,
    progressive,
)
from seqrec_jax.training.tuning import Held, Tuning

ARCHITECTURE = Architecture(3, 2, 8, 8, max_length=20, item_encoder="text_and_id", repeat_offset=True, lexical_size=4)
DOMAINS_OWN = {"repeat", "item_encoder/item_id/tables/item_id"}


@pytest.fixture
def model(shop):
    sizes = dict.fromkeys(shop.features, shop.vocab_size) | {"item_id": shop.n_items + 1}
    graph, params = build(ARCHITECTURE, sizes, seed=0)
    features = {name: jnp.asarray(shop.tokens(name)) for name in shop.features}
    features |= {"item_id": jnp.arange(shop.n_items + 1), "lexical": jnp.ones((shop.n_items + 1, 4), jnp.float16)}
    return graph, params, Catalog(features, popularity(training_log(shop, leave_one_out(shop))))


@pytest.fixture
def batches(shop):
    windows = all_positions(shop.offsets, leave_one_out(shop), 20)
    return PackedBatches(shop.items.take, windows, pack(windows.lengths, 20), rows=8, seed=0)


def trained_by(stage, params):
    return {name for name in parameters.named(params) if stage.trains(name) or stage.adapts(name)}


def groups(names):
    """Blocks by number, the item encoder, and what else."""
    return {name.split("/")[1] if name.startswith("blocks/") else name.split("/")[0] for name in names - DOMAINS_OWN}


def test_progressive_frees_one_block_more_at_each_stage_and_everything_last(model):
    stages = progressive(3, epochs_per_layer=4, final_epochs=7)
    assert [stage.epochs for stage in stages] == [4, 4, 4, 7]
    of_stages = [trained_by(stage, model[1]) for stage in stages]
    assert [groups(names) for names in of_stages[:3]] == [{"2"}, {"1", "2"}, {"0", "1", "2"}]
    assert of_stages[3] == set(parameters.named(model[1]))
    assert all(names >= DOMAINS_OWN for names in of_stages)  # there is nothing pre-trained to keep


def test_other_methods_train_what_they_are_named_after(model):
    every = set(parameters.named(model[1]))
    inputs = {"item_encoder", "position_table", "norm", "lexical"}
    assert trained_by(full(3)[0], model[1]) == every
    assert groups(trained_by(full(3, freeze_embeddings=True, unfreeze_n_layers=1)[0], model[1])) == {"2"}
    assert groups(trained_by(full(3, unfreeze_n_layers=0)[0], model[1])) == inputs
    assert groups(trained_by(only_embeddings(3)[0], model[1])) == inputs
    first, second = head_first(3)
    assert groups(trained_by(first, model[1])) == {"lexical"}
    assert "item_encoder/item_id/tables/item_id" not in trained_by(first, model[1])
    assert trained_by(second, model[1]) == every
    scratch = from_scratch(3)[0]
    assert scratch.fresh
    assert trained_by(scratch, model[1]) == every


def test_settings_that_fit_no_model_are_refused():
    with pytest.raises(InputError, match=r"full.unfreeze_n_layers = 4, but the checkpoint's model has 3 blocks"):
        full(3, unfreeze_n_layers=4)
    with pytest.raises(InputError, match="leave nothing to train"):
        full(3, freeze_embeddings=True, unfreeze_n_layers=0)
    with pytest.raises(InputError, match=r"progressive.final_epochs = 0 is below 1"):
        progressive(3, final_epochs=0)
    with pytest.raises(InputError, match=r"l2_sp.strength = 0 is not above 0"):
        l2_sp(0)
    with pytest.raises(InputError, match=r"ewc.n_batches = 0 is below 1"):
        ewc(n_batches=0)


def take_steps(model, batches, tuning, held=None, steps=3):
    """Parameters after a few steps of Adam, and the optimizer's state."""
    graph, params, catalog = model
    mesh = device_mesh(jax.devices()[:1])
    optimizer = optax.adam(1e-2)
    step = make_train_step(graph, full_softmax(), optimizer, mesh, seed=0, tuning=tuning)
    trained, fixed = jax.tree.map(jnp.copy, tuning.split(params, held=held))
    state = replicate(mesh, TrainState(trained, optimizer.init(trained), jnp.int32(0), None, fixed))
    catalog = replicate(mesh, catalog)
    for index in range(steps):
        state, _ = step(state, catalog, split_rows(mesh, batches.batch(index)))
    assert state.fixed is not None
    return parameters.named(tuning.whole(state.params, state.fixed)), state


def test_frozen_parameters_stay_bit_identical_and_have_no_optimizer_state(model, batches):
    before = parameters.named(model[1])
    tuning = Tuning(model[1], progressive(3)[0].trains)
    after, state = take_steps(model, batches, tuning)
    trained = trained_by(progressive(3)[0], model[1])
    for name, array in before.items():
        assert np.array_equal(array, after[name]) == (name not in trained), name
    moments = {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state.optimizer)}
    assert any("blocks/2/" in path for path in moments)
    assert not any(part in path for path in moments for part in ("blocks/0/", "blocks/1/", "position_table", "title"))


def test_low_rank_additions_begin_at_nothing_and_alone_are_trained(model, batches):
    stage = low_rank(3, rank=2)[0]
    tuning = Tuning(model[1], stage.trains, stage.adapts, stage.rank)
    trained, fixed = tuning.split(model[1])
    before = parameters.named(model[1])
    for name, array in parameters.named(tuning.whole(trained, fixed)).items():
        np.testing.assert_array_equal(array, before[name])
    after, _ = take_steps(model, batches, tuning)
    change = np.asarray(after["blocks/1/feed_forward/inner/kernel"] - before["blocks/1/feed_forward/inner/kernel"])
    assert np.linalg.matrix_rank(change, tol=1e-5) == 2
    np.testing.assert_array_equal(after["position_table"], before["position_table"])
    np.testing.assert_array_equal(after["blocks/1/feed_forward/inner/bias"], before["blocks/1/feed_forward/inner/bias"])


def test_a_penalty_holds_parameters_where_it_is_strong(model, batches):
    start = parameters.named(model[1])
    held = Held(start, {name: jnp.full_like(array, float("blocks/" in name)) for name, array in start.items()})
    free, _ = take_steps(model, batches, Tuning(model[1], everything))
    held_to, _ = take_steps(model, batches, Tuning(model[1], everything, strength=1e4), held, steps=3)

    def moved(after, part):
        return sum(float(jnp.abs(after[name] - start[name]).sum()) for name in start if part in name)

    assert moved(held_to, "blocks/") < 0.9 * moved(free, "blocks/")
    tuning = Tuning(model[1], everything, strength=2.0)
    trained, fixed = tuning.split(jax.tree.map(lambda array: array + 0.5, model[1]), held=Held(start, {}))
    n = sum(array.size for array in start.values())
    assert float(tuning.penalty(trained, fixed)) == pytest.approx(2.0 * 0.25 * n, rel=1e-4)  # no factor 1/2


def test_fisher_is_the_mean_of_the_squared_gradients_of_batches(model, batches):
    graph, params, catalog = model
    mesh = device_mesh(jax.devices()[:1])
    loss_and_grads = make_loss_and_grads(graph, full_softmax(), mesh)
    some = [split_rows(mesh, batches.batch(index)) for index in range(2)]
    params, catalog = replicate(mesh, params), replicate(mesh, catalog)
    ours = fisher(loss_and_grads, params, catalog, some, seed=0)
    one = jax.jit(loss_and_grads)
    expected = {name: np.zeros(array.shape) for name, array in parameters.named(params).items()}
    for batch in some:  # the gradient of each example by itself, added up
        of_batch = {name: np.zeros(array.shape) for name, array in expected.items()}
        examples = np.flatnonzero(np.asarray(batch.weights))
        for example in examples:
            alone = batch._replace(weights=jnp.zeros_like(batch.weights).at[example].set(1))
            _, grads = one(params, None, catalog, alone, jax.random.key(0), None)
            for name, grad in parameters.named(grads).items():
                of_batch[name] += np.asarray(grad, np.float64)
        for name, grad in of_batch.items():
            expected[name] += (grad / len(examples)) ** 2 / len(some)
    largest = max(array.max() for array in expected.values())
    for name, array in expected.items():
        np.testing.assert_allclose(ours[name], array, rtol=5e-3, atol=1e-3 * array.max() + 1e-6 * largest, err_msg=name)


def test_a_model_of_texts_gets_rows_that_change_nothing_at_first(shop):
    texts = dict.fromkeys(shop.features, shop.vocab_size)
    source = Architecture(2, 2, 8, 8, max_length=20)
    target = Architecture(2, 2, 8, 8, max_length=20, item_encoder="text_and_id", repeat_offset=True)
    graph, params = build(source, texts, seed=3)
    wider, _ = build(target, texts | {"item_id": 30}, seed=4)
    carried = carry(params, source, target, texts | {"item_id": 30}, seed=4)
    from flax import nnx

    features = {name: shop.tokens(name)[:30] for name in shop.features}
    before = nnx.merge(graph, params).encode_items(features)
    after = nnx.merge(wider, carried).encode_items(features | {"item_id": np.arange(30)})
    np.testing.assert_array_equal(before, after)
    back = parameters.named(carry(carried, target, source, texts, seed=5))
    for name, array in parameters.named(params).items():
        np.testing.assert_array_equal(back[name], array)


def test_rows_are_carried_within_their_catalog_alone(shop):
    rows = Architecture(1, 2, 8, 8, max_length=20, item_encoder="id")
    _, params = build(rows, {"item_id": 30}, seed=3)
    name = "item_encoder/tables/item_id"
    same = parameters.named(carry(params, rows, rows, {"item_id": 30}, seed=4, same_catalog=True))
    other = parameters.named(carry(params, rows, rows, {"item_id": 40}, seed=4))
    np.testing.assert_array_equal(same[name], parameters.named(params)[name])
    assert other[name].shape == (40, 8)
    assert float(jnp.abs(other[name]).max()) > 0  # nothing else tells these items apart
