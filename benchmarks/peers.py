"""Our SASRec beside RecBole's and RecTools': the same log, model size, loss, batch, length and epochs, on this machine.

    python benchmarks/peers.py --dataset DIR [--epochs 5] [--folder DIR] [--json FILE]

Each peer has a virtual environment of its own in --folder, made here with pinned versions. Each pair shares its loss:
RecTools' sampled softmax of uniform negatives for each target, RecBole's BPR and its softmax over the catalog. One
ranking code, ours, scores every system after each epoch; test is that of the epoch that is best on validation. Seconds
are of training alone; ours to the peer's last valid NDCG@10 hold the compilation as well.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from seqrec_jax.data.split import leave_one_out
from seqrec_jax.data.store import Dataset, open_dataset, ranges
from seqrec_jax.evaluation.metrics import summarize
from seqrec_jax.evaluation.ranks import rank_targets

TORCH = "torch==2.13.0"
PEERS = {
    "RecTools": ("rectools_sasrec.py", [TORCH, "rectools[torch]==0.19.0"]),
    "RecBole": ("recbole_sasrec.py", [TORCH, "recbole==1.2.1"]),
}
PAIRS = (("RecTools", "sampled_softmax"), ("RecBole", "bpr"), ("RecBole", "full_softmax"))
WORKERS = Path(__file__).parent / "peers"


def environment(folder: Path, name: str) -> str:
    """The Python of a peer's environment, which is made where it is not there."""
    place = folder / "environments" / name.lower()
    python = place / "bin" / "python"
    if not (place / "ready").exists():
        venv.create(place, with_pip=True, clear=True)
        for requirement in PEERS[name][1]:
            subprocess.run([python, "-m", "pip", "install", "-q", requirement], check=True)
        (place / "ready").touch()
    return str(python)


def write_input(data: Dataset, path: Path, args: argparse.Namespace) -> None:
    """What every system reads: settings, and the sequences that train and that are continued, in our item rows."""
    split = leave_one_out(data)
    users = split.valid.users
    parts = {
        "all": (np.arange(data.n_users), np.diff(data.offsets)),
        "train": (np.arange(data.n_users), split.train_lengths),
        "valid": (users, split.valid.positions),
        "test": (users, split.test.positions),
    }
    arrays = {}
    for name, (of, lengths) in parts.items():
        arrays[f"{name}_items"] = data.items.take(ranges(data.offsets[of], lengths))
        arrays[f"{name}_ends"] = np.cumsum(lengths)
    n_targets = int(np.maximum(split.train_lengths - 1, 0).sum())
    np.savez(
        path,
        dataset=str(data.folder.resolve()),
        n_items=data.n_items,
        n_targets=n_targets,
        length=args.length,
        epochs=args.epochs,
        layers=args.layers,
        heads=args.heads,
        hidden=args.hidden,
        dropout=args.dropout,
        negatives=args.negatives,
        learning_rate=args.learning_rate,
        users_per_batch=args.users,
        targets_per_batch=round(args.users * n_targets / data.n_users),
        threads=os.cpu_count(),
        **arrays,
    )


def run(command: list[str], output: Path) -> float:
    """Runs a worker; its peak memory in GB."""
    output.mkdir(parents=True, exist_ok=True)
    with open(output / "log.txt", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=output)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)} failed:\n{(output / 'log.txt').read_text()[-3000:]}")
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def ndcg_and_recall(outputs: np.ndarray, items: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    """NDCG@10 and recall@10 of the targets among the whole catalog."""
    rank = jax.jit(lambda o, t: rank_targets(o, jnp.asarray(items), t, t, None, n_sampled=None, seed=0))
    ranks = [
        np.asarray(rank(jnp.asarray(outputs[i : i + 1024]), jnp.asarray(targets[i : i + 1024])))
        for i in range(0, len(targets), 1024)
    ]
    metrics = summarize(np.concatenate(ranks), (10,))
    return metrics["ndcg_at_10"], metrics["recall_at_10"]


def read(output: Path, data: Dataset, epochs: int) -> dict:
    """The curve of a system, and its test metrics after the epoch that is best on validation."""
    if (output / "figures.json").exists():
        return json.loads((output / "figures.json").read_text())
    split = leave_one_out(data)
    target = {
        name: data.items.take(data.offsets[of.users] + of.positions)
        for name, of in {"valid": split.valid, "test": split.test}.items()
    }
    curve, best = [], (-1.0, 0.0, 0.0)
    for epoch in range(1, epochs + 1):
        with np.load(output / f"epoch_{epoch}.npz") as saved:
            valid = ndcg_and_recall(saved["valid"], saved["items"], target["valid"])[0]
            best = max(best, (valid, *ndcg_and_recall(saved["test"], saved["items"], target["test"])))
            curve.append({"epoch": epoch, "seconds": float(saved["seconds"]), "valid_ndcg": valid})
    return {"curve": curve, "compile_seconds": 0.0, "test_ndcg": best[1], "test_recall": best[2]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dataset", required=True, help="dataset folder")
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--losses", nargs="+", default=[loss for _, loss in PAIRS], choices=[loss for _, loss in PAIRS])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument(
        "--users", type=int, default=128, help="users of a batch; as many targets as they have on average"
    )
    parser.add_argument("--length", type=int, default=50)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--negatives", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--folder", type=Path, help="keeps environments and embeddings; a temporary one otherwise")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    data = open_dataset(args.dataset)
    split = leave_one_out(data)
    n_targets = int(np.maximum(split.train_lengths - 1, 0).sum())
    report = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        settings = folder / "input.npz"
        write_input(data, settings, args)
        print(
            f"{data.name}: {n_targets} targets an epoch, {args.layers} x {args.hidden}, dropout {args.dropout}, "
            f"{args.epochs} epochs, {os.cpu_count()} cores"
        )
        print(f"{'':>26} {'targets/s':>10} {'ratio':>6} {'memory GB':>9} {'valid NDCG@10':>13} {'test NDCG@10':>12} "
              f"{'test R@10':>9} {'s to the peer':>13}")  # fmt: skip
        for peer, loss in PAIRS:
            if peer not in args.peers or loss not in args.losses:
                continue
            workers = {
                peer: [environment(folder, peer), str(WORKERS / PEERS[peer][0])],
                "seqrec_jax": [sys.executable, str(WORKERS / "seqrec_sasrec.py")],
            }
            pair = {}
            for name, command in workers.items():
                output = folder / f"{peer}_{loss}_{name}"
                memory = run([*command, str(settings), str(output), loss], output)
                pair[name] = read(output, data, args.epochs) | {"memory_gb": memory}
                pair[name]["targets_per_second"] = n_targets * args.epochs / pair[name]["curve"][-1]["seconds"]
            goal = pair[peer]["curve"][-1]["valid_ndcg"]
            for name, of in pair.items():
                reached = [
                    point["seconds"] + of["compile_seconds"] for point in of["curve"] if point["valid_ndcg"] >= goal
                ]
                of["seconds_to_goal"] = reached[0] if reached else None
                ratio = of["targets_per_second"] / pair[peer]["targets_per_second"]
                until = f"{reached[0]:.1f}" if reached else "never"
                print(
                    f"{name + ', ' + loss:>26} {of['targets_per_second']:>10,.0f} {ratio:>6.1f} "
                    f"{of['memory_gb']:>9.2f} {of['curve'][-1]['valid_ndcg']:>13.4f} {of['test_ndcg']:>12.4f} "
                    f"{of['test_recall']:>9.4f} {until:>13}",
                    flush=True,
                )
            report[f"{peer}, {loss}"] = pair
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
