"""Every proposal of negatives and every loss, trained on one dataset for equal targets: accuracy and speed.

    python benchmarks/losses.py --dataset DIR [--epochs 20] [--runs NAME ...] [--json FILE]

One model and schedule for all; the best epoch on validation is ranked on test, among the whole catalog.
"""

import argparse
import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import seqrec_jax as sr
from seqrec_jax.host_memory import keep_freed_memory


def softmax(n: int, negatives: Any = sr.shared, **more: Any) -> dict[str, Any]:
    """Settings of the sampled softmax."""
    return {"loss": partial(sr.sampled_softmax, n_negatives=n, negatives=negatives, **more)}


LOCAL = softmax(100, sr.local)
RUNS = {
    "full softmax": {"loss": sr.full_softmax},
    "popularity, 1,024 shared": softmax(1024),
    "popularity, 256 shared": softmax(256),
    "popularity, 4,096 shared": softmax(4096),
    "popularity, unbiased, 1,024 shared": softmax(1024, correct_positive=False),
    "popularity, history, 1,024 shared": softmax(1024, correct_positive=False, history_negatives=True),
    "popularity, alpha 0.5, 1,024 shared": {**softmax(1024), "proposal": partial(sr.popularity, alpha=0.5)},
    "log_popularity, 1,024 shared": {**softmax(1024), "proposal": sr.log_popularity},
    "uniform, 1,024 shared": {**softmax(1024), "proposal": sr.uniform},
    "positive_mixing, 1,024 shared": {**softmax(1024), "proposal": sr.positive_mixing},
    "popularity, 100 local": LOCAL,
    "uniform, 100 local": {**LOCAL, "proposal": sr.uniform},
    "co_counts, 100 local": {**LOCAL, "proposal": sr.co_counts},
    "similarity, 100 local": {**LOCAL, "proposal": sr.similarity},
    "knn, 100 local": {**LOCAL, "proposal": sr.knn},
    "gbce, uniform, 256 shared": {
        "loss": partial(sr.gbce, n_negatives=256, negatives=sr.shared), "proposal": sr.uniform,
    },
    "bce, uniform, 1 local": {"loss": sr.bce, "proposal": sr.uniform},
    "bpr, uniform, 1 local": {"loss": sr.bpr, "proposal": sr.uniform},
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dataset", required=True, help="dataset folder")
    parser.add_argument("--runs", nargs="+", default=list(RUNS), choices=list(RUNS))
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=3200, help="targets a step")
    parser.add_argument("--dropout", type=float, default=0.4)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--compute-dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    keep_freed_memory()
    corpus, lines = sr.Corpus(args.dataset), []
    architecture = sr.Architecture(
        n_layers=2, n_heads=2, hidden_size=64, inner_size=256, hidden_dropout=args.dropout,
        attention_dropout=args.dropout,
    )  # fmt: skip
    settings = {
        "seed": args.seed, "epochs": args.epochs, "train_batch_size": args.batch, "stopping_step": 0, "eval_every": 4,
        "learning_rate": args.learning_rate, "optimizer": partial(sr.adamw, b2=0.98),
        "ranking": sr.Ranking(ks=(10,)), "compute_dtype": args.compute_dtype,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for name in args.runs:
            model = sr.Recommender.create(corpus, architecture, seed=args.seed)
            results = sr.fit(model, corpus, sr.TrainConfig(**settings, **RUNS[name]), f"{folder}/{name}").results
            test, train = results["test"], results["train"]
            lines.append(
                {
                    "run": name,
                    "ndcg_at_10": test["ndcg_at_10"],
                    "hit_at_10": test["hit_at_10"],
                    "targets_per_second": train["targets_per_second"],
                    "seconds": train["seconds"],
                }
            )
    n_targets = train["targets"] // args.epochs
    print(f"{corpus.name}: {args.epochs} epochs of {n_targets} targets, seed {args.seed}, {args.compute_dtype}, test")
    print(f"{'':>36} {'NDCG@10':>8} {'HR@10':>8} {'targets/s':>10} {'seconds':>8}")
    for line in lines:
        print(
            f"{line['run']:>36} {line['ndcg_at_10']:>8.4f} {line['hit_at_10']:>8.4f} "
            f"{line['targets_per_second']:>10,.0f} {line['seconds']:>8.0f}"
        )
    if args.json:
        args.json.write_text(json.dumps(lines, indent=2) + "\n")


if __name__ == "__main__":
    main()
