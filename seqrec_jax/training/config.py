"""How a recommender is trained."""

import dataclasses
from collections.abc import Callable

import optax

from seqrec_jax.describe import check_types
from seqrec_jax.errors import InputError
from seqrec_jax.evaluation.metrics import METRICS
from seqrec_jax.evaluation.ranking import Ranking
from seqrec_jax.losses.loss import AnyProposal, Loss
from seqrec_jax.losses.proposals.by_count import popularity
from seqrec_jax.losses.sampled_softmax import sampled_softmax
from seqrec_jax.training.optimizers import adam
from seqrec_jax.training.schedules import Schedule, one_cycle

AUTO = "auto"


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How a recommender is trained; `describe.describe` makes it JSON, by which a run that goes on is compared.

    A setting that is a function takes other arguments by `functools.partial(function, argument=value)`. A setting out
    of range is an InputError.

    Attributes:
        seed: Seed of the order of batches, dropout and negatives.
        epochs: Epochs at most.
        train_batch_size: Targets of a step, about, over all devices; `auto` for the most that fit in memory.
        learning_rate: Peak of the schedule.
        loss: Loss of the targets: sampled_softmax, full_softmax, bce, gbce or bpr.
        proposal: Where negatives are drawn from, made of the interactions that train.
        schedule: Learning rates of all steps: f(total_steps, learning_rate=...).
        optimizer: Optimizer that follows a schedule: adam or adamw.
        max_grad_norm: Norm that the whole gradient is clipped to; None for no clipping.
        group_rates: Share of the learning rate by parameter, f(name, n_layers), such as layerwise; None for all of it.
        ema_decay: Decay of a running average of the parameters, which is then evaluated and kept; None for none.
        eval_every: Epochs between evaluations; the last epoch is always evaluated.
        stopping_step: Evaluations without a gain before the run stops; 0 for never.
        valid_metric: Metric to gain in, `<metric>_at_<k>`.
        loss_positions: `all`, packed rows and a target at every position; `last`, RecBole's padded prefix a target.
        compute_dtype: Type of matrix products and activations, `float32` or `bfloat16`; parameters, tables, norms,
            softmaxes and sums stay float32.
        rematerialize: Make activations again for the gradient instead of keeping them: less memory, more time.
        accumulation_steps: Parts that a step is made in, one after the other, for batches that do not fit in memory.
        skip_nonfinite: Steps whose loss or gradient may be infinite or not a number; they change nothing. At the next
            one the run stops.
    """

    seed: int = 2020
    epochs: int = 50
    train_batch_size: int | str = 128
    learning_rate: float = 1e-3
    loss: Callable[[], Loss] = sampled_softmax
    proposal: Callable[..., AnyProposal] = popularity
    schedule: Callable[..., Schedule] = one_cycle
    optimizer: Callable[[Schedule], optax.GradientTransformation] = adam
    max_grad_norm: float | None = None
    group_rates: Callable[[str, int], float] | None = None
    ema_decay: float | None = None
    eval_every: int = 1
    stopping_step: int = 10
    valid_metric: str = "ndcg_at_10"
    ranking: Ranking = Ranking(ks=(5, 10))
    loss_positions: str = "all"
    compute_dtype: str = "float32"
    rematerialize: bool = False
    accumulation_steps: int = 1
    skip_nonfinite: int = 0

    def __post_init__(self):
        check_types(self)
        size = self.train_batch_size
        if isinstance(size, str) and size != AUTO:
            raise InputError(f"TrainConfig.train_batch_size = {size!r} is neither a number nor 'auto'")
        least = {"epochs": 1, "eval_every": 1, "accumulation_steps": 1, "stopping_step": 0, "skip_nonfinite": 0}
        for name, value in (least if size == AUTO else least | {"train_batch_size": 1}).items():
            if getattr(self, name) < value:
                raise InputError(f"TrainConfig.{name} = {getattr(self, name)} is below {value}")
        for name in ("learning_rate", "max_grad_norm"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise InputError(f"TrainConfig.{name} = {getattr(self, name)} is not above 0")
        for name, known in {"loss_positions": ("all", "last"), "compute_dtype": ("float32", "bfloat16")}.items():
            if getattr(self, name) not in known:
                raise InputError(f"TrainConfig.{name} = {getattr(self, name)!r} is not one of {', '.join(known)}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise InputError(f"TrainConfig.ema_decay = {self.ema_decay} is not in (0, 1)")
        metrics = [f"{metric}_at_{k}" for k in self.ranking.ks for metric in METRICS]
        if self.valid_metric not in metrics:
            raise InputError(f"TrainConfig.valid_metric = {self.valid_metric!r} is not one of {', '.join(metrics)}")
