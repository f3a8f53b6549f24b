"""Tasks: a checkpoint to and from safetensors, under the names of the reference's PyTorch model."""

from collections.abc import Mapping
from pathlib import Path

from absl import logging

from seqrec_jax.data.store import open_dataset
from seqrec_jax.model import parameters
from seqrec_jax.model.exchange import export_safetensors, import_safetensors
from seqrec_jax.model.spec import Architecture
from seqrec_jax.model.storage import load


def export_weights(checkpoint: str, output: str) -> None:
    """Writes the best parameters of a training run's RUN_DIR as safetensors, which PyTorch's `load_state_dict` takes.

    InputError where there is no checkpoint, or the output, a file, cannot be written.
    """
    export_safetensors(load(checkpoint), output)


def import_weights(
    source: str, dataset: str, run_dir: str, max_tokens: Mapping[str, int] | None = None,
    architecture: Architecture = Architecture(),
) -> None:  # fmt: skip
    """Makes a checkpoint in run_dir of a file of safetensors under the reference's names, to evaluate or fine-tune.

    InputError where a file is missing or does not fit; nothing is written then. See import_safetensors for the others.
    """
    model = import_safetensors(source, open_dataset(dataset), architecture, max_tokens)
    model.save(Path(run_dir))
    logging.info("%s: %d parameters from %s", run_dir, parameters.count(model.params), source)
