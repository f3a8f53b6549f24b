"""Negatives of a step: how many sets, which items to encode for them, and their logits beside the target's."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from seqrec_jax.errors import InputError
from seqrec_jax.losses.loss import AnyProposal, BatchProposal, Keys, Loss, LossInputs, ModelOutputs, Proposal, Scored
from seqrec_jax.losses.scores import dot, not_negative, positive_logits, score_rows

Sets = Callable[[Keys], jax.Array]


def shared(keys: Keys) -> jax.Array:
    """One set of negatives for all targets of the step, the same on every device: [1] keys."""
    return keys.common[None]


def local(keys: Keys) -> jax.Array:
    """A set of negatives for each target: [targets] keys."""
    return jax.vmap(lambda target: jax.random.fold_in(keys.common, target))(keys.targets)


class Negatives(NamedTuple):
    """The negatives of a loss: n in each set, `local` or `shared` sets, and the loss's name, for messages."""

    n: int
    sets: Sets
    loss: str

    def check(self, proposal: AnyProposal, n_items: int, rows: int) -> None:
        """Refuses, by an InputError, what cannot be drawn of n_items with so many rows of the batch on a device."""
        if not 1 <= self.n <= n_items:
            raise InputError(f"{self.loss}.n_negatives = {self.n} is not between 1 and the catalog's {n_items} items")
        if proposal.per_target and len(self.sets(Keys(jax.random.key(0), jnp.arange(2)))) == 1:
            raise InputError(
                f"{self.loss}.negatives = shared, but TrainConfig.proposal has a distribution for each target; "
                f"set {self.loss}.negatives = local"
            )
        if isinstance(proposal, BatchProposal) and rows < proposal.least_rows:
            raise InputError(
                f"TrainConfig.proposal draws from {proposal.least_rows} rows of the batch or more, but a device has "
                f"{rows}; raise TrainConfig.train_batch_size"
            )

    def draw(self, keys: Keys, inputs: LossInputs, proposal: AnyProposal) -> jax.Array | None:
        """Items to encode beside the batch's own: [1 or targets, n] int32; None where the batch is enough."""
        return proposal.draw(self.sets(keys), inputs, self.n) if isinstance(proposal, Proposal) else None

    def score(self, keys: Keys, model: ModelOutputs, proposal: AnyProposal) -> Scored:
        """Logits of the targets and of the negatives."""
        if not isinstance(proposal, Proposal):
            return proposal.score(self.sets(keys), model, self.n)
        inputs, drawn, rows = model.inputs, model.drawn, model.drawn_rows
        assert drawn is not None
        assert rows is not None
        if len(drawn) == 1:
            logits = dot(model.outputs, model.embeddings[rows[0]].T)
        else:
            logits = score_rows(model.outputs, model.embeddings, rows)
        targets = inputs.targets[:, None] if proposal.per_target else inputs.targets[None]
        positive_log_q, negative_log_q = proposal.log_q(inputs, targets).reshape(-1), proposal.log_q(inputs, drawn)
        return Scored(positive_logits(model), logits, positive_log_q, negative_log_q, not_negative(model, drawn))

    def make_loss(self, losses: Callable[[Scored, ModelOutputs], jax.Array], scores_history: bool = False) -> Loss:
        """A loss of these negatives: losses(scored, model) -> [targets] float32."""
        return Loss(
            self.check, self.draw, lambda keys, model, proposal: losses(self.score(keys, model, proposal), model),
            scores_history=scores_history,
        )  # fmt: skip
