"""Losses against plain NumPy, and their gradients against finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqrec_jax.data.split import TrainInteractions
from seqrec_jax.errors import InputError
from seqrec_jax.losses.cross_entropy import cross_entropy
from seqrec_jax.losses.full_softmax import full_softmax, log_normalizer
from seqrec_jax.losses.loss import Keys, LossInputs, ModelOutputs
from seqrec_jax.losses.negatives import local, shared
from seqrec_jax.losses.pairwise import bce, bpr, gbce
from seqrec_jax.losses.proposals.by_count import popularity, uniform
from seqrec_jax.losses.sampled_softmax import sampled_softmax

COUNTS = np.array([0, 4, 3, 10, 1, 100, 7, 0, 25])
TRAIN = TrainInteractions(COUNTS, lambda: iter(()))
Q = (COUNTS + 1.0) / (COUNTS[1:] + 1.0).sum()
KEYS = Keys(jax.random.key(0), jnp.arange(6))
RNG = np.random.default_rng(0)
TABLE, OUTPUTS = RNG.normal(size=(9, 4)), RNG.normal(size=(6, 4))
TARGETS = np.array([1, 5, 8, 2, 2, 3])
DRAWN = RNG.integers(1, 9, (6, 7))
DRAWN[0, 2] = TARGETS[0]


def outputs_of(outputs, table, drawn=None):
    """As a step makes them, the whole catalog encoded."""
    zeros = jnp.zeros((1, len(TARGETS)), jnp.int32)
    targets = jnp.asarray(TARGETS)
    inputs = LossInputs(targets, jnp.arange(len(TARGETS)), zeros, zeros)
    rows = None if drawn is None else jnp.asarray(drawn)
    return ModelOutputs(
        inputs, outputs[None], outputs[None], outputs, table[targets], len(table) - 1, table, None, rows, rows
    )


def losses_of(loss, outputs=OUTPUTS, table=TABLE, drawn=None, proposal=None):
    with jax.enable_x64(True):
        model = outputs_of(jnp.asarray(outputs), jnp.asarray(table), drawn)
        return np.asarray(loss.losses(KEYS, model, popularity(TRAIN) if proposal is None else proposal))


def softmax_loss(logits, label, smoothing=0.0):
    log_p = logits - np.log(np.exp(logits).sum())
    goal = np.full(len(logits), smoothing / len(logits))
    goal[label] += 1 - smoothing
    return -(goal * log_p).sum()


def log_sigmoid(x):
    return -np.log1p(np.exp(-x))


def by_target(formula, drawn=DRAWN):
    """formula(positive score, scores of the negatives that are not the target, their items) for each target."""
    kept = [[item for item in row if item != target] for row, target in zip(drawn, TARGETS, strict=True)]
    return [
        formula(TABLE[target] @ output, TABLE[items] @ output, np.array([target, *items]))
        for target, output, items in zip(TARGETS, OUTPUTS, kept, strict=True)
    ]


@pytest.mark.parametrize(("temperature", "smoothing"), [(1.0, 0.0), (0.3, 0.0), (2.0, 0.1)])
def test_cross_entropy_is_torchs(temperature, smoothing):
    positive, negatives = RNG.normal(size=3), RNG.normal(size=(3, 5))
    loss = cross_entropy(jnp.asarray(positive), jnp.asarray(negatives), temperature, smoothing)
    for i in range(3):
        logits = np.concatenate([[positive[i]], negatives[i]]) / temperature
        assert loss[i] == pytest.approx(softmax_loss(logits, 0, smoothing), rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_sampled_softmax_corrects_by_q_and_masks_accidental_hits(temperature):
    loss = sampled_softmax(7, local, temperature)
    expected = by_target(
        lambda positive, negatives, items: softmax_loss(
            (np.array([positive, *negatives]) - np.log(Q[items] + 1e-16)) / temperature, 0
        )
    )
    np.testing.assert_allclose(losses_of(loss, drawn=DRAWN), expected, rtol=1e-5)


def test_bce_is_sasrecs():
    expected = by_target(lambda positive, negatives, _: -log_sigmoid(positive) - log_sigmoid(-negatives).sum())
    np.testing.assert_allclose(losses_of(bce(7), drawn=DRAWN), expected, rtol=1e-6)


@pytest.mark.parametrize("t", [0.0, 0.75, 1.0])
def test_gbce_is_gsasrecs(t):
    rate = 7 / (8 - 1)
    beta = rate * (t * (1 - 1 / rate) + 1 / rate)
    expected = by_target(
        lambda positive, negatives, _: -(beta * log_sigmoid(positive) + log_sigmoid(-negatives).sum()) / 8
    )
    np.testing.assert_allclose(losses_of(gbce(7, t=t), drawn=DRAWN), expected, rtol=1e-6)


def test_gbce_at_full_calibration_weighs_the_positive_by_the_sampling_rate():
    few = DRAWN[:, :2]
    rate = 2 / 7
    expected = by_target(
        lambda positive, negatives, _: -(rate * log_sigmoid(positive) + log_sigmoid(-negatives).sum()) / 3, few
    )
    np.testing.assert_allclose(losses_of(gbce(2, t=1.0), drawn=few), expected, rtol=1e-6)


def test_bpr_is_the_mean_over_negatives():
    expected = by_target(lambda positive, negatives, _: -log_sigmoid(positive - negatives).sum() / 7)
    np.testing.assert_allclose(losses_of(bpr(7), drawn=DRAWN), expected, rtol=1e-6)


@pytest.mark.parametrize(("temperature", "smoothing"), [(1.0, 0.0), (0.5, 0.2)])
def test_full_softmax_is_over_the_whole_catalog(temperature, smoothing):
    loss = losses_of(full_softmax(temperature, smoothing))
    for i, target in enumerate(TARGETS):
        assert loss[i] == pytest.approx(
            softmax_loss(TABLE[1:] @ OUTPUTS[i] / temperature, target - 1, smoothing), rel=1e-6
        )


GROUPS = {"two": np.array([0, 1, 1, 1, 2, 2, 2, 1, 1]), "eight": np.arange(9)}


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS)
def test_items_of_another_group_do_not_compete_in_the_full_softmax(groups, smoothing):
    temperature = 0.5
    with jax.enable_x64(True):
        model = outputs_of(jnp.asarray(OUTPUTS), jnp.asarray(TABLE))
        model = model._replace(group_ids=jnp.asarray(groups), n_groups=int(groups.max()))
        loss = np.asarray(full_softmax(temperature, smoothing).losses(KEYS, model, None))
    for i, target in enumerate(TARGETS):
        items = np.flatnonzero(groups == groups[target])
        logits = TABLE[items] @ OUTPUTS[i] / temperature
        assert loss[i] == pytest.approx(softmax_loss(logits, list(items).index(target), smoothing), rel=1e-5, abs=1e-9)


def test_more_than_eight_groups_compete_apart():
    table = RNG.normal(size=(25, 4)).astype(np.float32)
    groups = np.array([0, *np.repeat(np.arange(1, 13), 2)])  # two items each
    targets = jnp.array([23, 24, 1, 17, 20, 3])
    model = outputs_of(jnp.asarray(OUTPUTS, jnp.float32), jnp.asarray(table))
    model = model._replace(
        inputs=model.inputs._replace(targets=targets), target_embeddings=jnp.asarray(table)[targets],
        group_ids=jnp.asarray(groups), n_groups=12,
    )  # fmt: skip
    loss = full_softmax().losses(KEYS, model, None)
    for i, target in enumerate(np.asarray(targets)):
        items = np.flatnonzero(groups == groups[target])
        assert float(loss[i]) == pytest.approx(
            softmax_loss(table[items] @ OUTPUTS[i], list(items).index(target)), rel=1e-4, abs=1e-6
        )


def test_padding_leaves_gradients_finite():
    """Targets of padding have weight 0, which an infinite gradient would turn into NaN."""
    model = outputs_of(jnp.asarray(OUTPUTS, jnp.float32), jnp.asarray(TABLE, jnp.float32))
    padding = model.inputs._replace(targets=jnp.zeros_like(model.inputs.targets))
    model = model._replace(
        inputs=padding, group_ids=jnp.asarray(GROUPS["two"]), n_groups=2, history_offset=jnp.float32(-3)
    )

    def total(outputs):
        scored = model._replace(outputs=outputs, hidden=outputs[None])
        return full_softmax().losses(KEYS, scored, None).sum()

    assert jnp.isfinite(jax.grad(total)(200 * model.outputs)).all()


def test_draws_of_another_group_are_no_negatives():
    groups = GROUPS["two"]
    with jax.enable_x64(True):
        model = outputs_of(jnp.asarray(OUTPUTS), jnp.asarray(TABLE), DRAWN)
        model = model._replace(group_ids=jnp.asarray(groups), n_groups=2)
        loss = np.asarray(bce(7).losses(KEYS, model, popularity(TRAIN)))
    for i, target in enumerate(TARGETS):
        negatives = [item for item in DRAWN[i] if item != target and groups[item] == groups[target]]
        expected = -log_sigmoid(TABLE[target] @ OUTPUTS[i]) - log_sigmoid(-TABLE[negatives] @ OUTPUTS[i]).sum()
        assert loss[i] == pytest.approx(expected, rel=1e-6)


def test_an_offset_for_the_history_changes_its_items_alone():
    history, slots = jnp.array([[1, 5, 1, 8, 0, 3]]), jnp.array([0, 1, 2, 3])
    positions = jnp.array([[0, 1, 2, 3, 0, 1]])
    targets, outputs = jnp.array([5, 1, 8, 2]), jnp.asarray(OUTPUTS[:4], jnp.float32)
    table = jnp.asarray(TABLE, jnp.float32)
    hidden = jnp.zeros((1, 6, 4)).at[0, :4].set(outputs)
    inputs = LossInputs(targets, slots, history, positions)
    model = ModelOutputs(inputs, hidden, table[history], outputs, table[targets], 8, table, jnp.float32(-1.5))
    loss = full_softmax(0.5).losses(KEYS, model, None)
    held = [{1}, {1, 5}, {1, 5}, {1, 5, 8}]
    for i, target in enumerate(targets):
        logits = np.array([TABLE[item] @ OUTPUTS[i] - 1.5 * (item in held[i]) for item in range(1, 9)]) / 0.5
        assert float(loss[i]) == pytest.approx(softmax_loss(logits, int(target) - 1), rel=1e-4)


@pytest.mark.parametrize("offset", [None, -1.5])
def test_history_negatives_stand_against_the_target_as_n_draws_would(offset):
    history, slots = jnp.array([[1, 5, 1, 8, 0, 3]]), jnp.array([0, 1, 2, 3])
    positions = jnp.array([[0, 1, 2, 3, 0, 1]])
    targets, outputs = jnp.array([5, 1, 8, 2]), jnp.asarray(OUTPUTS[:4], jnp.float32)
    table, drawn = jnp.asarray(TABLE, jnp.float32), jnp.array([[2, 7, 6]])
    hidden = jnp.zeros((1, 6, 4)).at[0, :4].set(outputs)
    inputs = LossInputs(targets, slots, history, positions)
    number = None if offset is None else jnp.float32(offset)
    model = ModelOutputs(inputs, hidden, table[history], outputs, table[targets], 8, table, number, drawn, drawn)
    loss = sampled_softmax(3, shared, correct_positive=False, history_negatives=True)
    assert loss.scores_history
    values = loss.losses(KEYS, model, popularity(TRAIN))
    held = [{1}, {1, 5} - {1}, {1, 5}, {1, 5, 8}]
    for i, target in enumerate(np.asarray(targets)):
        logits = [TABLE[target] @ OUTPUTS[i] + np.log(3) + (offset or 0) * (i == 1)]  # the second is bought again
        logits += [TABLE[item] @ OUTPUTS[i] - np.log(Q[item]) for item in (2, 7, 6) if item != target]
        logits += [TABLE[item] @ OUTPUTS[i] + (offset or 0) + np.log(3) for item in held[i]]
        assert float(values[i]) == pytest.approx(softmax_loss(np.array(logits), 0), rel=1e-4)


LOSSES = {
    "sampled_softmax": sampled_softmax(7, temperature=0.7, label_smoothing=0.1),
    "full_softmax": full_softmax(0.7, 0.1),
    "bce": bce(7),
    "gbce": gbce(7),
    "bpr": bpr(7),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_finite_differences(name):
    drawn = None if name == "full_softmax" else DRAWN
    weights = RNG.normal(size=6)

    @jax.jit
    def total(arrays):
        return (jnp.asarray(weights) * LOSSES[name].losses(KEYS, outputs_of(*arrays, drawn), popularity(TRAIN))).sum()

    with jax.enable_x64(True):
        arrays = [jnp.asarray(OUTPUTS), jnp.asarray(TABLE)]
        grads = jax.grad(total)(arrays)
        for which in range(2):
            for place in np.ndindex(arrays[which].shape):
                ends = []
                for step in (1e-6, -1e-6):
                    moved = [array.at[place].add(step) if i == which else array for i, array in enumerate(arrays)]
                    ends.append(float(total(moved)))
                assert float(grads[which][place]) == pytest.approx((ends[0] - ends[1]) / 2e-6, abs=1e-6)


@pytest.mark.parametrize("n_learnt", [None, 3])
def test_blocks_of_the_full_softmax_add_up_to_the_whole(n_learnt, monkeypatch):
    monkeypatch.setattr("seqrec_jax.losses.full_softmax.LOGITS_PER_BLOCK", 1)  # blocks of 256 items, their least
    table, outputs = RNG.normal(size=(700, 4)).astype(np.float32), OUTPUTS.astype(np.float32)
    weights = RNG.normal(size=6).astype(np.float32)

    def whole(outputs, table):
        return (weights * jax.nn.logsumexp(outputs @ table[1:].T / 0.5, axis=1)).sum()

    def blocked(outputs, table):
        return (weights * log_normalizer(outputs, table, 0.5, n_learnt)).sum()

    one, other = (jax.value_and_grad(f, (0, 1))(outputs, table) for f in (whole, blocked))
    assert float(one[0]) == pytest.approx(float(other[0]), rel=1e-5)
    np.testing.assert_allclose(one[1][0], other[1][0], atol=1e-5)
    np.testing.assert_allclose(one[1][1][:, :n_learnt], other[1][1][:, :n_learnt], atol=1e-5)
    assert n_learnt is None or not np.asarray(other[1][1][:, n_learnt:]).any()


def test_the_full_softmax_never_holds_targets_by_catalog():
    n_targets, n_items, hidden = 2048, 200_000, 8
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((n_targets, hidden), (n_items + 1, hidden))]
    compiled = jax.jit(jax.grad(lambda o, c: log_normalizer(o, c, 1.0).sum(), (0, 1))).lower(*shapes).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 0.2 * 4 * n_targets * n_items


@pytest.mark.parametrize("correct_positive", [False, True])
@pytest.mark.parametrize("make", [uniform, popularity])
def test_the_gradient_of_the_sampled_softmax_tends_to_that_of_the_full(make, correct_positive):
    proposal = make(TRAIN)

    def grad(loss, drawn=None):
        return jax.grad(
            lambda outputs: loss.losses(KEYS, outputs_of(outputs, jnp.asarray(TABLE), drawn), proposal).sum()
        )(jnp.asarray(OUTPUTS))

    limit = np.asarray(grad(full_softmax()))
    if correct_positive:
        p = np.exp(-losses_of(full_softmax()))
        limit = limit / (1 - p)[:, None]
    distances = []
    for n in (100, 10_000, 1_000_000):
        loss = sampled_softmax(n, shared, correct_positive=correct_positive)
        distances.append(
            np.abs(grad(loss, proposal.draw(jax.random.split(jax.random.key(0), 1), None, n)) - limit).max()
        )
    assert distances[0] > 3 * distances[1] > 9 * distances[2]
    assert distances[2] < 0.01


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: sampled_softmax(temperature=0.0), "sampled_softmax.temperature = 0.0 is not above 0"),
        (lambda: full_softmax(temperature=-1.0), "full_softmax.temperature = -1.0 is not above 0"),
        (lambda: sampled_softmax(label_smoothing=1.0), "sampled_softmax.label_smoothing = 1.0 is not in [0, 1)"),
        (lambda: gbce(t=1.5), "gbce.t = 1.5 is not in [0, 1]"),
    ],
)
def test_senseless_values_are_refused_by_name(make, words):
    with pytest.raises(InputError) as error:
        make()
    assert words in str(error.value)
