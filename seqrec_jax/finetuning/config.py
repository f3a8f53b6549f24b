"""How a trained recommender is fine-tuned on another dataset."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from seqrec_jax.describe import check_types
from seqrec_jax.errors import InputError
from seqrec_jax.finetuning.methods import Method, full
from seqrec_jax.finetuning.penalties import Penalty
from seqrec_jax.losses.full_softmax import full_softmax
from seqrec_jax.training.config import TrainConfig
from seqrec_jax.training.optimizers import adamw
from seqrec_jax.training.schedules import warmup_cosine

TRAIN = TrainConfig(
    train_batch_size=3200, learning_rate=2e-3, loss=full_softmax, schedule=warmup_cosine,
    optimizer=functools.partial(adamw, b2=0.98), eval_every=3, stopping_step=3,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """How a recommender is fine-tuned; a run that goes on is compared by it. An InputError where one is out of range.

    `method` is full, progressive, only_embeddings, low_rank, head_first, from_scratch or untrained, or a
    functools.partial of one. A row of an item that is learnt from fewer than `row_interactions` says who its few users
    were, and not what the item is. With `cold_negatives`, items that nobody has rank last whatever their words.
    """

    train: TrainConfig = TRAIN  # how each phase trains; its epochs are not read, as each phase has its own
    method: Method = full  # what is trained, phase after phase
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of Architecture; see Recommender.adapt
    penalty: Callable[[], Penalty] | None = None  # holds parameters near the pre-trained: l2_sp or ewc; None for none
    averages: Sequence[float] = ()  # shares in (0, 1) of the tuned parameters in averages that are tried on validation
    calibrates: bool = True  # whether the weights of score terms are chosen on validation in the end
    replay_share: float = 0.0  # mean share of a batch's targets that are of pre-training, against forgetting
    row_interactions: int = 5  # fewest interactions in training of an item that has a row of its own beside its text
    cold_negatives: bool = False  # whether targets also compete with items that nobody has in training
    least_steps: int = 8  # fewest steps of an epoch, of smaller batches where need be, down to one row a device

    def __post_init__(self):
        check_types(self)
        if not 0 <= self.replay_share < 1:
            raise InputError(f"FinetuneConfig.replay_share = {self.replay_share} is not in [0, 1)")
        if any(not 0 < share < 1 for share in self.averages):
            raise InputError(f"FinetuneConfig.averages = {tuple(self.averages)} must hold shares in (0, 1)")
        if self.least_steps < 1:
            raise InputError(f"FinetuneConfig.least_steps = {self.least_steps} is below 1")
        if isinstance(self.train.train_batch_size, str):
            raise InputError(
                f"TrainConfig.train_batch_size = {self.train.train_batch_size!r} is for training from the start; "
                "fine-tuning takes a number"
            )
