"""Training with a catalog of millions of items: step time, the time to refresh `knn`, and the process's peak memory.

    python benchmarks/large_catalog.py [--items 3000000] [--proposal popularity knn] [--json FILE]

Users, titles and popularity are made up (Zipf's law); each proposal runs in a process of its own.
"""

import argparse
import json
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

import seqrec_jax as sr
from seqrec_jax.host_memory import keep_freed_memory

VOCABULARY, TITLE, LENGTH, USERS = 30_000, 24, 50, 20_000
ITEMS_PER_BLOCK = 1 << 17


def _titles(n_items: int):
    """The catalog in blocks, padding first."""
    rng = np.random.default_rng(0)
    for first in range(0, n_items + 1, ITEMS_PER_BLOCK):
        n = min(ITEMS_PER_BLOCK, n_items + 1 - first)
        tokens = (rng.zipf(1.2, n * TITLE) % (VOCABULARY - 1) + 1).astype(np.int32)
        if not first:
            tokens[:TITLE] = 0
        offsets = pa.array(np.arange(n + 1, dtype=np.int32) * TITLE)
        yield pa.table({
            "item_id": pa.array([str(first + i) if first + i else "" for i in range(n)]),
            "title_tokens": pa.ListArray.from_arrays(offsets, pa.array(tokens)),
            "title": pa.array([""] * n),
        })  # fmt: skip


def make(folder: str, n_items: int) -> None:
    """Writes a dataset of made-up titles and users."""
    sys.path[:] = [path for path in sys.path if path != str(Path(__file__).parent)]  # whose etl.py hides the package
    from etl.dataset_writer import write_dataset

    rng = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(7, 42, USERS))])
    items = (rng.zipf(1.1, offsets[-1]) % n_items + 1).astype(np.int32)

    def lists(values, kind):
        return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(values, kind))

    users = pa.table({
        "user_id": [f"u{i}" for i in range(USERS)], "items": lists(items, pa.int32()),
        "timestamps": lists(np.arange(offsets[-1]), pa.int64()),
    })  # fmt: skip
    write_dataset(
        Path(folder), [users], _titles(n_items), b"", features={"title": TITLE}, vocab_size=VOCABULARY, parameters={},
        inputs=[], rejected={},
    )  # fmt: skip


def measure(dataset: str, proposal: str, args: argparse.Namespace, results: multiprocessing.Queue) -> None:
    """Trains for a few steps in this process and reports what it took."""
    import jax

    from seqrec_jax.data.batches import prefetch
    from seqrec_jax.devices import device_mesh, split_rows
    from seqrec_jax.training.compile import StepCompiler, make_catalog
    from seqrec_jax.training.refresh import make_refresh

    keep_freed_memory()
    corpus, mesh = sr.Corpus(sr.open_dataset(dataset)), device_mesh()
    architecture = sr.Architecture(
        n_layers=args.layers, n_heads=4, hidden_size=args.hidden, inner_size=args.hidden, max_length=LENGTH
    )
    knn = partial(sr.knn, pool_size=args.pool_size, candidates=args.candidates)
    config = sr.TrainConfig(
        seed=0, schedule=sr.constant, proposal=knn if proposal == "knn" else sr.popularity,
        loss=partial(sr.sampled_softmax, n_negatives=args.negatives, negatives=sr.local),
    )  # fmt: skip
    model = sr.Recommender.create(corpus, architecture, seed=0)
    started = time.perf_counter()
    catalog = make_catalog(model, corpus, config, mesh)
    table_seconds = time.perf_counter() - started
    compiler = StepCompiler(config, corpus, model.spec, catalog, mesh, model.params)
    compiled = compiler.compile(args.batch)
    batches, state = compiled.batches, compiler.init(compiled.optimizer)
    refresh, refresh_seconds = make_refresh(compiler), []
    times = []
    for epoch in range(2):
        if refresh is not None:
            started = time.perf_counter()
            catalog = refresh(state.params, catalog, epoch)
            refresh_seconds.append(time.perf_counter() - started)
        steps = range(epoch * args.steps, (epoch + 1) * args.steps)
        for batch in prefetch(lambda index: split_rows(mesh, batches.batch(index)), steps):
            started = time.perf_counter()
            state, metrics = compiled.step(state, catalog, batch)
            jax.block_until_ready(metrics)
            times.append(time.perf_counter() - started)
    seconds = statistics.median(times)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
    results.put({
        "proposal": proposal, "step_seconds": seconds,
        "targets_per_second": batches.n_targets / batches.steps_per_epoch / seconds, "table_seconds": table_seconds,
        "refresh_seconds": refresh_seconds, "peak_gb": peak, "loss": float(metrics.loss),
    })  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--items", type=int, default=3_000_000)
    parser.add_argument("--proposal", nargs="+", default=["popularity", "knn"], choices=["popularity", "knn"])
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--batch", type=int, default=800, help="targets a step")
    parser.add_argument("--negatives", type=int, default=300, help="for each target")
    parser.add_argument("--pool-size", type=int, default=100)
    parser.add_argument("--candidates", type=int, default=4096, help="items among which neighbours are searched")
    parser.add_argument("--steps", type=int, default=2, help="of each of two epochs")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    print(f"{args.items:,} items, {args.layers} x {args.hidden}, {args.negatives} local negatives")
    print(f"{'':>12} {'step s':>8} {'targets/s':>10} {'table s':>8} {'refresh s':>14} {'peak GB':>8}")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        dataset = f"{folder}/dataset"
        maker = context.Process(target=make, args=(dataset, args.items))
        maker.start()
        maker.join()
        for proposal in args.proposal:
            results = context.Queue()
            process = context.Process(target=measure, args=(dataset, proposal, args, results))
            process.start()
            process.join()
            if process.exitcode:
                sys.exit(f"{proposal} ended with status {process.exitcode}")
            row = results.get()
            rows.append(row)
            refreshes = ", ".join(f"{seconds:.0f}" for seconds in row["refresh_seconds"]) or "-"
            print(
                f"{proposal:>12} {row['step_seconds']:>8.2f} {row['targets_per_second']:>10,.0f} "
                f"{row['table_seconds']:>8.1f} {refreshes:>14} {row['peak_gb']:>8.2f}",
                flush=True,
            )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
