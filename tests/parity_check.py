"""Compares the model with numbers computed by the reference implementation.

    python tests/parity_check.py FILE.npz

Prints the largest error, |a - b| / max(1, |b|), of every quantity in the file, and exits 1 if one is above 1e-5 with
our arithmetic in float32, as we train. The column float64 tells a different formula from rounding: there the
reference's rounding is all that is left.
"""

import argparse
import dataclasses
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from seqrec_jax.data.batches import Batch
from seqrec_jax.items.text import TextTokens
from seqrec_jax.losses.loss import Keys
from seqrec_jax.losses.negatives import local, shared
from seqrec_jax.losses.sampled_softmax import sampled_softmax
from seqrec_jax.model.graph import Graph
from seqrec_jax.model.parameters import Params
from seqrec_jax.model.spec import Architecture
from seqrec_jax.model.torch_names import from_torch
from seqrec_jax.training.step import Catalog, shard_loss

TOLERANCE = 1e-5
FEATURES = ("title", "brand")


def load_model(file) -> tuple[Graph, Params]:
    """The file's weights in our model, whose shape is read off them."""
    torch = {name.removeprefix("param/"): file[name] for name in file if name.startswith("param/")}
    arrays, _ = from_torch(torch, FEATURES)
    n_layers = 1 + max(int(match[1]) for name in arrays if (match := re.match(r"blocks/(\d+)/", name)))
    features = [feature for feature in FEATURES if f"item_encoder/tables/{feature}" in arrays]
    max_length, hidden = arrays["position_table"].shape
    architecture = Architecture(
        n_layers=n_layers,
        n_heads=int(file["n_heads"]),
        hidden_size=hidden,
        inner_size=arrays["blocks/0/feed_forward/inner/kernel"].shape[1],
        embedding_size=arrays[f"item_encoder/tables/{features[0]}"].shape[1],
        max_length=max_length,
        hidden_dropout=0.0,
        attention_dropout=0.0,
    )
    texts = tuple(TextTokens(name, len(arrays[f"item_encoder/tables/{name}"]), 1) for name in features)
    graph = Graph(architecture, texts)
    graph.check(arrays)
    return graph, {name: jnp.asarray(value) for name, value in arrays.items()}


def last_position_batch(file) -> Batch:
    """The file's histories as unpacked rows, scored at their last position; `items` is the whole catalog."""
    histories, lengths = file["item_seq"].astype(np.int32), file["item_seq_len"].astype(np.int32)
    rows, length = histories.shape
    columns = np.arange(length, dtype=np.int32)
    return Batch(
        items=np.arange(len(file["item_title_tokens"]), dtype=np.int32),
        inputs=histories,
        segments=(columns < lengths[:, None]).astype(np.int32),
        positions=np.broadcast_to(columns, histories.shape),
        slots=np.arange(rows, dtype=np.int32) * length + lengths - 1,
        targets=file["target"].astype(np.int32),
        weights=np.ones(rows, np.float32),
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FixedNegatives:
    """A proposal that always yields the given items [1 or targets, n], with the q of a table."""

    items: jax.Array
    table: jax.Array
    per_target: bool = dataclasses.field(default=False, metadata={"static": True})

    def draw(self, keys, observed, n):
        return self.items

    def log_q(self, observed, items):
        return self.table[items]


def quantities(file) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, our value and the reference's, for everything that the file holds."""
    graph, params = load_model(file)
    batch = jax.tree.map(jnp.asarray, last_position_batch(file))
    tokens = {name: jnp.asarray(file[f"item_{name}_tokens"]) for name in FEATURES if f"item_{name}_tokens" in file}
    model = graph.merge(params)
    embeddings = model.encode_items(tokens)
    hidden = model.encode_sequences(embeddings[batch.inputs], batch.segments, batch.positions)
    outputs = hidden.reshape(-1, hidden.shape[-1])[batch.slots]
    yield "item_embedding", embeddings, file["item_embedding"]
    yield "sequence_output", outputs, file["sequence_output"]
    yield "full_scores", outputs @ embeddings.T, file["full_scores"]

    log_q = jnp.asarray(np.log(file["item_popularity"].astype(np.float64) + 1e-16), outputs.dtype)
    keys = Keys(jax.random.key(0), jnp.arange(len(batch.slots)))
    for kind, sets in (("local", local), ("global", shared)):
        items = jnp.asarray(np.atleast_2d(file[f"{kind}/negatives"]).astype(np.int32))
        catalog = Catalog(tokens, FixedNegatives(items, log_q))
        loss = sampled_softmax(n_negatives=items.shape[1], negatives=sets)

        def mean_loss(params, catalog=catalog, loss=loss):
            return shard_loss(graph, loss, params, catalog, batch, keys, None) / len(batch.slots)

        value, grads = jax.jit(jax.value_and_grad(mean_loss))(params)
        yield f"{kind}/loss", value, file[f"{kind}/loss"]
        start = f"{kind}/grad/"
        torch = {name.removeprefix(start): file[name] for name in file if name.startswith(start)}
        for name, array in from_torch(torch, FEATURES)[0].items():
            yield start + name, grads[name], array


def error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest |a - b| / max(1, |b|)."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if ours.shape != theirs.shape:
        raise SystemExit(f"shape {ours.shape} where the reference has {theirs.shape}")
    value = float((np.abs(ours - theirs) / np.maximum(1, np.abs(theirs))).max())
    return value if np.isfinite(value) else np.inf


def errors(file) -> dict[str, dict[str, float]]:
    """Per precision of our arithmetic, the error of every quantity."""

    def of_each(file) -> dict[str, float]:
        return {name: error(ours, theirs) for name, ours, theirs in quantities(file)}

    with jax.enable_x64(True):
        double = of_each({k: v.astype(np.float64) if v.dtype == np.float32 else v for k, v in file.items()})
    return {"float32": of_each(file), "float64": double}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path)
    with np.load(parser.parse_args().file) as npz:
        found = errors(dict(npz))
    print(*found, sep="   ")
    for name in found["float32"]:
        print(*(f"{of[name]:.2e}" for of in found.values()), name, sep="  ")
    worst = {precision: max(of.values()) for precision, of in found.items()}
    agrees = worst["float32"] <= TOLERANCE
    verdict = f"largest; {'agrees' if agrees else 'DIFFERS'} at {TOLERANCE:.0e}"
    print(*(f"{value:.2e}" for value in worst.values()), verdict, sep="  ")
    sys.exit(not agrees)


if __name__ == "__main__":
    main()
