"""A checkpoint laid over a dataset: what evaluate and recommend start from."""

from pathlib import Path
from typing import NamedTuple

import gin
import numpy as np
from absl import logging

from seqrec_jax.data.split import Targets
from seqrec_jax.data.store import Dataset, open_dataset
from seqrec_jax.data.transitions import Transitions
from seqrec_jax.devices import device_mesh, replicate
from seqrec_jax.errors import InputError
from seqrec_jax.evaluation.ranking import Ranking, TargetRanker
from seqrec_jax.tasks.training_data import features_of_record
from seqrec_jax.training.checkpoint import Restored, restore
from seqrec_jax.training.model_record import ModelRecord
from seqrec_jax.training.run_dir import CONFIG, TRANSITIONS, split_bound


class Opened(NamedTuple):
    """A checkpoint and a dataset.

    Attributes:
        restored: the checkpoint.
        data: the dataset.
        features: what the model reads of it: per text feature [n_items + 1, tokens] of token ids, `item_id`
            [n_items + 1] where it has rows, and its lexical vectors.
        transitions: what the checkpoint's training log says of the same catalog; None where it says nothing.
    """

    restored: Restored
    data: Dataset
    features: dict[str, np.ndarray]
    transitions: Transitions | None


def open_checkpoint(checkpoint: str, dataset: str) -> Opened:
    """Opens both and gives the catalog's features as the checkpoint's model reads them.

    Args:
        checkpoint: the RUN_DIR of a training run.
        dataset: dataset folder.

    Raises:
        InputError: either is missing or damaged, or the dataset's tokens are not the model's.
    """
    data = open_dataset(dataset, verify=True)
    restored = restore(checkpoint)
    check_tokenizer(data, restored.record, checkpoint)
    record = restored.record
    if record.catalog_sha256 is not None and record.catalog_sha256 != data.catalog_sha256():
        raise InputError(
            f"{data.folder}: has another catalog than the checkpoint's, which has a row for each item of its own "
            f"(Architecture.item_encoder = {record.architecture.item_encoder!r}); bind the DATASET it was trained on"
        )
    return Opened(restored, data, features_of_record(data, record), _transitions(checkpoint, record, data))


def target_ranker(opened: Opened, targets: Targets, ranking: Ranking, counts: np.ndarray) -> TargetRanker:
    """A ranker of some of the dataset's targets by the checkpoint's model; see TargetRanker."""
    restored, max_length = opened.restored, opened.restored.record.architecture.max_length
    return TargetRanker(
        restored.graph, opened.data, targets, ranking, max_length, device_mesh(), opened.transitions, counts
    )


def target_ranks(opened: Opened, targets: Targets, ranking: Ranking, counts: np.ndarray) -> np.ndarray:
    """Ranks of some of the dataset's targets by the checkpoint: [n] int64, 0 for the top."""
    mesh = device_mesh()
    ranker = target_ranker(opened, targets, ranking, counts)
    return ranker.ranks(replicate(mesh, opened.restored.params), replicate(mesh, opened.features))


def _transitions(checkpoint: str, record: ModelRecord, data: Dataset) -> Transitions | None:
    if not record.architecture.transitions:
        return None
    transitions = Transitions.read(Path(checkpoint) / TRANSITIONS)
    if transitions.catalog_sha256 == data.catalog_sha256():
        return transitions
    logging.warning("%s: has another catalog than the checkpoint's, so its transitions are left out", data.folder)
    return None


def warn_of_another_split(checkpoint: str) -> None:
    """Says so where a checkpoint was trained with another split than the one that is bound, and has been made, now."""
    config = Path(checkpoint) / CONFIG
    if not config.exists():
        return
    trained, now = split_bound(config.read_text()), split_bound(gin.operative_config_str())
    if trained != now:
        told = (", ".join(f"{name} = {value}" for name, value in of.items()) for of in (trained, now))
        logging.warning(
            "%s was trained with %s, and is now evaluated with %s: it may know the targets", checkpoint, *told
        )


def check_tokenizer(data: Dataset, record: ModelRecord, checkpoint: str) -> None:
    """Refuses a dataset whose tokens mean something else to the model.

    Raises:
        InputError: with the command that makes it again.
    """
    if record.max_tokens and record.tokenizer_sha256 != data.tokenizer_sha256:
        raise InputError(
            f"{data.folder}: was made with another tokenizer than the checkpoint's; make it again with "
            "python -m etl.main --gin_file=gin/etl_recbole.gin "
            f"--gin_bindings=\"TOKENIZER='{checkpoint}/tokenizer.model'\" and your SOURCE, OUTPUT"
        )
