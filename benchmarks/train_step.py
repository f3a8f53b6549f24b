"""What a training step takes at four model sizes, and the single pass beside one padded prefix a target.

    python benchmarks/train_step.py --dataset DIR [--shapes small medium deep wide] [--json FILE]

Both schemes train the same model on the same dataset with the same loss and negatives, shared by the step, each in a
process of its own, one after the other; medians of several turns. The prefixes are given as many targets a step, but
where their activations would not fit in memory: there, --last-batch. Memory is what the compiler plans: arguments,
results and temporary buffers.
"""

import argparse
import json
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

import seqrec_jax as sr
from seqrec_jax.data.batches import prefetch
from seqrec_jax.devices import device_mesh, split_rows
from seqrec_jax.dropout import DropoutKeys
from seqrec_jax.host_memory import keep_freed_memory
from seqrec_jax.losses.loss import Keys, LossInputs, ModelOutputs
from seqrec_jax.model import parameters
from seqrec_jax.runs.costs import compiled_bytes, matmul_peak
from seqrec_jax.training.compile import StepCompiler, make_catalog

NEGATIVES = {"local": sr.local, "shared": sr.shared}
SHAPES = {  # layers, hidden, inner, embedding, negatives
    "small": (2, 64, 64, 64, 100),
    "medium": (4, 128, 128, 128, 300),
    "deep": (16, 256, 256, 256, 300),
    "wide": (8, 256, 1024, 128, 1000),
}
LAST_FITS_WHOLE = ("small", "medium")


class Scheme:
    """A compiled training step on batches of one scheme, with its own state."""

    def __init__(self, dataset: str, positions: str, batch: int, shape: str, args: argparse.Namespace):
        layers, hidden, inner, embedding, self.n_negatives = SHAPES[shape]
        self.mesh, corpus = device_mesh(), sr.Corpus(dataset)
        architecture = sr.Architecture(
            n_layers=layers, n_heads=4 if hidden > 64 else 2, hidden_size=hidden, inner_size=inner,
            embedding_size=embedding, hidden_dropout=args.dropout, attention_dropout=args.dropout,
        )  # fmt: skip
        config = sr.TrainConfig(
            seed=0, loss=partial(sr.sampled_softmax, n_negatives=self.n_negatives, negatives=NEGATIVES[args.negatives]),
            schedule=sr.constant, loss_positions=positions, compute_dtype=args.compute_dtype,
            rematerialize=args.rematerialize, accumulation_steps=args.accumulation_steps,
        )  # fmt: skip
        model = sr.Recommender.create(corpus, architecture, seed=0)
        self.catalog = make_catalog(model, corpus, config, self.mesh)
        compiler = StepCompiler(config, corpus, model.spec, self.catalog, self.mesh, model.params)
        self.graph, self.loss, self.n_params = compiler.graph, compiler.loss, parameters.count(model.params)
        started = time.perf_counter()
        compiled = compiler.compile(batch)
        self.compile_seconds = time.perf_counter() - started
        self.batches, self.optimizer, self.step, self.flops = (
            compiled.batches, compiled.optimizer, compiled.step, compiled.flops.model
        )  # fmt: skip
        self.state = compiler.init(self.optimizer)
        self.next, self.step_seconds = 0, 0.0
        self.step_seconds = min(self.run(0.0), self.run(0.0))

    def _batch(self, index: int):
        return split_rows(self.mesh, self.batches.batch(index))

    @property
    def targets_per_step(self) -> float:
        """Real targets of a step, on average."""
        return self.batches.n_targets / self.batches.steps_per_epoch

    @property
    def memory_gb(self) -> float:
        """Arguments, results and temporary buffers of a step, as the compiler plans them."""
        return compiled_bytes(self.step) / 1e9

    def run(self, seconds: float) -> float:
        """Trains for about that long, the next batches made in the background; returns seconds a step."""
        n_steps = max(1, round(seconds / self.step_seconds)) if seconds else 1
        started = time.perf_counter()
        for batch in prefetch(self._batch, range(self.next, self.next + n_steps)):
            self.state, metrics = self.step(self.state, self.catalog, batch)
        jax.block_until_ready(metrics)
        self.next += n_steps
        return (time.perf_counter() - started) / n_steps

    def parts(self) -> dict[str, float]:
        """Share of the step's time that each part takes, each timed alone, with its gradient."""
        batch, params = jax.tree.map(jnp.asarray, self.batches.batch(0)), self.state.params
        dropout = DropoutKeys(jax.random.key(0), jnp.arange(len(batch.inputs), dtype=jnp.uint32))
        keys = Keys(jax.random.key(1), jnp.arange(len(batch.targets)))
        inputs = LossInputs(batch.items[batch.targets], batch.slots, batch.items[batch.inputs], batch.positions)
        drawn = self.loss.draw(keys, inputs, self.catalog.proposal)

        def encode(params):
            items = jnp.concatenate([batch.items, drawn[0]]) if len(drawn) == 1 else batch.items
            features = {name: values[items] for name, values in self.catalog.features.items()}
            return self.graph.merge(params).encode_items(features)

        embeddings = encode(params)

        def sequences(params, embeddings):
            network = self.graph.merge(params)
            return network.encode_sequences(embeddings[batch.inputs], batch.segments, batch.positions, dropout)

        def losses(hidden, embeddings):
            shared_rows = len(batch.items) + jnp.arange(drawn.size)[None]
            outputs = ModelOutputs(
                inputs=inputs,
                hidden=hidden,
                input_embeddings=embeddings[batch.inputs],
                outputs=hidden.reshape(-1, hidden.shape[-1])[batch.slots],
                target_embeddings=embeddings[batch.targets],
                n_items=self.catalog.n_items,
                embeddings=embeddings,
                drawn=drawn,
                drawn_rows=shared_rows if len(drawn) == 1 else drawn % len(embeddings),
            )
            return self.loss.losses(keys, outputs, self.catalog.proposal)

        def update(params, optimizer):
            updates, optimizer = self.optimizer.update(params, optimizer, params)
            return optax.apply_updates(params, updates), optimizer

        timed = {
            "items": _seconds(jax.grad(lambda params: encode(params).sum()), params),
            "sequences": _seconds(jax.grad(lambda p, e: (sequences(p, e) ** 2).sum(), (0, 1)), params, embeddings),
            "loss": _seconds(
                jax.grad(lambda h, e: losses(h, e).sum(), (0, 1)), sequences(params, embeddings), embeddings
            ),
            "optimizer": _seconds(update, params, self.state.optimizer),
        }
        return {name: seconds / sum(timed.values()) for name, seconds in timed.items()}


