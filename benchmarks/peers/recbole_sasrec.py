"""RecBole's SASRec, run by benchmarks/peers.py in an environment of its own: trains and leaves embeddings of every
epoch."""

import sys
import time
from pathlib import Path

import numpy as np
import torch

if not hasattr(np, "bool8"):  # RecBole 1.2.1 names types that NumPy 2 has dropped.
    np.bool8, np.float_, np.complex_, np.unicode_ = np.bool_, np.float64, np.complex128, np.str_

from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.model.sequential_recommender import SASRec
from recbole.trainer import Trainer
from recbole.utils import init_logger, init_seed

INPUT = np.load(sys.argv[1])
UNIFORM = {"distribution": "uniform", "sample_num": 1, "dynamic": False, "candidate_num": 0}
OUTPUT, LENGTH = Path(sys.argv[2]), int(INPUT["length"])


def encode(model: SASRec, row_of: dict[int, int], sequences: list[np.ndarray]) -> np.ndarray:
    """Outputs at the last position: sequences of our item rows -> [n, hidden]."""
    outputs = []
    with torch.no_grad():
        for first in range(0, len(sequences), 256):
            block = sequences[first : first + 256]
            x, lengths = np.zeros((len(block), LENGTH), np.int64), np.zeros(len(block), np.int64)
            for row, sequence in enumerate(block):
                recent = [row_of[item] for item in sequence[-LENGTH:]]
                x[row, : len(recent)], lengths[row] = recent, len(recent)
            outputs.append(model(torch.from_numpy(x), torch.from_numpy(lengths)).numpy())
    return np.concatenate(outputs)


def write_log(folder: Path) -> None:
    """The whole log as atomic files; RecBole makes the same leave-one-out split of it."""
    sequences = np.split(INPUT["all_items"], INPUT["all_ends"][:-1])
    (folder / "log").mkdir(parents=True, exist_ok=True)
    with open(folder / "log" / "log.inter", "w") as file:
        file.write("user_id:token\titem_id:token\ttimestamp:float\n")
        for user, sequence in enumerate(sequences):
            file.writelines(f"{user}\t{item}\t{time_}\n" for time_, item in enumerate(sequence))


def main() -> None:
    torch.set_num_threads(int(INPUT["threads"]))
    write_log(OUTPUT / "data")
    config = Config(
        model="SASRec",
        dataset="log",
        config_dict={
            "data_path": str(OUTPUT / "data"),
            "checkpoint_dir": str(OUTPUT / "saved"),
            "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
            "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full", "group_by": "user"},
            "MAX_ITEM_LIST_LENGTH": LENGTH,
            "n_layers": int(INPUT["layers"]),
            "n_heads": int(INPUT["heads"]),
            "hidden_size": int(INPUT["hidden"]),
            "inner_size": int(INPUT["hidden"]),
            "hidden_dropout_prob": float(INPUT["dropout"]),
            "attn_dropout_prob": float(INPUT["dropout"]),
            "loss_type": "BPR" if sys.argv[3] == "bpr" else "CE",
            "train_neg_sample_args": UNIFORM if sys.argv[3] == "bpr" else None,
            "learning_rate": float(INPUT["learning_rate"]),
            "train_batch_size": int(INPUT["targets_per_batch"]),
            "epochs": int(INPUT["epochs"]),
            "use_gpu": False,
            "show_progress": False,
            "seed": 0,
        },
    )
    init_seed(0, True)
    init_logger(config)
    dataset = create_dataset(config)
    train, _, _ = data_preparation(config, dataset)
    model = SASRec(config, train.dataset)
    trainer = Trainer(config, model)
    ours = [int(token) for token in dataset.field2id_token["item_id"][1:]]
    row_of = {item: row for row, item in enumerate(ours, 1)}
    valid, test = (np.split(INPUT[f"{name}_items"], INPUT[f"{name}_ends"][:-1]) for name in ("valid", "test"))
    seconds = 0.0
    for epoch in range(int(INPUT["epochs"])):
        started = time.perf_counter()
        trainer._train_epoch(train, epoch)
        seconds += time.perf_counter() - started
        model.eval()
        items = np.zeros((int(INPUT["n_items"]) + 1, int(INPUT["hidden"])), np.float32)
        items[ours] = model.item_embedding.weight.detach().numpy()[1:]
        np.savez(
            OUTPUT / f"epoch_{epoch + 1}.npz",
            items=items,
            valid=encode(model, row_of, valid),
            test=encode(model, row_of, test),
            seconds=seconds,
        )


if __name__ == "__main__":
    main()
