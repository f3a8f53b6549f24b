"""Negatives of a step: how many sets, which items to encode for them, and their logits beside the target's."""

from collections.abc import Callable
from typing import NamedTuple

import gin
import jax
import jax.numpy as jnp

from seqrec_jax.errors import InputError
from seqrec_jax.losses.proposals.by_count import LEAST_Q
from seqrec_jax.losses.proposals.in_batch import PositiveMixing, Similarity
from seqrec_jax.losses.proposals.interface import Observed, Proposal
from seqrec_jax.model.recommender import items_read

TARGETS_PER_BLOCK = 64

AnyProposal = Proposal | Similarity | PositiveMixing


class Keys(NamedTuple):
    """Random keys of a step.

    Attributes:
        common: the same on every device.
        targets: [targets] int32, each target's number within the whole step, so that what is drawn for it does not
            depend on the device that holds it.
    """

    common: jax.Array
    targets: jax.Array


@gin.configurable
def shared(keys: Keys) -> jax.Array:
    """One set of negatives for all targets of the step, the same on every device: [1] keys."""
    return keys.common[None]


@gin.configurable
def local(keys: Keys) -> jax.Array:
    """A set of negatives for each target: [targets] keys."""
    return jax.vmap(lambda target: jax.random.fold_in(keys.common, target))(keys.targets)


class Predictions(NamedTuple):
    """What the model gives for a device's share of the batch.

    Attributes:
        observed: the targets and their histories.
        hidden: [rows, length, hidden], the transformer's outputs at every position.
        inputs: [rows, length, hidden], the embeddings of what is there.
        outputs: [targets, hidden], the outputs that are scored.
        target_embeddings: [targets, hidden].
        n_items: of the catalog.
        embeddings: [encoded, hidden], of the step's distinct items; of the whole catalog, in order, where a loss asks
            for it.
        repeat_offset: what is added to the logits of items that the history holds; None where the model has no such
            number.
        drawn: [1 or targets, n] int32 catalog items; None where nothing was drawn from the catalog.
        drawn_rows: their rows of `embeddings`.
        domains: [n_items + 1] int32, the dataset of each item, where targets compete with those of their own alone;
            None where they compete with all.
        n_learnt: columns of the embeddings that are learnt, which come first; None for all.
    """

    observed: Observed
    hidden: jax.Array
    inputs: jax.Array
    outputs: jax.Array
    target_embeddings: jax.Array
    n_items: int
    embeddings: jax.Array
    repeat_offset: jax.Array | None = None
    drawn: jax.Array | None = None
    drawn_rows: jax.Array | None = None
    domains: jax.Array | None = None
    n_learnt: int | None = None


class Scored(NamedTuple):
    """Logits of the targets and of their negatives.

    Attributes:
        positive: [targets] float32, dot products.
        negative: [targets, n] float32.
        positive_log_q: [targets] float32.
        negative_log_q: [1 or targets, n] float32.
        hit: [1 or targets, n] bool, a negative that is not one: the target itself, or of another dataset.
    """

    positive: jax.Array
    negative: jax.Array
    positive_log_q: jax.Array
    negative_log_q: jax.Array
    hit: jax.Array


class Negatives(NamedTuple):
    """The negatives of a loss.

    Attributes:
        n: of each set.
        sets: `local` or `shared`.
        loss: the loss's name, for messages.
    """

    n: int
    sets: Callable[[Keys], jax.Array]
    loss: str

    def check(self, proposal: AnyProposal, n_items: int, rows: int) -> None:
        """Refuses what cannot be drawn.

        Args:
            proposal: to draw from.
            n_items: of the catalog.
            rows: of a device's share of the batch.

        Raises:
            InputError: naming the binding.
        """
        if not 1 <= self.n <= n_items:
            raise InputError(f"{self.loss}.n_negatives = {self.n} is not between 1 and the catalog's {n_items} items")
        if proposal.per_target and len(self.sets(Keys(jax.random.key(0), jnp.arange(2)))) == 1:
            raise InputError(
                f"{self.loss}.negatives = @shared, but pretrain.proposal has a distribution for each target; "
                f"bind {self.loss}.negatives = @local"
            )
        if isinstance(proposal, Similarity) and rows < 2:
            raise InputError(
                "pretrain.proposal = @similarity draws from the batch's other rows, but a device has one; "
                "raise pretrain.train_batch_size"
            )

    def draw(self, keys: Keys, observed: Observed, proposal: AnyProposal) -> jax.Array | None:
        """Items to encode beside the batch's own: [1 or targets, n] int32; None where the batch is enough."""
        if not isinstance(proposal, Proposal):
            return None
        return proposal.draw(self.sets(keys), observed, self.n)

    def score(self, keys: Keys, predictions: Predictions, proposal: AnyProposal) -> Scored:
        """Logits of the targets and of the negatives."""
        if isinstance(proposal, Similarity):
            return _score_batch(self.sets(keys), predictions, self.n)
        if isinstance(proposal, PositiveMixing):
            return _score_directions(self.sets(keys), predictions, self.n, proposal.mixing_factor)
        observed, outputs = predictions.observed, predictions.outputs
        assert predictions.drawn is not None
        assert predictions.drawn_rows is not None
        if len(predictions.drawn) == 1:
            logits = dot(outputs, predictions.embeddings[predictions.drawn_rows[0]].T)
        else:
            logits = score_rows(outputs, predictions.embeddings, predictions.drawn_rows)
        return Scored(
            positive_logits(predictions),
            logits,
            proposal.log_q(observed, observed.targets[:, None] if proposal.per_target else observed.targets[None])
            .reshape(-1),
            proposal.log_q(observed, predictions.drawn),
            is_none(predictions, predictions.drawn),
        )  # fmt: skip


