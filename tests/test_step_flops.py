"""Operations of a step: as the compiler counts them without loops, and by hand with them."""

import dataclasses
import functools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqrec_jax.data.corpus import Corpus
from seqrec_jax.devices import device_mesh
from seqrec_jax.losses.full_softmax import full_softmax, log_normalizer
from seqrec_jax.losses.negatives import shared
from seqrec_jax.losses.sampled_softmax import sampled_softmax
from seqrec_jax.model.recommender import Recommender
from seqrec_jax.model.spec import Architecture
from seqrec_jax.runs.step_flops import Flops, traced_flops
from seqrec_jax.training.compile import StepCompiler, make_catalog
from seqrec_jax.training.config import TrainConfig

ROWS, WIDTH = 48, 32
X, W = jnp.ones((ROWS, WIDTH)), jnp.ones((WIDTH, WIDTH))
PRODUCT = 2 * ROWS * WIDTH**2
CONFIG = TrainConfig(train_batch_size=800, loss=partial(sampled_softmax, n_negatives=64, negatives=shared))
DEEP = Architecture(
    n_layers=2, n_heads=2, hidden_size=128, inner_size=512, max_length=20, hidden_dropout=0, attention_dropout=0
)


def flops(function, *arguments):
    return traced_flops(jax.jit(function).trace(*arguments))


@pytest.fixture(scope="module")
def traced_step(shop_folder):
    """Traces the step of a configuration for a number of devices, once each: the step, its operations and a batch."""

    @functools.cache
    def traced(n_devices=1, **settings):
        config = dataclasses.replace(CONFIG, **settings)
        corpus, mesh = Corpus(shop_folder), device_mesh(jax.devices()[:n_devices])
        model = Recommender.create(corpus, DEEP)
        catalog = make_catalog(model, corpus, config, mesh)
        compiler = StepCompiler(config, corpus, model.spec, catalog, mesh, model.params)
        batches, _, optimizer = compiler.prepare(config.train_batch_size)
        step, _ = compiler.trace(batches, optimizer)
        return step, traced_flops(step), batches.batch(0)

    return traced


@pytest.mark.parametrize("rematerialize", [False, True])
def test_a_step_without_loops_is_counted_as_the_compiler_counts_it(traced_step, rematerialize):
    step, found, _ = traced_step(rematerialize=rematerialize)
    assert found.hardware == pytest.approx(step.lower().cost_analysis()["flops"], rel=0.04)


def test_memory_that_is_saved_by_computing_again_costs_the_hardware_alone(traced_step):
    (_, kept, batch), (_, again, _) = traced_step(rematerialize=False), traced_step(rematerialize=True)
    assert kept.again == 0
    assert again.model == pytest.approx(kept.model, rel=0.01)
    tokens = batch.inputs.size
    products = 4 * DEEP.hidden_size**2 + 2 * DEEP.hidden_size * DEEP.inner_size
    attention = 2 * DEEP.max_length * DEEP.hidden_size
    assert again.again == pytest.approx(2 * DEEP.n_layers * tokens * (products + attention), rel=0.1)


def test_parts_and_devices_change_little(traced_step):
    whole, (step, parts, _) = traced_step(rematerialize=False)[1].model, traced_step(accumulation_steps=4)
    assert parts.model == pytest.approx(whole, rel=0.1)
    assert step.lower().cost_analysis()["flops"] < 0.5 * whole  # the compiler takes a loop's body once
    assert traced_step(n_devices=4)[1].model == pytest.approx(whole, rel=0.1)


def test_the_softmax_over_the_catalog_is_three_products_and_one_made_again(traced_step):
    targets, items, width = 4096, 8000, 64
    outputs, catalog = jnp.ones((targets, width)), jnp.ones((items, width))
    found = flops(jax.grad(lambda o, c: log_normalizer(o, c, 1.0).sum(), (0, 1)), outputs, catalog)
    product = 2 * targets * items * width
    assert found.model == pytest.approx(3 * product, rel=0.05)  # 0.03 of it for exponentials and sums
    assert found.again == pytest.approx(product, rel=0.02)
    _, full, batch = traced_step(loss=full_softmax)
    assert full.again == pytest.approx(2 * len(batch.targets) * 201 * DEEP.hidden_size, rel=0.05)


def test_a_loop_counts_as_often_as_it_runs():
    blocks = jnp.ones((7, ROWS, WIDTH))
    assert flops(lambda b: jax.lax.map(lambda x: x @ W, b), blocks) == Flops(7 * PRODUCT)
    assert flops(lambda x: jax.lax.fori_loop(0, 5, lambda _, x: x @ W, x), X) == Flops(5 * PRODUCT)
    nested = flops(lambda b: jax.lax.scan(lambda c, x: (c, jax.lax.map(lambda r: r @ W, x)), 0, b), blocks)
    assert nested == Flops(7 * PRODUCT)
    value_and_grad = flops(jax.value_and_grad(lambda w: jax.lax.map(lambda x: x @ w, blocks).sum()), W)
    assert value_and_grad.model == pytest.approx(2 * 7 * PRODUCT, rel=0.05)


def test_how_often_a_while_runs_is_not_known():
    found = flops(lambda x: jax.lax.while_loop(lambda x: x.sum() < 3, lambda x: x @ W, x), X)
    assert math.isnan(found.model)
    assert flops(lambda n: jax.lax.while_loop(lambda n: n < 3, lambda n: n + 1, n), 0) == Flops(0)


def test_a_branch_counts_as_the_most_expensive():
    assert flops(lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x @ W @ W, lambda x: x @ W, x), X) == Flops(2 * PRODUCT)


def test_products_are_exact_and_elements_count_once():
    assert flops(lambda x: x @ x.swapaxes(1, 2), jnp.ones((3, 4, 5))) == Flops(2 * 3 * 4**2 * 5)
    images, kernel = jnp.ones((2, 6, 10, 10)), jnp.ones((8, 3, 3, 3))  # in two groups of channels
    convolved = partial(jax.lax.conv_general_dilated, window_strides=(1, 1), padding="VALID", feature_group_count=2)
    assert flops(convolved, images, kernel) == Flops(2 * (2 * 8 * 8 * 8) * 3 * 3 * 3)
    assert flops(lambda x: jnp.exp(x) + x, X) == Flops(2 * X.size)
    assert flops(lambda x: x.sum(0), X) == Flops(X.size)
    assert flops(lambda x: x[::2].T.reshape(-1), X) == Flops(0)
    assert flops(lambda n: n * 2 + 1, jnp.ones(9, int)) == Flops(0)
    assert flops(lambda x, n: x.at[n].add(1.0), jnp.ones((100, 3)), jnp.arange(5)) == Flops(15)


def test_calls_are_followed():
    square = jax.custom_vjp(lambda x: x @ W)
    square.defvjp(lambda x: (x @ W, None), lambda _, g: (g @ W.T,))
    assert flops(lambda x: jax.jit(square)(x), X) == Flops(PRODUCT)
    assert flops(jax.grad(lambda x: square(x).sum()), X).model == pytest.approx(2 * PRODUCT, rel=0.05)
    assert np.isclose(flops(jax.vmap(lambda x: jax.nn.softmax(x) @ W), X).model, PRODUCT, rtol=0.1)
