"""Targets per second of the single pass over packed rows against one padded prefix a target, in one process.

    python benchmarks/train_step.py --dataset DIR [--batch 128 1024 3200] [--json FILE]

Both schemes train the same model on the same dataset with the same loss and as many targets a step. They take turns,
and the medians are over the turns.
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import jax
import numpy as np

from seqrec_jax.data.batches import prefetch
from seqrec_jax.data.split import leave_one_out, train_counts
from seqrec_jax.data.store import open_dataset
from seqrec_jax.host_memory import keep_freed_memory
from seqrec_jax.losses.negatives import local, popularity, shared
from seqrec_jax.losses.sampled_softmax import sampled_softmax
from seqrec_jax.model.recommender import Architecture, build
from seqrec_jax.tasks.training_data import item_tokens, training_batches
from seqrec_jax.training.devices import data_mesh, replicate, split_rows
from seqrec_jax.training.optimizer import adam, constant
from seqrec_jax.training.step import Catalog, TrainState, make_train_step

NEGATIVES = {"local": local, "shared": shared}


class Scheme:
    """A compiled training step on batches of one scheme, with its own state."""

    def __init__(
        self, dataset, positions: str, batch: int, architecture: Architecture, negatives: str, n_negatives: int
    ):
        self.mesh = data_mesh()
        split = leave_one_out(dataset)
        self.batches = training_batches(
            dataset,
            split,
            train_batch_size=batch,
            loss_positions=positions,
            max_length=architecture.max_length,
            shards=self.mesh.size,
            seed=0,
        )
        tokens = item_tokens(dataset)
        self.catalog = replicate(self.mesh, Catalog(tokens, popularity(train_counts(dataset, split))))
        graph, params = build(architecture, dict.fromkeys(tokens, dataset.vocab_size), seed=0)
        optimizer = adam(constant(1 << 20))
        self.state = replicate(self.mesh, TrainState(params, optimizer.init(params), np.int32(0)))

        def loss(*args):
            return sampled_softmax(*args, negatives=NEGATIVES[negatives], n_negatives=n_negatives)

        step = make_train_step(graph, loss, optimizer, self.mesh, seed=0)
        started = time.perf_counter()
        self.step = step.lower(self.state, self.catalog, self._batch(0)).compile()
        self.compile_seconds = time.perf_counter() - started
        self.next = 0
        self.run(0.5)

    def _batch(self, index: int):
        return split_rows(self.mesh, self.batches.batch(index))

    def run(self, seconds: float) -> float:
        """Trains for about that long, the next batches made in the background; returns targets a second."""
        n_steps, targets, started = 0, 0.0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            for batch in prefetch(self._batch, range(self.next, self.next + 4)):
                targets += float(np.asarray(batch.weights).sum())
                self.state, loss = self.step(self.state, self.catalog, batch)
                n_steps += 1
            jax.block_until_ready(loss)
            self.next += 4
        return targets / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dataset", required=True, help="dataset folder")
    parser.add_argument("--batch", type=int, nargs="+", default=[128, 1024, 3200], help="targets a step")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--negatives", type=int, default=100)
    parser.add_argument("--dropout", type=float, default=0.5)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4, help="of a turn")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    keep_freed_memory()
    dataset = open_dataset(args.dataset)
    architecture = Architecture(
        n_layers=args.layers,
        n_heads=args.heads,
        hidden_size=args.hidden,
        inner_size=args.hidden,
        hidden_dropout=args.dropout,
        attention_dropout=args.dropout,
    )
    print(
        f"{dataset.name}, {args.layers} x {args.hidden}, {args.negatives} negatives, jax {jax.__version__}, "
        f"{jax.device_count()} x {jax.devices()[0].device_kind}, {platform.processor() or platform.machine()}"
    )
    print(f"{'batch':>6} {'negatives':>9} {'all/s':>9} {'last/s':>9} {'ratio':>7}   (medians of {args.turns} turns)")
    rows = []
    for batch in args.batch:
        for negatives in NEGATIVES:
            schemes = {
                positions: Scheme(dataset, positions, batch, architecture, negatives, args.negatives)
                for positions in ("all", "last")
            }
            speeds: dict[str, list[float]] = {positions: [] for positions in schemes}
            for _ in range(args.turns):
                for positions, scheme in schemes.items():
                    speeds[positions].append(scheme.run(args.seconds))
            of_all, of_last = (statistics.median(speeds[positions]) for positions in ("all", "last"))
            rows.append(
                {
                    "batch": batch,
                    "negatives": negatives,
                    "all": of_all,
                    "last": of_last,
                    "ratio": of_all / of_last,
                    "fill": schemes["all"].batches.packing.fill,
                    "compile_seconds": {positions: scheme.compile_seconds for positions, scheme in schemes.items()},
                }
            )
            print(f"{batch:>6} {negatives:>9} {of_all:>9,.0f} {of_last:>9,.0f} {of_all / of_last:>7.1f}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
