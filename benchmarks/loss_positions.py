"""Accuracy of the single pass against one padded prefix a target, at equal targets a step and an epoch.

    python benchmarks/loss_positions.py --dataset DIR [--epochs 20] [--batch 128] [--seeds 1] [--json FILE]

Both schemes train the same model with the same loss and schedule; valid NDCG@10 is printed by targets seen, and at the
end the difference of the best checkpoints with its 95 % paired bootstrap interval over users. Packed rows hold a few
targets less than --batch where windows leave them partly empty; the real number is printed.
"""

import argparse
import json
import tempfile
from functools import partial
from pathlib import Path

import numpy as np

import seqrec_jax as sr
from seqrec_jax.devices import device_mesh, replicate
from seqrec_jax.evaluation.metrics import per_user
from seqrec_jax.evaluation.ranking import CorpusRanker
from seqrec_jax.host_memory import keep_freed_memory

METRIC, K = "ndcg_at_10", 10
RESAMPLES = 10_000


def train(corpus: sr.Corpus, run_dir: Path, positions: str, seed: int, args: argparse.Namespace) -> dict:
    """A whole run: its curve of validation by targets seen, seconds, and NDCG of every validation user."""
    architecture = sr.Architecture(hidden_dropout=args.dropout, attention_dropout=args.dropout)
    config = sr.TrainConfig(
        seed=seed, epochs=args.epochs, train_batch_size=args.batch, eval_every=args.eval_every, stopping_step=0,
        learning_rate=args.learning_rate, optimizer=partial(sr.adamw, b2=0.98), loss_positions=positions,
        loss=partial(sr.sampled_softmax, n_negatives=args.negatives, negatives=sr.shared), ranking=sr.Ranking(ks=(K,)),
    )  # fmt: skip
    model, results = sr.fit(sr.Recommender.create(corpus, architecture, seed=seed), corpus, config, run_dir)
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    epochs = [record["metrics"] for record in records if record["kind"] == "epoch"]
    mesh = device_mesh()
    ranker = CorpusRanker(model.graph, corpus, corpus.division.valid, config.ranking, mesh)
    ranks = ranker.ranks(*replicate(mesh, (dict(model.params), model.features(corpus.data))))
    return {
        "curve": [(epoch["train/targets"], epoch[f"valid/{METRIC}"]) for epoch in epochs if f"valid/{METRIC}" in epoch],
        "steps": results["train"]["steps"],
        "seconds": results["train"]["seconds"],
        "ndcg": per_user(ranks, K)["ndcg"],
    }


def interval(differences: np.ndarray) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of [users] differences."""
    rng = np.random.default_rng(0)
    means = [differences[rng.integers(len(differences), size=len(differences))].mean() for _ in range(RESAMPLES)]
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dataset", required=True, help="dataset folder")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--eval-every", type=int, default=2, help="epochs between evaluations")
    parser.add_argument("--batch", type=int, default=128, help="targets a step")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each scheme; users' scores are averaged")
    parser.add_argument("--negatives", type=int, default=300, help="shared by a step")
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    keep_freed_memory()
    runs: dict[str, list[dict]] = {"all": [], "last": []}
    corpus = sr.Corpus(args.dataset)
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(args.seeds):
            for positions, done in runs.items():
                done.append(train(corpus, Path(folder) / f"{positions}-{seed}", positions, seed, args))
    name = corpus.name
    print(f"{name}: valid {METRIC} by targets seen, {args.batch} targets a step, mean of {args.seeds} seeds")
    print(f"{'targets':>10} {'all':>8} {'last':>8}")
    for place, (targets, _) in enumerate(runs["all"][0]["curve"]):
        of_all, of_last = (np.mean([run["curve"][place][1] for run in runs[p]]) for p in ("all", "last"))
        print(f"{targets:>10} {of_all:>8.4f} {of_last:>8.4f}")
    users = {positions: np.mean([run["ndcg"] for run in done], axis=0) for positions, done in runs.items()}
    low, high = interval(users["all"] - users["last"])
    summary = {
        "dataset": name,
        "difference": float((users["all"] - users["last"]).mean()),
        "interval": [low, high],
        **{
            positions: {
                "best": float(users[positions].mean()),
                "curves": [run["curve"] for run in done],
                "steps": done[0]["steps"],
                "seconds": float(np.mean([run["seconds"] for run in done])),
            }
            for positions, done in runs.items()
        },
    }
    for positions in runs:
        of = summary[positions]
        per_step = of["curves"][0][-1][0] / of["steps"]
        print(
            f"{positions:>5}: best {of['best']:.4f}, {of['steps']} steps of {per_step:.0f} targets, "
            f"{of['seconds']:.0f} s of training"
        )
    print(f"all - last: {summary['difference']:+.4f}, 95 % interval {low:+.4f} to {high:+.4f}")
    if args.json:
        args.json.write_text(json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
    main()
