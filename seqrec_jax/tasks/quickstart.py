"""Task: from raw files to recommendations in one command, on a synthetic shop or on the user's own files."""

from pathlib import Path
from typing import Any

import gin

from etl.recbole import convert
from etl.synthetic_shop import make_shop
from seqrec_jax.data.store import open_dataset
from seqrec_jax.tasks.pretrain import pretrain
from seqrec_jax.tasks.recommend import recommend

USERS_SHOWN = 3
ITEMS_SHOWN = 5


@gin.configurable
def quickstart(source: str | None = None, run_dir: str = gin.REQUIRED) -> dict[str, Any]:
    """Makes raw atomic files unless `source` has them, converts, trains, evaluates, and recommends for three users.

    Args:
        source: folder with one `.inter` and one `.item` file; None makes a synthetic shop.
        run_dir: holds everything that is written: `raw`, `dataset`, and the run.

    Returns:
        What the run's results.json holds.
    """
    run_path = Path(run_dir)
    if source is None:
        make_shop(run_path / "raw")
    dataset = str(run_path / "dataset")
    convert(source=source or str(run_path / "raw"), output=dataset)
    results = pretrain(dataset=dataset, run_dir=run_dir)
    users = open_dataset(dataset).interactions_table["user_id"].slice(0, USERS_SHOWN).to_pylist()
    recommend(checkpoint=run_dir, dataset=dataset, users=users, k=ITEMS_SHOWN)
    return results