def _seconds(function: Callable, *arguments) -> float:
    """Median time of a jitted call."""
    compiled = jax.jit(function)
    jax.block_until_ready(compiled(*arguments))
    times = []
    for _ in range(7):
        started = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def measure(shape: str, positions: str, args: argparse.Namespace) -> dict:
    """What a scheme takes at a shape, in this process."""
    keep_freed_memory()
    batch = args.batch if positions == "all" or shape in LAST_FITS_WHOLE else args.last_batch
    scheme = Scheme(args.dataset, positions, batch, shape, args)
    step = statistics.median(scheme.run(args.seconds) for _ in range(args.turns))
    return {
        "shape": shape,
        **dict(zip(("layers", "hidden", "inner", "embedding", "n_negatives"), SHAPES[shape], strict=True)),
        "parameters": scheme.n_params,
        "targets_per_step": scheme.targets_per_step,
        "targets_per_second": scheme.targets_per_step / step,
        "step_ms": 1e3 * step,
        "memory_gb": scheme.memory_gb,
        "flops_per_target": scheme.flops / scheme.targets_per_step,
        "compile_seconds": scheme.compile_seconds,
        "fill": scheme.batches.packing.fill,
        "parts": scheme.parts() if positions == "all" else None,
    }


def in_own_process(shape: str, positions: str, args: argparse.Namespace) -> dict:
    """`measure` where nothing else has filled the memory and the caches."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, shape, positions, args).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dataset", required=True, help="dataset folder")
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--batch", type=int, default=3200, help="targets a step")
    parser.add_argument("--last-batch", type=int, default=128, help="of the prefixes, at the shapes deep and wide")
    parser.add_argument("--no-last", action="store_true", help="leave the prefixes out")
    parser.add_argument("--negatives", default="shared", choices=list(NEGATIVES))
    parser.add_argument("--dropout", type=float, default=0.5)
    parser.add_argument("--compute-dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--rematerialize", action="store_true")
    parser.add_argument("--accumulation-steps", type=int, default=1)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4, help="of a turn")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    keep_freed_memory()
    dataset, peak = sr.open_dataset(args.dataset), matmul_peak(args.compute_dtype)
    print(
        f"{dataset.name}, {args.negatives} negatives, {args.compute_dtype}, jax {jax.__version__}, "
        f"{jax.device_count()} x {jax.devices()[0].device_kind} ({platform.machine()}), "
        f"matmul peak {peak / 1e9:,.0f} GFLOP/s"
    )
    print(f"{'':>25} {'targets/s':>10} {'step ms':>8} {'GB':>6} {'MFLOP/target':>12} {'of peak':>7} {'last/s':>8} "
          f"{'ratio':>6}  items sequences loss optimizer")  # fmt: skip
    rows = []
    for name in args.shapes:
        layers, hidden, inner, embedding, n_negatives = SHAPES[name]
        row = in_own_process(name, "all", args)
        if not args.no_last:
            last = in_own_process(name, "last", args)
            row["last_targets_per_step"] = last["targets_per_step"]
            row["last_targets_per_second"] = last["targets_per_second"]
            row["ratio"] = row["targets_per_second"] / last["targets_per_second"]
        row["share_of_peak"] = row["flops_per_target"] * row["targets_per_second"] / peak
        rows.append(row)
        what = f"{layers} x {hidden}, {inner}, {embedding} / {n_negatives:,}"
        beside = f"{row['last_targets_per_second']:>8,.1f} {row['ratio']:>6.1f}" if "ratio" in row else f"{'':>15}"
        print(
            f"{what:>25} {row['targets_per_second']:>10,.0f} {row['step_ms']:>8.1f} {row['memory_gb']:>6.2f} "
            f"{row['flops_per_target'] / 1e6:>12.2f} {row['share_of_peak']:>7.1%} {beside}  "
            + " ".join(f"{share:>8.0%}" for share in row["parts"].values()),
            flush=True,
        )
    if args.json:
        args.json.write_text(json.dumps({"matmul_peak": peak, "shapes": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
