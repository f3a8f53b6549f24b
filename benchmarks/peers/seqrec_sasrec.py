"""Our model with a row for each item, run by benchmarks/peers.py: trains, and writes what came of every epoch."""

import json
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np

import seqrec_jax as sr
from seqrec_jax.host_memory import keep_freed_memory

INPUT = {name: value.item() for name, value in np.load(sys.argv[1]).items() if value.ndim == 0}
OUTPUT, LOSS = Path(sys.argv[2]), sys.argv[3]
LOSSES = {
    "sampled_softmax": partial(sr.sampled_softmax, n_negatives=INPUT["negatives"], negatives=sr.local),
    "bpr": partial(sr.bpr, n_negatives=1, negatives=sr.local),
    "full_softmax": sr.full_softmax,
}


def main() -> None:
    keep_freed_memory()
    started = time.time()
    corpus = sr.Corpus(INPUT["dataset"])
    architecture = sr.Architecture(
        item_encoder="id", n_layers=INPUT["layers"], n_heads=INPUT["heads"], hidden_size=INPUT["hidden"],
        inner_size=INPUT["hidden"], max_length=INPUT["length"], hidden_dropout=INPUT["dropout"],
        attention_dropout=INPUT["dropout"],
    )  # fmt: skip
    config = sr.TrainConfig(
        seed=0, epochs=INPUT["epochs"], train_batch_size=INPUT["targets_per_batch"], stopping_step=0,
        learning_rate=INPUT["learning_rate"], loss=LOSSES[LOSS], proposal=sr.uniform, schedule=sr.constant,
        optimizer=partial(sr.adam, weight_decay=0.0), ranking=sr.Ranking(ks=(10,)),
    )  # fmt: skip
    model = sr.Recommender.create(corpus, architecture, seed=0)
    results = sr.fit(model, corpus, config, run_dir=OUTPUT / "run").results
    records = map(json.loads, (OUTPUT / "run" / "metrics.jsonl").read_text().splitlines())
    epochs = [record["metrics"] for record in records if record["kind"] == "epoch"]
    seconds = np.cumsum([epoch["time_epoch"] for epoch in epochs]).tolist()
    curve = [
        {"epoch": place + 1, "seconds": seconds[place], "valid_ndcg": epoch["valid/ndcg_at_10"]}
        for place, epoch in enumerate(epochs)
    ]
    figures = {
        "curve": curve, "compile_seconds": epochs[0]["time_on_epoch_start"] - started,
        "test_ndcg": results["test"]["ndcg_at_10"], "test_recall": results["test"]["recall_at_10"],
    }  # fmt: skip
    (OUTPUT / "figures.json").write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