def wide(array: jax.Array) -> jax.typing.DTypeLike:
    """The type to sum and exponentiate in: float32, or float64 where the array has it."""
    return jnp.promote_types(array.dtype, jnp.float32)


def dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """A matrix product whose result is float32 or wider, whatever the inputs' type."""
    return jnp.matmul(a, b, preferred_element_type=wide(a))


def positive_logits(predictions: Predictions) -> jax.Array:
    """Dot products of the outputs with their targets: [targets] float32."""
    kind = wide(predictions.outputs)
    return (predictions.outputs.astype(kind) * predictions.target_embeddings.astype(kind)).sum(-1)


def is_none(predictions: Predictions, drawn: jax.Array) -> jax.Array:
    """Which of the drawn items [1 or targets, n] are no negatives of the targets: [targets, n] bool."""
    targets, domains = predictions.observed.targets[:, None], predictions.domains
    same = drawn == targets
    return same if domains is None else same | (domains[drawn] != domains[targets])


def score_history(predictions: Predictions) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Each target's own history: logits [targets, length] float32; items and which of them count, as `items_read`."""
    observed = predictions.observed
    logits = jnp.einsum(
        "rqh,rkh->rqk", predictions.hidden, predictions.inputs, preferred_element_type=wide(predictions.hidden)
    ).reshape(-1, observed.inputs.shape[1])[observed.slots]
    items, counts = items_read(observed.inputs, observed.positions, observed.slots)
    return logits, items, counts


def score_rows(outputs: jax.Array, embeddings: jax.Array, rows: jax.Array) -> jax.Array:
    """Dot products of each output with its own set of embeddings, in blocks of targets.

    The gathered embeddings [targets, n, hidden] are never held whole, forward or backward.

    Args:
        outputs: [targets, hidden].
        embeddings: [items, hidden].
        rows: [targets, n] int32, rows of `embeddings`.

    Returns:
        [targets, n] float32.
    """

    @jax.checkpoint
    def block(output: jax.Array, row: jax.Array) -> jax.Array:
        return jnp.einsum("h,nh->n", output, embeddings[row], preferred_element_type=wide(output))

    return jax.lax.map(lambda pair: block(*pair), (outputs, rows), batch_size=min(TARGETS_PER_BLOCK, len(outputs)))


def _score_batch(keys: jax.Array, predictions: Predictions, n: int) -> Scored:
    """The negatives of `similarity`: a draw is a place in the running sum of the batch's weights."""
    targets, embeddings = predictions.observed.targets, predictions.target_embeddings
    in_order = jnp.sort(targets)
    times = jnp.searchsorted(in_order, targets, side="right") - jnp.searchsorted(in_order, targets)
    unit = jax.lax.stop_gradient(embeddings.astype(jnp.float32))
    unit = unit / jnp.maximum(jnp.linalg.norm(unit, axis=1, keepdims=True), 1e-12)

    @jax.checkpoint
    def of_target(output: jax.Array, ordinal: jax.Array, key: jax.Array):
        at_output = jax.lax.stop_gradient(output.astype(jnp.float32))
        cosine = unit @ at_output / jnp.maximum(jnp.linalg.norm(at_output), 1e-12)
        weight = jnp.where(targets > 0, (1 + cosine) / 2, 0)
        running = jnp.cumsum(weight)
        draw = jax.random.uniform(key, (n,)) * running[-1]
        drawn = jnp.minimum(jnp.searchsorted(running, draw, side="right"), len(targets) - 1)
        log_q = jnp.log(weight * times / running[-1] + LEAST_Q)
        logits = dot(embeddings, output)
        return logits[drawn], log_q[drawn], log_q[ordinal], targets[drawn]

    ordinals = jnp.arange(len(targets))
    logits, log_q, positive_log_q, items = jax.lax.map(
        lambda parts: of_target(*parts),
        (predictions.outputs, ordinals, keys),
        batch_size=min(TARGETS_PER_BLOCK, len(targets)),
    )
    return Scored(positive_logits(predictions), logits, positive_log_q, log_q, is_none(predictions, items))


def _score_directions(keys: jax.Array, predictions: Predictions, n: int, distance: float) -> Scored:
    """The negatives of `positive_mixing`."""
    outputs = predictions.outputs
    hidden, positive = outputs.shape[1], positive_logits(predictions)

    def directions(key: jax.Array) -> jax.Array:
        points = jax.random.normal(key, (n, hidden))
        return points / jnp.linalg.norm(points, axis=1, keepdims=True)

    @jax.checkpoint
    def of_target(output: jax.Array, key: jax.Array) -> jax.Array:
        return dot(directions(key), output.astype(jnp.float32))

    if len(keys) == 1:
        along = dot(outputs.astype(jnp.float32), directions(keys[0]).T)
    else:
        along = jax.lax.map(
            lambda pair: of_target(*pair),
            (outputs, keys),
            batch_size=min(TARGETS_PER_BLOCK, len(outputs)),
        )
    none = jnp.zeros((1, n))
    return Scored(positive, positive[:, None] + distance * along, jnp.zeros(len(outputs)), none, none > 0)
