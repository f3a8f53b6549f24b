"""Task: from raw files to recommendations in one command, on a synthetic shop or on the user's own files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from etl.recbole import convert
from etl.synthetic_shop import make_shop
from seqrec_jax.data.corpus import Corpus
from seqrec_jax.data.split import Split, leave_one_out
from seqrec_jax.data.store import Dataset
from seqrec_jax.model.spec import Architecture
from seqrec_jax.runs.settings import RunSettings
from seqrec_jax.tasks.pretrain import pretrain
from seqrec_jax.tasks.recommend import recommend
from seqrec_jax.training.config import TrainConfig

USERS_SHOWN = 3
ITEMS_SHOWN = 5


def quickstart(
    run_dir: str, source: str | None = None, split: Callable[[Dataset], Split] = leave_one_out,
    architecture: Architecture = Architecture(), config: TrainConfig = TrainConfig(),
    settings: RunSettings = RunSettings(),
) -> dict[str, Any]:  # fmt: skip
    """Makes raw atomic files unless `source` has them, converts, trains, evaluates, and recommends for three users.

    Args:
        run_dir: Folder of everything that is written: `raw`, `dataset`, and the run, whose results.json is returned.
        source: Folder with one `.inter` and one `.item` file; None makes a synthetic shop.
    """
    folder = Path(run_dir)
    if source is None:
        make_shop(folder / "raw")
    dataset = str(folder / "dataset")
    convert(source=source or str(folder / "raw"), output=dataset)
    corpus = Corpus(dataset, split=split)
    results = pretrain(corpus, run_dir, architecture, config, settings=settings)
    users = corpus.data.interactions_table["user_id"].slice(0, USERS_SHOWN).to_pylist()
    recommend(run_dir, dataset, users, k=ITEMS_SHOWN)
    return results
