"""Our model with a row for each item, run by benchmarks/peers.py: trains and leaves embeddings of every epoch."""

import sys
import time
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from seqrec_jax.data.batches import prefetch
from seqrec_jax.data.split import leave_one_out, training_log
from seqrec_jax.data.store import open_dataset
from seqrec_jax.devices import device_mesh, replicate, split_rows
from seqrec_jax.evaluation.ranking import encode_catalog
from seqrec_jax.host_memory import keep_freed_memory
from seqrec_jax.losses.full_softmax import full_softmax
from seqrec_jax.losses.negatives import local
from seqrec_jax.losses.pairwise import bpr
from seqrec_jax.losses.proposals.by_count import uniform
from seqrec_jax.losses.sampled_softmax import sampled_softmax
from seqrec_jax.model.recommender import Architecture, build
from seqrec_jax.tasks.training_data import item_features, model_record, training_batches
from seqrec_jax.training.optimizer import adam
from seqrec_jax.training.schedules import constant
from seqrec_jax.training.step import Catalog, TrainState, make_train_step

INPUT = np.load(sys.argv[1])
OUTPUT, LENGTH = Path(sys.argv[2]), int(INPUT["length"])
LOSSES = {
    "sampled_softmax": lambda: sampled_softmax(int(INPUT["negatives"]), local),
    "bpr": lambda: bpr(1, local),
    "full_softmax": full_softmax,
}


def main() -> None:
    keep_freed_memory()
    data, mesh = open_dataset(str(INPUT["dataset"])), device_mesh()
    dropout, hidden = float(INPUT["dropout"]), int(INPUT["hidden"])
    architecture = Architecture(
        n_layers=int(INPUT["layers"]),
        n_heads=int(INPUT["heads"]),
        hidden_size=hidden,
        inner_size=hidden,
        max_length=LENGTH,
        hidden_dropout=dropout,
        attention_dropout=dropout,
        item_encoder="id",
    )
    split = leave_one_out(data)
    batches = training_batches(
        data, split, train_batch_size=int(INPUT["targets_per_batch"]), loss_positions="all", max_length=LENGTH,
        shards=mesh.size, seed=0,
    )  # fmt: skip
    features = item_features(data, architecture)
    catalog = replicate(mesh, Catalog(features, uniform(training_log(data, split))))
    graph, params = build(architecture, model_record(data, architecture, features).vocab_sizes, seed=0)
    epochs = int(INPUT["epochs"])
    optimizer = adam(constant(epochs * batches.steps_per_epoch, float(INPUT["learning_rate"])), weight_decay=0.0)
    state = replicate(mesh, TrainState(params, optimizer.init(params), np.int32(0)))
    step = make_train_step(graph, LOSSES[sys.argv[3]](), optimizer, mesh, seed=0)
    started = time.perf_counter()
    step = step.lower(state, catalog, split_rows(mesh, batches.batch(0))).compile()
    compile_seconds = time.perf_counter() - started
    encode = encode_catalog(graph)

    @jax.jit
    def outputs(params, catalog, inputs, lengths):
        columns = np.arange(LENGTH)
        segments = (columns < lengths[:, None]).astype(np.int32)
        hidden = nnx.merge(graph, params).encode_sequences(catalog[inputs], segments, columns + 0 * inputs)
        return hidden[np.arange(len(inputs)), lengths - 1]

    def encode_histories(items: jax.Array, sequences: list[np.ndarray]) -> np.ndarray:
        done = []
        for first in range(0, len(sequences), 256):
            block = sequences[first : first + 256]
            x, lengths = np.zeros((256, LENGTH), np.int32), np.ones(256, np.int32)
            for row, sequence in enumerate(block):
                x[row, : len(sequence[-LENGTH:])], lengths[row] = sequence[-LENGTH:], len(sequence[-LENGTH:])
            done.append(np.asarray(outputs(state.params, items, x, lengths))[: len(block)])
        return np.concatenate(done)

    valid, test = (np.split(INPUT[f"{name}_items"], INPUT[f"{name}_ends"][:-1]) for name in ("valid", "test"))
    seconds = 0.0
    for epoch in range(epochs):
        started = time.perf_counter()
        steps = range(epoch * batches.steps_per_epoch, (epoch + 1) * batches.steps_per_epoch)
        for batch in prefetch(lambda index: split_rows(mesh, batches.batch(index)), steps):
            state, measures = step(state, catalog, batch)
        jax.block_until_ready(measures)
        seconds += time.perf_counter() - started
        items = encode(state.params, catalog.features)
        np.savez(
            OUTPUT / f"epoch_{epoch + 1}.npz",
            items=np.asarray(items),
            valid=encode_histories(items, valid),
            test=encode_histories(items, test),
            seconds=seconds,
            compile_seconds=compile_seconds,
        )


if __name__ == "__main__":
    main()
