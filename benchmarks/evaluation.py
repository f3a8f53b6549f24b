"""How fast, and in how much memory, test targets are ranked among a large catalog.

    python benchmarks/evaluation.py [--users 1000000] [--items 100000] [--hidden 64] [--mode full] [--json FILE]

Users and items are made up and written by a process of its own; the model is untrained, which changes nothing of the
time. Every user has a test target, ranked among all items in blocks: the scores of a million users for 100,000 items
would be 400 GB.
"""

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

import seqrec_jax as sr

USERS_PER_BLOCK = 1 << 17
MEAN_LENGTH = 9


def _interactions(n_users: int, n_items: int):
    """Users of three items or more, nine on average; items by popularity, as 1 / (rank + 100)."""
    popularity = 1 / (np.arange(n_items) + 100)
    bounds = np.cumsum(popularity) / popularity.sum()
    for first in range(0, n_users, USERS_PER_BLOCK):
        generator, n = np.random.default_rng(first), min(USERS_PER_BLOCK, n_users - first)
        offsets = np.concatenate([[0], np.cumsum(3 + generator.poisson(MEAN_LENGTH - 3, n))])
        items = np.searchsorted(bounds, generator.random(offsets[-1])).clip(max=n_items - 1) + 1
        times = np.arange(offsets[-1])

        def lists(values, kind, offsets=offsets):
            return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(values, kind))

        yield pa.table({
            "user_id": pa.array([f"u{first + i}" for i in range(n)]),
            "items": lists(items, pa.int32()), "timestamps": lists(times, pa.int64()),
        })  # fmt: skip


def make(folder: str, n_users: int, n_items: int) -> None:
    """Writes a dataset of items without text."""
    sys.path[:] = [path for path in sys.path if path != str(Path(__file__).parent)]  # whose etl.py hides the package
    from etl.dataset_writer import write_dataset

    items = pa.table({"item_id": ["", *(f"i{i}" for i in range(n_items))]})
    write_dataset(
        Path(folder), _interactions(n_users, n_items), [items], b"", features={}, vocab_size=0, parameters={},
        inputs=[], rejected={},
    )  # fmt: skip


def rank(folder: str, args: argparse.Namespace) -> dict[str, float]:
    """Ranks all test targets once."""
    from seqrec_jax.devices import device_mesh, replicate
    from seqrec_jax.evaluation.ranking import CorpusRanker

    corpus, mesh = sr.Corpus(folder), device_mesh()
    data = corpus.data
    architecture = sr.Architecture(
        item_encoder="id", n_layers=2, n_heads=2, hidden_size=args.hidden, inner_size=4 * args.hidden
    )
    model = sr.Recommender.create(corpus, architecture, seed=0)
    ranker = CorpusRanker(model.graph, corpus, corpus.division.test, sr.Ranking(mode=args.mode), mesh)
    params, features = replicate(mesh, (dict(model.params), model.features(data)))
    started = time.perf_counter()
    ranks = ranker.ranks(params, features)
    seconds = time.perf_counter() - started
    return {
        "users": len(ranks),
        "items": data.n_items,
        "interactions": data.n_interactions,
        "hidden": args.hidden,
        "seconds": seconds,
        "users_per_second": len(ranks) / seconds,
        "scores_per_second": len(ranks) * data.n_items / seconds,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--mode", default="full", help="of Ranking: full, sampled<N> or popular<N>")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        dataset = str(Path(folder) / "dataset")
        maker = multiprocessing.get_context("spawn").Process(target=make, args=(dataset, args.users, args.items))
        maker.start()
        maker.join()
        figures = rank(dataset, args)
    print(
        f"{figures['users']:,} users x {figures['items']:,} items, hidden size {args.hidden}, {args.mode}: "
        f"{figures['seconds']:.0f} s with the compilation, {figures['users_per_second']:,.0f} users/s, "
        f"{figures['scores_per_second']:.2e} scores/s, peak memory {figures['peak_gb']:.2f} GB"
    )
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
