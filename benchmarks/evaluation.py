"""How fast, and in how much memory, test targets are ranked among a large catalog.

    python benchmarks/evaluation.py [--users 1000000] [--items 100000] [--hidden 64] [--mode full] [--json FILE]
        [--whole] [--longest 100000]

Users and items are made up and written by a process of its own; the model is untrained, which changes nothing of the
time. Every user has a test target, ranked among all items in blocks: the scores of a million users for 100,000 items
would be 400 GB. `--whole` runs all of `evaluate`: validation and test, every baseline, slices and intervals.
`--longest` adds a user of so many interactions; with it, the split is by ratio, so that a tenth of them are targets.
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
MEAN_LENGTH, WORDS, VOCABULARY = 9, 8, 30_000


def _interactions(n_users: int, n_items: int, longest: int):
    """Users of three items or more, nine on average, and one of `longest`; by popularity, as 1 / (rank + 100)."""
    popularity = 1 / (np.arange(n_items) + 100)
    bounds = np.cumsum(popularity) / popularity.sum()
    for first in range(0, n_users, USERS_PER_BLOCK):
        generator, n = np.random.default_rng(first), min(USERS_PER_BLOCK, n_users - first)
        lengths = 3 + generator.poisson(MEAN_LENGTH - 3, n)
        lengths[0] = longest if longest and not first else lengths[0]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        items = np.searchsorted(bounds, generator.random(offsets[-1])).clip(max=n_items - 1) + 1
        times = np.arange(offsets[-1])

        def lists(values, kind, offsets=offsets):
            return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(values, kind))

        yield pa.table({
            "user_id": pa.array([f"u{first + i}" for i in range(n)]),
            "items": lists(items, pa.int32()), "timestamps": lists(times, pa.int64()),
        })  # fmt: skip


def make(folder: str, n_users: int, n_items: int, longest: int) -> None:
    """Writes a dataset of items with eight random words each."""
    sys.path[:] = [path for path in sys.path if path != str(Path(__file__).parent)]  # whose etl.py hides the package
    from etl.dataset_writer import write_dataset

    words = np.random.default_rng(0).integers(1, VOCABULARY, (n_items + 1, WORDS)).astype(np.int32)
    items = pa.table({
        "item_id": ["", *(f"i{i}" for i in range(n_items))],
        "title_tokens": pa.array([[], *words[1:]], pa.list_(pa.int32())),
        "title": ["", *(" ".join(map(str, of)) for of in words[1:])],
    })  # fmt: skip
    write_dataset(
        Path(folder), _interactions(n_users, n_items, longest), [items], bytes(1 << 20), features={"title": WORDS},
        vocab_size=VOCABULARY, parameters={}, inputs=[], rejected={},
    )  # fmt: skip


def rank(folder: str, args: argparse.Namespace) -> dict[str, float]:
    """Ranks all test targets once, or evaluates."""
    from seqrec_jax.devices import device_mesh, replicate
    from seqrec_jax.evaluation.ranking import CorpusRanker

    corpus, mesh = sr.Corpus(folder, split=sr.by_ratio if args.longest else sr.leave_one_out), device_mesh()
    data = corpus.data
    architecture = sr.Architecture(
        item_encoder="id", n_layers=2, n_heads=2, hidden_size=args.hidden, inner_size=4 * args.hidden
    )
    model = sr.Recommender.create(corpus, architecture, seed=0)
    n_targets = len(corpus.division.test.users)
    started = time.perf_counter()
    if args.whole:
        report = sr.evaluate(model, corpus, ranking=sr.Ranking(mode=args.mode))
        print(*(f"{name}: {of['ndcg_at_10']:.4f}" for name, of in report.baselines.items()), sep="\n")
    else:
        ranker = CorpusRanker(model.graph, corpus, corpus.division.test, sr.Ranking(mode=args.mode), mesh)
        params, features = replicate(mesh, (dict(model.params), model.features(data)))
        started = time.perf_counter()
        ranker.ranks(params, features)
    seconds = time.perf_counter() - started
    rates = {"targets_per_second": n_targets / seconds, "scores_per_second": n_targets * data.n_items / seconds}
    return {
        "users": data.n_users,
        "targets": n_targets,
        "items": data.n_items,
        "interactions": data.n_interactions,
        "hidden": args.hidden,
        "seconds": seconds,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
    } | ({} if args.whole else rates)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--mode", default="full", help="of Ranking: full, sampled<N> or popular<N>")
    parser.add_argument("--whole", action="store_true", help="all of evaluate, with every baseline")
    parser.add_argument("--longest", type=int, default=0, help="interactions of one more user")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        dataset = str(Path(folder) / "dataset")
        maker = multiprocessing.get_context("spawn").Process(
            target=make, args=(dataset, args.users, args.items, args.longest)
        )
        maker.start()
        maker.join()
        figures = rank(dataset, args)
    rates = ""
    if not args.whole:
        rates = f"{figures['targets_per_second']:,.0f} targets/s, {figures['scores_per_second']:.2e} scores/s, "
    print(
        f"{figures['users']:,} users x {figures['items']:,} items, hidden size {args.hidden}, {args.mode}, "
        f"{figures['targets']:,} test targets: {figures['seconds']:.0f} s with the compilation, "
        f"{rates}peak memory {figures['peak_gb']:.2f} GB"
    )
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
