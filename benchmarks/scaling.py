"""How well training scales over devices: by formula, and measured on the cores of this machine.

    python benchmarks/scaling.py --dataset runs/quickstart/dataset

By formula: a ring all-reduce of the gradients of P float32 parameters over n devices sends 2 (n - 1) / n * 4 P bytes
from each, at every step. The part of the time that devices compute is compute / (compute + communication), if nothing
of the two overlaps; in truth XLA overlaps some. Measured: processes of one device, each pinned to a core, with a batch
of so many targets for each of them (weak scaling).
"""

import argparse
import json
import math
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import seqrec_jax as sr
from seqrec_jax.items.text import TextTokens
from seqrec_jax.runs.flops import total_multiply_adds

FLOPS = 400e12
"""Of a GPU, while it trains: two fifths of what an H100 is sold with in bfloat16."""
LINKS = {8: ("NVLink", 450e9), 64: ("InfiniBand, 400 Gb/s a GPU", 50e9)}
SHAPES = {
    "16 x 256, 256, 256 / 300": (sr.Architecture(16, 4, 256, 256, 256), 300),
    "8 x 256, 1024, 128 / 1,000": (sr.Architecture(8, 4, 256, 1024, 128), 1000),
}
BUSY = 0.9
VOCABULARY = 30_000
SETTINGS = """
include 'gin/base.gin'
run.task = @pretrain
Architecture.n_layers = 4
Architecture.n_heads = 4
Architecture.hidden_size = 128
Architecture.inner_size = 128
TrainConfig.learning_rate = 1e-3
sampled_softmax.negatives = @shared
sampled_softmax.n_negatives = 300
TrainConfig.stopping_step = 0
Tracker.uri = None
"""


def batch_for(parameters_: int, flops_per_target: float, devices: int, bytes_per_second: float) -> float:
    """Targets of a device's share of the batch at which BUSY of the time is computing."""
    communication = 2 * (devices - 1) / devices * 4 * parameters_ / bytes_per_second
    return BUSY / (1 - BUSY) * communication * FLOPS / flops_per_target


def by_formula() -> list[dict]:
    rows = []
    for name, (architecture, negatives) in SHAPES.items():
        features = (TextTokens("title", VOCABULARY, 40), TextTokens("brand", VOCABULARY, 8))
        shapes = sr.Spec(architecture, features, "").graph().shapes
        n = sum(math.prod(of.shape) for of in shapes.values())
        # One packed position instead of the reference's prefix of 50, two operations a multiply-add, three passes.
        batch = 1000
        flops = (
            6 * total_multiply_adds(architecture, 2, batch, negatives, shared=True) / batch / architecture.max_length
        )
        for devices, (link, speed) in LINKS.items():
            share = batch_for(n, flops, devices, speed)
            rows.append(
                {"shape": name, "parameters": n, "mflop_per_target": flops / 1e6, "devices": devices, "link": link,
                 "mb_per_step": 2 * (devices - 1) / devices * 4 * n / 1e6, "targets_per_device": share,
                 "targets_per_step": share * devices}
            )  # fmt: skip
    return rows


def measured(dataset: str, processes: int, batch: int, epochs: int, folder: Path) -> float:
    """Targets a second of so many processes, each on a core of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"--coordinator=127.0.0.1:{free.getsockname()[1]}"
    gin_file = folder / "run.gin"
    gin_file.write_text(SETTINGS)
    run_dir = folder / f"{processes}_{batch}"
    bindings = {
        "Corpus.datasets": repr(dataset), "pretrain.run_dir": repr(str(run_dir)), "TrainConfig.epochs": epochs,
        "TrainConfig.eval_every": epochs, "TrainConfig.train_batch_size": batch * processes,
        "Reports.every_steps": max(1, 10 // processes),
    }  # fmt: skip
    flags = [f"--gin_bindings={name} = {value}" for name, value in bindings.items()]
    running = []
    for process in range(processes):
        hosts = [address, f"--num_processes={processes}", f"--process_id={process}"] if processes > 1 else []
        command = ["taskset", "-c", str(process), sys.executable, "-m", "seqrec_jax.main", f"--gin_file={gin_file}"]
        command += [*hosts, *flags]
        running.append(
            subprocess.Popen(
                command,
                env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )
    assert all(process.wait() == 0 for process in running)
    records = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    rates = [record["metrics"]["step/targets_per_second"] for record in records if record["kind"] == "step"]
    return statistics.median(rates[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--batches", type=int, nargs="+", default=[200, 800, 3200])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    formula = by_formula()
    print(f"By formula, {BUSY:.0%} busy, {FLOPS / 1e12:.0f} TFLOP/s a GPU while it computes")
    for row in formula:
        print(
            f"{row['shape']:>28}: {row['parameters'] / 1e6:.1f} M parameters, {row['mflop_per_target']:.0f} MFLOP a "
            f"target; {row['devices']} GPUs, {row['link']}: {row['mb_per_step']:.0f} MB a step, "
            f"{row['targets_per_device']:,.0f} targets a GPU, {row['targets_per_step']:,.0f} a step"
        )
    name = sr.open_dataset(args.dataset).name
    print(f"Measured, 4 x 128, {name}, one process a core")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for batch in args.batches:
            one, two = (measured(args.dataset, n, batch, args.epochs, Path(folder)) for n in (1, 2))
            rows.append({"targets_per_process": batch, "one": one, "two": two, "efficiency": two / one / 2})
            print(
                f"{batch:>8,} targets a process: {one:>9,.0f} /s, two {two:>9,.0f} /s, efficiency {two / one / 2:.0%}"
            )
    if args.json:
        args.json.write_text(json.dumps({"formula": formula, "measured": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
