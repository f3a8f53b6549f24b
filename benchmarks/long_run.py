"""A run of many steps: does its memory grow, does it compile again, does it wait for data or for checkpoints?

    python benchmarks/long_run.py --dataset runs/quickstart/dataset

Trains a small model (2 x 64) for 20,000 steps in a process of its own, with a checkpoint every minute and at each
evaluation, and prints what the run itself has recorded.
"""

import argparse
import json
import tempfile
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np

import seqrec_jax as sr
from seqrec_jax.host_memory import keep_freed_memory

COMPILED = "/jax/core/compile/backend_compile_duration"
SETTLED = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=1600)
    parser.add_argument("--eval-every", type=int, default=20, help="epochs")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    compiled_at: list[float] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled_at.append(time.time()) if event == COMPILED else None
    )
    keep_freed_memory()
    corpus = sr.Corpus(args.dataset)
    architecture = sr.Architecture(hidden_size=64, inner_size=128, hidden_dropout=0.2, attention_dropout=0.2)
    loss = partial(sr.sampled_softmax, n_negatives=512, negatives=sr.shared)
    settings = sr.RunSettings(checkpoints=sr.Checkpoints(every_minutes=1.0))

    def train(run_dir: str, epochs: int) -> dict:
        config = sr.TrainConfig(
            epochs=epochs, train_batch_size=args.batch, eval_every=args.eval_every, stopping_step=0,
            learning_rate=2e-3, loss=loss, optimizer=sr.adamw,
        )  # fmt: skip
        model = sr.Recommender.create(corpus, architecture)
        return sr.fit(model, corpus, config, run_dir, settings=settings).results["train"]

    with tempfile.TemporaryDirectory() as folder:
        steps_per_epoch = train(f"{folder}/probe", 1)["steps"]
        started = time.time()
        summary = train(f"{folder}/run", -(-args.steps // steps_per_epoch))
        seconds = time.time() - started
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
    steps = [record for record in map(json.loads, lines) if record["kind"] == "step"]
    memory = {record["step"]: record["metrics"]["step/host_memory_gb"] for record in steps}
    settled_at = next(record["time"] for record in steps if record["step"] >= SETTLED)
    after = [gb for step, gb in memory.items() if step > SETTLED]
    measured = {
        "steps": summary["steps"],
        "seconds": seconds,
        "targets_per_second": summary["targets_per_second"],
        f"memory_gb_after_{SETTLED}_steps": memory[SETTLED],
        "memory_gb_last": after[-1],
        "memory_growth": after[-1] / memory[SETTLED] - 1,
        "memory_growth_of_medians": float(np.median(after[-20:]) / np.median(after[:20]) - 1),
        f"compilations_after_{SETTLED}_steps": sum(settled_at < at < steps[-1]["time"] for at in compiled_at),
        "share_waiting_for_data": summary["seconds_waiting_for_data"] / summary["seconds"],
        "share_waiting_for_checkpoints": summary["seconds_waiting_for_checkpoints"] / seconds,
    }
    for name, value in measured.items():
        print(f"{name:>35} {value:,.4f}" if isinstance(value, float) else f"{name:>35} {value:,}")
    if args.json:
        args.json.write_text(json.dumps(measured, indent=2) + "\n")


if __name__ == "__main__":
    main()
