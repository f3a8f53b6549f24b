"""MLflow databases of made-up runs that follow a known law."""

import itertools
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from seqrec_jax.scaling.run_table import Curve

BATCH = 128
METRIC = "valid/ndcg_at_5"


class MadeRun(NamedTuple):
    params: Mapping[str, Any]
    history: Mapping[int, float]


def write_database(path: Path, runs: Sequence[MadeRun], metric: str = METRIC) -> None:
    """Writes the tables of an old schema of MLflow that matter."""
    connection = sqlite3.connect(path)
    connection.executescript(
        """
        CREATE TABLE runs (run_uuid TEXT, name TEXT, status TEXT, lifecycle_stage TEXT);
        CREATE TABLE params (key TEXT, value TEXT, run_uuid TEXT);
        CREATE TABLE metrics (key TEXT, value DOUBLE, timestamp BIGINT, run_uuid TEXT, step BIGINT, is_nan BOOLEAN);
        """
    )
    for number, run in enumerate(runs):
        uuid = f"run{number:04d}"
        connection.execute("INSERT INTO runs VALUES (?, ?, 'FINISHED', 'active')", (uuid, uuid))
        connection.executemany(
            "INSERT INTO params VALUES (?, ?, ?)", [(name, str(value), uuid) for name, value in run.params.items()]
        )
        connection.executemany(
            "INSERT INTO metrics VALUES (?, ?, ?, ?, ?, ?)",
            [
                (metric, 0.0 if np.isnan(value) else value, step, uuid, step, bool(np.isnan(value)))
                for step, value in run.history.items()
            ],
        )
    connection.commit()
    connection.close()


def params_of(width: int, depth: int, data: int, epochs: int, negatives: int = 100) -> dict[str, Any]:
    flops = BATCH * (1000 * width + 12 * depth * width**2 * 50 + negatives * width**2)
    return {
        "n_layers": depth, "hidden_size": width, "n_inters": data, "train_batch_size": BATCH, "epochs": epochs,
        "total_flops": flops, "nce_num_negatives": negatives,
        "model_non_emb_params": 13 * depth * width**2 + 100 * width,
    }  # fmt: skip


def compute_of(params: Mapping[str, Any], epochs: float) -> float:
    return epochs * params["total_flops"] * params["n_inters"] / BATCH


def additive(params: Mapping[str, Any], epochs: float) -> float:
    """A law that is additive in parameters and targets seen."""
    return 0.17 - 0.9 * params["model_non_emb_params"] ** -0.35 - 2.2 * (epochs * params["n_inters"]) ** -0.3


def additive_curves(noise: float, seed: int) -> list[Curve]:
    """60 runs that are small, some of 5 epochs and some of 20, whose metric is the additive law, times noise."""
    generator, curves = np.random.default_rng(seed), []
    for place in itertools.product((16, 32, 64, 128, 256), (1, 2), (50_000, 100_000, 200_000), (5, 20)):
        params = params_of(*place)
        epochs = np.arange(1.0, params["epochs"] + 1)
        values = np.array([additive(params, of) for of in epochs]) * np.exp(generator.normal(0, noise, len(epochs)))
        curves.append(Curve(str(place), params, epochs, values, compute_of(params, 1) * epochs, place))
    return curves


def grid_of_runs(
    law: Callable[[float, Mapping[str, Any]], float], noise: float, seed: int, n_epochs: int = 8
) -> list[MadeRun]:
    """36 runs of widths, depths and data whose metric is the law of compute and params, times noise."""
    generator, runs = np.random.default_rng(seed), []
    for width in (32, 64, 128, 256):
        for depth in (1, 2, 4):
            for data in (30_000, 200_000, 2_000_000):
                params = params_of(width, depth, data, n_epochs)
                history = {
                    epoch: law(compute_of(params, epoch), params) * float(np.exp(generator.normal(0, noise)))
                    for epoch in range(1, n_epochs + 1)
                }
                runs.append(MadeRun(params, history))
    return runs
