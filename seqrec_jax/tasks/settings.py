"""What a training task refuses before anything is read."""

from seqrec_jax.errors import InputError
from seqrec_jax.evaluation.metrics import METRICS
from seqrec_jax.evaluation.ranking import Ranking
from seqrec_jax.losses.loss import Loss
from seqrec_jax.model.recommender import Architecture
from seqrec_jax.training.model_record import ModelRecord
from seqrec_jax.training.step import COMPUTE_DTYPES

AUTO = "auto"


def check_at_least_one(task: str, **settings: int) -> None:
    """Refuses settings of a task that are below 1.

    Raises:
        InputError: naming the binding.
    """
    for name, value in settings.items():
        if value < 1:
            raise InputError(f"{task}.{name} = {value} is below 1")


def check_share(task: str, users_share: float) -> None:
    """Refuses a share of the users that is none.

    Raises:
        InputError: naming the binding.
    """
    if not 0 < users_share <= 1:
        raise InputError(f"{task}.users_share = {users_share} is not in (0, 1]")


def check_metric(task: str, name: str, ranking: Ranking) -> None:
    """Refuses a valid_metric that the ranking does not give.

    Raises:
        InputError: it is not `<metric>_at_<k>` with a known metric and a cut-off of the ranking.
    """
    known = [f"{metric}_at_{k}" for k in ranking.ks for metric in METRICS]
    if name not in known:
        raise InputError(f"{task}.valid_metric = {name!r} is not one of {', '.join(known)}")


def check_settings(
    task: str,
    architecture: Architecture,
    ranking: Ranking,
    objective: Loss,
    *,
    valid_metric: str,
    compute_dtype: str,
    ema_decay: float | None,
    train_batch_size: int | str,
    **at_least_one: int,
) -> None:
    """Refuses what can be refused before anything is read.

    Raises:
        InputError: naming the binding.
    """
    if isinstance(train_batch_size, str):
        if train_batch_size != AUTO:
            raise InputError(f"{task}.train_batch_size = {train_batch_size!r} is neither a number nor 'auto'")
    else:
        at_least_one["train_batch_size"] = train_batch_size
    check_at_least_one(task, **at_least_one)
    if compute_dtype not in COMPUTE_DTYPES:
        raise InputError(f"{task}.compute_dtype = {compute_dtype!r} is not one of {', '.join(COMPUTE_DTYPES)}")
    if ema_decay is not None and not 0 < ema_decay < 1:
        raise InputError(f"{task}.ema_decay = {ema_decay} is not in (0, 1)")
    check_metric(task, valid_metric, ranking)
    if architecture.repeat_offset and not (objective.whole_catalog or objective.scores_history):
        raise InputError(
            f"Architecture.repeat_offset = True is learnt from the histories' items; bind {task}.loss = @full_softmax, "
            "or sampled_softmax.history_negatives = True"
        )
    if architecture.transitions and task == "pretrain":
        raise InputError(
            "Architecture.transitions = True is weighed on validation once training is over, which finetune does; bind "
            "finetune.changes = {'transitions': True} there"
        )


def check_columns(record: ModelRecord, architecture: Architecture, model_axis: int) -> None:
    """Refuses to divide tables whose columns do not divide.

    Raises:
        InputError: naming the binding.
    """
    widths = {"Architecture.hidden_size": architecture.hidden_size} if record.catalog_sha256 else {}
    if record.max_tokens:
        widths["Architecture.embedding_size"] = architecture.embedding_size or architecture.hidden_size
    for name, width in widths.items():
        if width % model_axis:
            raise InputError(f"{name} = {width} does not divide over pretrain.model_axis = {model_axis}")
