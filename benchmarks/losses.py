"""Every proposal of negatives and every loss, trained on one dataset for equal targets: accuracy and speed.

    python benchmarks/losses.py --dataset DIR [--epochs 20] [--runs NAME ...] [--json FILE]

One model and schedule for all; the best epoch on validation is ranked on test, among the whole catalog.
"""

import argparse
import json
import tempfile
from pathlib import Path

import gin

from seqrec_jax.data.store import open_dataset
from seqrec_jax.host_memory import keep_freed_memory
from seqrec_jax.tasks.pretrain import pretrain

SETTINGS = """
Architecture.n_layers = 2
Architecture.n_heads = 2
Architecture.hidden_size = 64
Architecture.inner_size = 256
Architecture.hidden_dropout = {dropout}
Architecture.attention_dropout = {dropout}
pretrain.optimizer = @adamw
pretrain.train_batch_size = {batch}
pretrain.stopping_step = 0
pretrain.eval_every = 4
adamw.b2 = 0.98
one_cycle.learning_rate = {learning_rate}
Ranking.ks = (10,)
pretrain.compute_dtype = '{dtype}'
Tracker.uri = None
"""
SHARED = ["sampled_softmax.negatives = @shared", "sampled_softmax.n_negatives = 1024"]
LOCAL = ["sampled_softmax.negatives = @local", "sampled_softmax.n_negatives = 100"]
RUNS = {
    "full softmax": ["pretrain.loss = @full_softmax"],
    "popularity, 1,024 shared": [*SHARED],
    "popularity, 256 shared": [SHARED[0], "sampled_softmax.n_negatives = 256"],
    "popularity, 4,096 shared": [SHARED[0], "sampled_softmax.n_negatives = 4096"],
    "popularity, unbiased, 1,024 shared": [*SHARED, "sampled_softmax.correct_positive = False"],
    "popularity, history, 1,024 shared": [
        *SHARED, "sampled_softmax.correct_positive = False", "sampled_softmax.history_negatives = True",
    ],
    "popularity, alpha 0.5, 1,024 shared": [*SHARED, "popularity.alpha = 0.5"],
    "log_popularity, 1,024 shared": [*SHARED, "pretrain.proposal = @log_popularity"],
    "uniform, 1,024 shared": [*SHARED, "pretrain.proposal = @uniform"],
    "positive_mixing, 1,024 shared": [*SHARED, "pretrain.proposal = @positive_mixing"],
    "popularity, 100 local": [*LOCAL],
    "uniform, 100 local": [*LOCAL, "pretrain.proposal = @uniform"],
    "co_counts, 100 local": [*LOCAL, "pretrain.proposal = @co_counts"],
    "similarity, 100 local": [*LOCAL, "pretrain.proposal = @similarity"],
    "knn, 100 local": [*LOCAL, "pretrain.proposal = @knn"],
    "popularity and knn, 100 local": [
        *LOCAL, "pretrain.proposal = @mixed", "mixed.proposals = (@popularity, @knn)", "mixed.shares = (0.5, 0.5)",
    ],
    "gbce, uniform, 256 shared": [
        "pretrain.loss = @gbce", "gbce.negatives = @shared", "gbce.n_negatives = 256", "pretrain.proposal = @uniform",
    ],
    "bce, uniform, 1 local": ["pretrain.loss = @bce", "pretrain.proposal = @uniform"],
    "bpr, uniform, 1 local": ["pretrain.loss = @bpr", "pretrain.proposal = @uniform"],
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
    lines = []
    settings = SETTINGS.format(
        dropout=args.dropout, batch=args.batch, learning_rate=args.learning_rate, dtype=args.compute_dtype
    )
    with tempfile.TemporaryDirectory() as folder:
        for name in args.runs:
            gin.clear_config()
            gin.parse_config(settings + "\n".join(RUNS[name]))
            results = pretrain(dataset=args.dataset, run_dir=f"{folder}/{name}", seed=args.seed, epochs=args.epochs)
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
    name = open_dataset(args.dataset).name
    print(f"{name}: {args.epochs} epochs of {n_targets} targets, seed {args.seed}, {args.compute_dtype}, test")
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
