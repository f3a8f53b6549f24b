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
import time
from pathlib import Path

import jax
import numpy as np

from seqrec_jax.data import packing
from seqrec_jax.data.batches import PackedBatches, prefetch
from seqrec_jax.data.split import Split, Targets, TrainingLog
from seqrec_jax.devices import device_mesh, replicate, split_rows
from seqrec_jax.host_memory import keep_freed_memory
from seqrec_jax.losses.negatives import AnyProposal, local
from seqrec_jax.losses.proposals.by_count import popularity
from seqrec_jax.losses.proposals.knn import knn
from seqrec_jax.losses.sampled_softmax import sampled_softmax
from seqrec_jax.model.recommender import Architecture, build
from seqrec_jax.training.optimizer import adam
from seqrec_jax.training.refresh import make_refresh
from seqrec_jax.training.schedules import constant
from seqrec_jax.training.step import Catalog, TrainState, make_train_step

VOCABULARY, TITLE, LENGTH, USERS = 30_000, 24, 50, 20_000


def made_up(n_items: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens [n_items + 1, TITLE], users' items one after the other, and their offsets."""
    rng = np.random.default_rng(0)
    tokens = rng.zipf(1.2, (n_items + 1, TITLE)) % (VOCABULARY - 1) + 1
    lengths = rng.integers(5, 40, USERS)
    items = (rng.zipf(1.1, lengths.sum()) % n_items + 1).astype(np.int32)
    return tokens.astype(np.uint16), items, np.concatenate([[0], np.cumsum(lengths)])


def measure(proposal: str, args: argparse.Namespace, results: multiprocessing.Queue) -> None:
    """Trains for a few steps in this process and reports what it took."""
    keep_freed_memory()
    tokens, items, offsets = made_up(args.items)
    lengths, none = np.diff(offsets), Targets(np.zeros(0, np.int64), np.zeros(0, np.int64))
    windows = packing.all_positions(offsets, Split(lengths, none, none), LENGTH)
    mesh, rows = device_mesh(), args.batch // LENGTH
    layout = packing.pack(windows.lengths, args.batch // rows)
    batches = PackedBatches(items.__getitem__, windows, layout, rows=rows, shards=mesh.size, seed=0)
    log = TrainingLog(np.bincount(items, minlength=args.items + 1), lambda: iter(()))
    started = time.perf_counter()
    negatives: AnyProposal = popularity(log)
    if proposal == "knn":
        negatives = knn(log, pool_size=args.pool_size, candidates=args.candidates)
    table_seconds = time.perf_counter() - started
    catalog = replicate(mesh, Catalog({"title": tokens}, negatives))
    architecture = Architecture(
        n_layers=args.layers, n_heads=4, hidden_size=args.hidden, inner_size=args.hidden, max_length=LENGTH
    )
    graph, params = build(architecture, {"title": VOCABULARY}, seed=0)
    optimizer = adam(constant(1 << 20))
    state = replicate(mesh, TrainState(params, optimizer.init(params), np.int32(0)))
    step = make_train_step(graph, sampled_softmax(args.negatives, local), optimizer, mesh, seed=0)
    refresh, refresh_seconds = make_refresh(graph, catalog, mesh, seed=0), []
    times = []
    for epoch in range(2):
        if refresh is not None:
            started = time.perf_counter()
            catalog = refresh(state.params, catalog, epoch)
            refresh_seconds.append(time.perf_counter() - started)
        steps = range(epoch * args.steps, (epoch + 1) * args.steps)
        for batch in prefetch(lambda index: split_rows(mesh, batches.batch(index)), steps):
            started = time.perf_counter()
            state, measures = step(state, catalog, batch)
            jax.block_until_ready(measures)
            times.append(time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
    seconds = statistics.median(times[1:])  # the first compiles
    per_step = batches.n_targets / batches.steps_per_epoch
    results.put(
        {
            "proposal": proposal,
            "step_seconds": seconds,
            "targets_per_second": per_step / seconds,
            "table_seconds": table_seconds,
            "refresh_seconds": refresh_seconds,
            "peak_gb": peak,
            "loss": float(measures.loss),
        }
    )


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
    for proposal in args.proposal:
        results = context.Queue()
        process = context.Process(target=measure, args=(proposal, args, results))
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
