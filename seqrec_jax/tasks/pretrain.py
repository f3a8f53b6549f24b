"""Task: train a recommender."""

from collections.abc import Mapping
from typing import Any

from seqrec_jax.data.corpus import Corpus
from seqrec_jax.hosts import is_first_host
from seqrec_jax.model.recommender import Recommender
from seqrec_jax.model.spec import Architecture
from seqrec_jax.runs.settings import RunSettings
from seqrec_jax.tasks.tables import on_test, print_tables, results_table
from seqrec_jax.training.config import TrainConfig
from seqrec_jax.training.fit import fit


def pretrain(
    corpus: Corpus, run_dir: str, architecture: Architecture = Architecture(), config: TrainConfig = TrainConfig(),
    max_tokens: Mapping[str, int] | None = None, settings: RunSettings = RunSettings(),
) -> dict[str, Any]:  # fmt: skip
    """Trains a recommender, keeps the checkpoint that is best on validation, and prints its test metrics.

    Called again on the folder of a run that was interrupted, it goes on from the latest checkpoint; on that of a
    finished run, it prints the results. Returns what results.json holds. `max_tokens` are the text features to read and
    the most tokens of each; None reads all that the datasets hold.

    Raises InputError for bad input, and Interrupted where the run was asked to stop; its checkpoint is written then.
    """
    model = Recommender.create(corpus, architecture, seed=config.seed, max_tokens=max_tokens)
    results = fit(model, corpus, config, run_dir, settings=settings).results
    if is_first_host():
        rows = {"popularity": results["baselines"]["popularity"], "this model": results["test"]}
        print_tables(results_table(rows, config.ranking.ks, title=on_test(corpus.summary()["ties"])))
    return results
