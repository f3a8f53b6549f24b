"""What holds parameters near the pre-trained ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqrec_jax.data.batches import training_batches
from seqrec_jax.devices import device_mesh, replicate, split_rows
from seqrec_jax.errors import InputError
from seqrec_jax.finetuning.penalties import Penalty, anchor_of, ewc, fisher, l2_sp
from seqrec_jax.losses.full_softmax import full_softmax
from seqrec_jax.model.recommender import Recommender
from seqrec_jax.model.spec import Architecture
from seqrec_jax.training.compile import make_catalog
from seqrec_jax.training.config import TrainConfig
from seqrec_jax.training.step import make_loss_and_grads
from seqrec_jax.training.tuning import Anchor, Fixed

CONFIG = TrainConfig(loss=full_softmax, train_batch_size=40)
ROWS = "item_encoder/tables/item_id"


@pytest.fixture
def model(corpus):
    architecture = Architecture(
        n_layers=1, n_heads=2, hidden_size=8, inner_size=8, max_length=20, item_encoder="text_and_id",
        repeat_offset=True, lexical_size=4,
    )  # fmt: skip
    return Recommender.create(corpus, architecture, seed=0)


def batches_of(corpus, mesh):
    batches = training_batches(
        corpus, batch_size=40, loss_positions="all", max_length=20, shards=mesh.size, seed=CONFIG.seed
    )
    return [split_rows(mesh, batches.batch(step)) for step in range(2)]


def test_fisher_is_the_mean_of_the_squared_gradients_of_batches(model, corpus):
    mesh = device_mesh(jax.devices()[:1])
    loss_and_grads = make_loss_and_grads(model.graph, full_softmax(), mesh)
    params, catalog = replicate(mesh, model.params), make_catalog(model, corpus, CONFIG, mesh)
    some = batches_of(corpus, mesh)
    ours = fisher(loss_and_grads, params, catalog, some, seed=0)
    one = jax.jit(loss_and_grads)
    expected = {name: np.zeros(array.shape) for name, array in params.items()}
    for batch in some:  # the gradient of each example by itself, added up
        of_batch = {name: np.zeros(array.shape) for name, array in params.items()}
        examples = np.flatnonzero(np.asarray(batch.weights))
        for example in examples:
            alone = batch._replace(weights=jnp.zeros_like(batch.weights).at[example].set(1))
            _, grads = one(params, Fixed(), catalog, alone, jax.random.key(0), None)
            for name, grad in grads.items():
                of_batch[name] += np.asarray(grad, np.float64)
        for name, grad in of_batch.items():
            expected[name] += (grad / len(examples)) ** 2 / len(some)
    largest = max(array.max() for array in expected.values())
    for name, array in expected.items():
        np.testing.assert_allclose(ours[name], array, rtol=5e-3, atol=1e-3 * array.max() + 1e-6 * largest, err_msg=name)


def test_the_anchor_is_the_pretrained_model_without_its_rows_and_its_importance_is_kept(model, corpus, tmp_path):
    mesh, file = device_mesh(jax.devices()[:1]), tmp_path / "fisher.npz"
    assert anchor_of(model, None, corpus, CONFIG, mesh, file) == Anchor()
    names = model.params.keys() - {ROWS}
    alike = anchor_of(model, l2_sp(), None, CONFIG, mesh, file)
    assert alike.start.keys() == names
    assert not alike.importance
    weighed = anchor_of(model, ewc(n_batches=1), corpus, CONFIG, mesh, file)
    assert weighed.importance.keys() == weighed.start.keys() == names
    assert any(array.any() for array in weighed.importance.values())
    written = file.stat().st_mtime_ns
    again = anchor_of(model, ewc(n_batches=1), corpus, CONFIG, mesh, file)
    assert file.stat().st_mtime_ns == written
    for name, array in weighed.importance.items():
        np.testing.assert_array_equal(again.importance[name], array)


def test_settings_of_penalties():
    assert l2_sp(2.0) == Penalty(2.0)
    assert ewc(3.0, 7) == Penalty(3.0, 7)
    with pytest.raises(InputError, match=r"l2_sp.strength = 0 is not above 0"):
        l2_sp(0)
    with pytest.raises(InputError, match=r"ewc.n_batches = 0 is below 1"):
        ewc(n_batches=0)
