"""Task: fine-tune a checkpoint on another dataset, and report what that gained and what it forgot."""

from collections.abc import Sequence
from typing import Any

from seqrec_jax.data.corpus import Corpus
from seqrec_jax.finetuning.config import FinetuneConfig
from seqrec_jax.finetuning.finetune import finetune as finetune_model
from seqrec_jax.hosts import is_first_host
from seqrec_jax.model.storage import load
from seqrec_jax.runs.settings import RunSettings
from seqrec_jax.tasks.tables import on_test, print_tables, results_table, transfer_table


def finetune(
    checkpoint: str, corpus: Corpus, run_dir: str, config: FinetuneConfig = FinetuneConfig(),
    pretraining_dataset: str | Sequence[str] | None = None, settings: RunSettings = RunSettings(),
) -> dict[str, Any]:  # fmt: skip
    """Fine-tunes a checkpoint, keeps what is best on validation, and prints its test metrics, before and after.

    Called again on the folder of a run that was interrupted, it goes on from the latest checkpoint; on that of a
    finished run, it prints the results. Returns what results.json holds.

    Args:
        checkpoint: The RUN_DIR of a training run.
        corpus: Dataset to fine-tune on, made with the checkpoint's tokenizer, with its split.
        pretraining_dataset: Dataset folder of the checkpoint, or several, split as the corpus is, to see there what is
            forgotten; elastic weight consolidation and replay need it.

    Raises InputError for bad input, and Interrupted where the run was asked to stop; its checkpoint is written then.
    """
    pretraining = None if pretraining_dataset is None else Corpus(pretraining_dataset, split=corpus.split)
    fitted = finetune_model(load(checkpoint), corpus, config, run_dir, pretraining=pretraining, settings=settings)
    results, ks = fitted.results, config.train.ranking.ks
    if is_first_host():
        rows = {"popularity": results["baselines"]["popularity"], "zero-shot": results["zero_shot"]["test"]}
        rows["this model"] = results["test"]
        print_tables(results_table(rows, ks, title=on_test(corpus.summary()["ties"])), transfer_table(results, ks))
    return results
