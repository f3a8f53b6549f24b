"""Task: rank a dataset's targets by a checkpoint, beside what it has to beat, with intervals."""

import json
from typing import Any

from seqrec_jax.data.corpus import Corpus
from seqrec_jax.evaluation.evaluate import dataset_to_rank
from seqrec_jax.evaluation.evaluate import evaluate as evaluate_model
from seqrec_jax.evaluation.ranking import Ranking
from seqrec_jax.files import write_text
from seqrec_jax.model.storage import load
from seqrec_jax.runs.folder import RESULTS, report_folder
from seqrec_jax.runs.settings import RunSettings
from seqrec_jax.studies.trained_sasrec import trained_sasrec
from seqrec_jax.tasks.tables import on_test, print_tables, results_table, slices_table


def evaluate(
    checkpoint: str, corpus: Corpus, run_dir: str | None = None, ranking: Ranking = Ranking(),
    sasrec: str | None = None, category: str | None = None, draws: int = 1000, seed: int = 2020,
    settings: RunSettings = RunSettings(),
) -> dict[str, Any]:  # fmt: skip
    """Evaluates a checkpoint and prints tables; bad input is an InputError, whose line says what to mend.

    Returns what results.json holds: metrics of validation and test, of the baselines, intervals, slices, coverage.

    `checkpoint` is the RUN_DIR of a training run; `run_dir` receives results.json, None writes nothing. `sasrec` is the
    folder of a SASRec to stand beside it, trained there where it is not yet. See evaluation.evaluate for the others.
    """
    folder = None if run_dir is None else report_folder(run_dir, RESULTS)
    model, data = load(checkpoint), dataset_to_rank(corpus, "evaluate", draws)
    model.check(data)
    beside = None if sasrec is None else trained_sasrec(sasrec, data.folder, corpus.split, settings.tracker)
    report = evaluate_model(model, corpus, ranking=ranking, sasrec=beside, category=category, draws=draws, seed=seed)
    results = report.to_json()
    if folder is not None:
        write_text(folder / RESULTS, json.dumps(results, indent=2) + "\n")
    rows = report.baselines | {"this model": report.test, "this model, on valid": report.valid}
    of_model = {"this model": report.intervals["test"], "this model, on valid": report.intervals["valid"]}
    k = report.ks[-1]
    print_tables(
        results_table(rows, report.ks, report.intervals["baselines"] | of_model, title=on_test(report.dataset["ties"])),
        slices_table(report.slices, k),
        f"The best {k} items after {report.catalog['histories']:,} histories of {report.catalog['users']:,} users are "
        f"{report.catalog[f'coverage_at_{k}']:.1%} of the catalog, Gini {report.catalog[f'gini_at_{k}']:.3f}.",
        width=120,
    )
    return results
