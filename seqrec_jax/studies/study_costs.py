"""What the runs of a scaling study cost, before they are made."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from seqrec_jax.data.split import Split, share_of_users
from seqrec_jax.data.store import Dataset, open_dataset
from seqrec_jax.model.spec import Architecture
from seqrec_jax.runs import flops


class Cell(NamedTuple):
    """One run of the study."""

    dataset: str  # dataset folder
    users_share: float  # share of the dataset's users to train on
    width: int  # hidden_size
    depth: int  # n_layers
    epochs: int  # epochs to train for

    @property
    def name(self) -> str:
        """Name of its folder."""
        data = f"{Path(self.dataset).resolve().name}_{100 * self.users_share:g}"
        return f"width_{self.width}_depth_{self.depth}_data_{data}_epochs_{self.epochs}"


@dataclasses.dataclass(frozen=True)
class Costs:
    """What runs cost, from the results of two runs of one epoch."""

    small: Mapping[str, Any]  # results.json of the smallest model
    large: Mapping[str, Any]  # results.json of the largest one
    targets: Mapping[tuple[str, float], int]  # targets of an epoch, by dataset and share of its users
    seconds_apart: float  # seconds of a run for starting and compiling
    inner_per_width: float  # inner_size for each unit of hidden_size

    def per_target(self, width: int, depth: int) -> float:
        """Multiply-adds of a forward pass, in the unit of total_flops."""
        small = self.small["params"]
        tied = all(of["params"]["embedding_size"] == of["params"]["hidden_size"] for of in (self.small, self.large))
        inner, length = round(self.inner_per_width * width), int(small["MAX_ITEM_LIST_LENGTH"])
        architecture = Architecture(
            n_layers=depth, n_heads=int(small["n_heads"]), hidden_size=width, inner_size=inner, max_length=length,
            embedding_size=None if tied else int(small["embedding_size"]),
        )  # fmt: skip
        batch, features = int(small["train_batch_size"]), small["selected_features"]
        n_texts = features.count("'") // 2 - ("'item_id'" in features)
        negatives, shared = int(small["nce_num_negatives"]), small["nce_global_negatives"] == "True"
        return flops.total_multiply_adds(architecture, n_texts, batch, negatives, shared) / batch

    def row(self, cell: Cell) -> dict[str, float]:
        """A run's compute in all, its targets of an epoch, and about how many hours it will take."""
        points = []
        for of in (self.small, self.large):
            cost = self.per_target(int(of["params"]["hidden_size"]), int(of["params"]["n_layers"]))
            points.append((cost, of["train"]["seconds"] / of["train"]["targets"]))
        base, slope = line_through(*points)
        targets, cost = self.targets[cell.dataset, cell.users_share], self.per_target(cell.width, cell.depth)
        seconds = self.seconds_apart + targets * cell.epochs * (base + slope * cost)
        return {"compute": cost * targets * cell.epochs, "targets": targets, "hours": seconds / 3600}


def line_through(small: tuple[float, float], large: tuple[float, float]) -> tuple[float, float]:
    """Base and slope, neither below 0, of a line through two points (x, y)."""
    slope = max(0.0, (large[1] - small[1]) / (large[0] - small[0])) if large[0] > small[0] else 0.0
    base = small[1] - slope * small[0]
    return (base, slope) if base >= 0 else (0.0, large[1] / large[0])


def targets_of(
    datasets: Sequence[str], shares: Sequence[float], seed: int, split: Callable[[Dataset], Split]
) -> dict[tuple[str, float], int]:
    """Training targets of an epoch, by dataset and share of its users."""
    divisions = ((dataset, split(open_dataset(dataset, verify=True))) for dataset in datasets)
    return {
        (dataset, share): int(np.maximum(share_of_users(division, share, seed).train_lengths - 1, 0).sum())
        for dataset, division in divisions for share in shares
    }  # fmt: skip
