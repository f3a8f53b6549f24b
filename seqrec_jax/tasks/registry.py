"""What Gin files may name, and what became of the names of earlier versions.

Gin knows a name by a wrapper that fills in what is bound. A setting that is a function reaches the library without it:
as the function itself or, where something is bound to it, as a `functools.partial`, which a run can record.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import gin

from seqrec_jax.data.corpus import Corpus
from seqrec_jax.data.split import by_ratio, global_cut, leave_one_out
from seqrec_jax.errors import InputError
from seqrec_jax.evaluation.ranking import Ranking
from seqrec_jax.finetuning import methods, penalties
from seqrec_jax.finetuning.config import FinetuneConfig
from seqrec_jax.losses import full_softmax, negatives, pairwise, sampled_softmax
from seqrec_jax.losses.proposals import by_count, co_counts, in_batch, knn
from seqrec_jax.model.spec import Architecture
from seqrec_jax.runs.settings import Checkpoints, Reports, RunSettings, Tracking
from seqrec_jax.studies.scaling_law import LawSettings
from seqrec_jax.studies.scaling_study import ScalingStudy
from seqrec_jax.studies.sweep import Sweep
from seqrec_jax.studies.transfer_study import TransferStudy
from seqrec_jax.tasks.compare import compare
from seqrec_jax.tasks.evaluate import evaluate
from seqrec_jax.tasks.exchange import export_weights, import_weights
from seqrec_jax.tasks.finetune import finetune
from seqrec_jax.tasks.pretrain import pretrain
from seqrec_jax.tasks.quickstart import quickstart
from seqrec_jax.tasks.recommend import recommend
from seqrec_jax.tasks.scaling_law import scaling_law
from seqrec_jax.tasks.scaling_study import scaling_study
from seqrec_jax.tasks.sweep import sweep
from seqrec_jax.tasks.transfer_study import transfer_study
from seqrec_jax.training import optimizers, schedules
from seqrec_jax.training.config import TrainConfig

TASKS = (
    compare, evaluate, export_weights, finetune, import_weights, pretrain, quickstart, recommend, scaling_law,
    scaling_study, sweep, transfer_study,
)  # fmt: skip
SETTINGS = (
    Architecture, Checkpoints, Corpus, FinetuneConfig, LawSettings, Ranking, Reports, ScalingStudy, Sweep, TrainConfig,
    TransferStudy,
)  # fmt: skip
FUNCTIONS = (
    leave_one_out, by_ratio, global_cut, sampled_softmax.sampled_softmax, full_softmax.full_softmax, pairwise.bce,
    pairwise.gbce, pairwise.bpr, negatives.local, negatives.shared, by_count.uniform, by_count.popularity,
    by_count.log_popularity, co_counts.co_counts, in_batch.similarity, in_batch.positive_mixing, knn.knn,
    optimizers.adam, optimizers.adamw, optimizers.layerwise, schedules.one_cycle, schedules.warmup_cosine,
    schedules.constant, methods.full, methods.progressive, methods.only_embeddings, methods.low_rank,
    methods.head_first, methods.from_scratch, methods.untrained, penalties.l2_sp, penalties.ewc,
)  # fmt: skip

_OPTIMIZERS = ("adam", "adamw", "lion", "adafactor")
_MOVED = (  # new homes, the tasks or functions of version 0.1, and their parameters that the new home has now
    ("TrainConfig", "pretrain finetune", "seed train_batch_size loss proposal schedule optimizer ema_decay eval_every "
                                         "stopping_step valid_metric compute_dtype"),
    ("TrainConfig", "pretrain", "epochs loss_positions rematerialize accumulation_steps"),
    ("TrainConfig", "one_cycle warmup_cosine constant", "learning_rate"),
    ("TrainConfig", " ".join(_OPTIMIZERS), "max_grad_norm"),
    ("TrainConfig", "Guards", "skip_nonfinite"),
    ("FinetuneConfig", "finetune", "method changes penalty averages calibrates replay_share row_interactions "
                                   "cold_negatives least_steps"),
    ("Corpus", "pretrain finetune evaluate compare", "split"),
    ("Corpus", "pretrain finetune", "users_share"),
    ("Corpus", "pretrain", "negatives_from exclude_users_of"),
    ("RunSettings", "pretrain finetune sweep transfer_study scaling_study scaling_law", "overwrite max_hours"),
    ("RunSettings", "Guards", "max_hours memory_limit"),
    ("RunSettings", "pretrain", "model_axis"),
    ("Sweep", "sweep", "base dataset space bindings trials sampler pruner metric seed"),
    ("TransferStudy", "transfer_study", "checkpoint dataset methods pretraining_dataset scratch shares seeds bindings "
                                        "metric processes"),
    ("ScalingStudy", "scaling_study", "base datasets widths depths shares epochs bindings of_width inner_per_width "
                                      "budgets metric processes most_hours split draws seed"),
    ("LawSettings", "scaling_law", "metric experiment budgets unit flops_per_second price_per_hour epochs cuts "
                                   "frontier least_share draws seed"),
)  # fmt: skip
MOVED: dict[str, str | None] = {
    f"{old}.{parameter}": f"{home}.{parameter}"
    for home, olds, parameters in _MOVED for old in olds.split() for parameter in parameters.split()
}  # fmt: skip
"""New names of bindings of version 0.1, by their old ones; None for those that are gone."""
MOVED |= {f"{task}.dataset": "Corpus.datasets" for task in ("pretrain", "finetune", "evaluate", "compare")}
MOVED |= {f"{optimizer}.rates": "TrainConfig.group_rates" for optimizer in _OPTIMIZERS}
MOVED |= {"pretrain.dataset_shares": "Corpus.shares", "scaling_study.held": "ScalingStudy.holdout"}
MOVED |= dict.fromkeys((
    *(f"{optimizer}.decayed" for optimizer in _OPTIMIZERS), "pretrain.learning_rate_batch_size",
    "pretrain.learning_rate_scaling", "lion", "adafactor", "matrices", "every_parameter", "warmup_linear",
    "warmup_constant",
))  # fmt: skip

_PLAIN: dict[Callable, Callable] = {}  # what each of Gin's wrappers stands for


def _plain(value: Any) -> Any:
    """A bound value without Gin's wrappers: references become the functions themselves, with what is bound to them."""
    if isinstance(value, tuple | list):
        return type(value)(_plain(item) for item in value)
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if not callable(value) or value not in _PLAIN:
        return value
    bound = {name: _plain(item) for name, item in gin.get_bindings(value).items()}
    return functools.partial(_PLAIN[value], **bound) if bound else _PLAIN[value]


def _register(target: Callable, name: str | None = None) -> None:
    name = name or target.__name__

    @functools.wraps(target, updated=())
    def call(*args: Any, **bound: Any) -> Any:
        for parameter in inspect.signature(target).parameters.values():
            if parameter.default is parameter.empty and parameter.name not in bound and not args:
                raise InputError(f"{name}.{parameter.name} has no value; bind it")
        return target(*args, **{key: _plain(value) for key, value in bound.items()})

    del call.__module__  # so that the name in Gin is the bare one, and `@constant` not Gin's own
    _PLAIN[gin.external_configurable(call, name)] = target


@functools.wraps(RunSettings, updated=())
def _run_settings(**bound: Any) -> RunSettings:
    """Settings of a run, with the text of what is bound, for people."""
    return RunSettings(**{"config_text": gin.config_str(), **bound})


for _target in (*TASKS, *SETTINGS, *FUNCTIONS):
    _register(_target)
_register(_run_settings)
_register(Tracking, "Tracker")


@gin.configurable
def run(task: Callable[[], object] = gin.REQUIRED) -> None:
    """Calls the task bound to `run.task`."""
    task()
