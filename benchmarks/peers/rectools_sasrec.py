"""RecTools' SASRec, run by benchmarks/peers.py in an environment of its own: trains and leaves embeddings of every
epoch."""

import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from pytorch_lightning import Callback, Trainer
from rectools.dataset import Dataset
from rectools.models import SASRecModel

INPUT = np.load(sys.argv[1])
OUTPUT, LENGTH = Path(sys.argv[2]), int(INPUT["length"])


def encode(module, row_of: dict[int, int], sequences: list[np.ndarray]) -> np.ndarray:
    """Outputs at the last position: sequences of our item rows -> [n, hidden]."""
    outputs = []
    with torch.no_grad():
        items = module.torch_model.item_model.get_all_embeddings()
        for first in range(0, len(sequences), 256):
            x = np.zeros((len(sequences[first : first + 256]), LENGTH), np.int64)
            for row, sequence in enumerate(sequences[first : first + 256]):
                recent = [row_of[item] for item in sequence[-LENGTH:] if item in row_of]
                if recent:
                    x[row, LENGTH - len(recent) :] = recent
            outputs.append(module.torch_model.encode_sessions({"x": torch.from_numpy(x)}, items)[:, -1].numpy())
    return np.concatenate(outputs)


class Export(Callback):
    """Writes embeddings after every epoch; the clock stands still meanwhile."""

    def __init__(self):
        self.seconds, self.started = 0.0, 0.0

    def on_train_epoch_start(self, trainer, module):
        self.started = time.perf_counter()

    def on_train_epoch_end(self, trainer, module):
        self.seconds += time.perf_counter() - self.started
        module.eval()
        known = module.data_preparator.item_id_map.get_external_sorted_by_internal().tolist()
        row_of = {item: row for row, item in enumerate(known) if isinstance(item, int)}
        with torch.no_grad():
            internal = module.torch_model.item_model.get_all_embeddings().numpy()
        items = np.zeros((int(INPUT["n_items"]) + 1, internal.shape[1]), np.float32)
        items[list(row_of)] = internal[list(row_of.values())]
        valid, test = (np.split(INPUT[f"{name}_items"], INPUT[f"{name}_ends"][:-1]) for name in ("valid", "test"))
        np.savez(
            OUTPUT / f"epoch_{trainer.current_epoch + 1}.npz",
            items=items,
            valid=encode(module, row_of, valid),
            test=encode(module, row_of, test),
            seconds=self.seconds,
        )
        module.train()


EXPORT = Export()


def trainer() -> Trainer:
    """What RecTools trains with; it asks for a function of a module."""
    return Trainer(
        max_epochs=int(INPUT["epochs"]),
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[EXPORT],
    )


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(int(INPUT["threads"]))
    sequences = np.split(INPUT["train_items"], INPUT["train_ends"][:-1])
    log = pd.DataFrame(
        {
            "user_id": np.repeat(np.arange(len(sequences)), [len(s) for s in sequences]),
            "item_id": INPUT["train_items"].astype(int),
            "weight": 1,
            "datetime": pd.to_datetime(np.concatenate([np.arange(len(s)) for s in sequences]), unit="s"),
        }
    )
    model = SASRecModel(
        n_blocks=int(INPUT["layers"]),
        n_heads=int(INPUT["heads"]),
        n_factors=int(INPUT["hidden"]),
        dropout_rate=float(INPUT["dropout"]),
        session_max_len=LENGTH,
        loss="sampled_softmax",
        n_negatives=int(INPUT["negatives"]),
        lr=float(INPUT["learning_rate"]),
        batch_size=int(INPUT["users_per_batch"]),
        get_trainer_func=trainer,
    )
    model.fit(Dataset.construct(log))


if __name__ == "__main__":
    main()
