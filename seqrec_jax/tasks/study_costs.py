"""What the runs of a scaling study cost, before they are made."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from seqrec_jax.data.split import Split, share_of_users
from seqrec_jax.data.store import Dataset, open_dataset
from seqrec_jax.training import flops


class Cell(NamedTuple):
    """One run of the study.

    Attributes:
        dataset: its folder.
        users_share: of the dataset's users, to train on.
        width: hidden_size.
        depth: n_layers.
        epochs: to train for.
    """

    dataset: str
    users_share: float
    width: int
    depth: int
    epochs: int

    @property
    def name(self) -> str:
        """Of its folder."""
        data = f"{Path(self.dataset).resolve().name}_{100 * self.users_share:g}"
        return f"width_{self.width}_depth_{self.depth}_data_{data}_epochs_{self.epochs}"


@dataclasses.dataclass(frozen=True)
class Costs:
    """What cells cost, from two runs of one epoch.

    Attributes:
        small: params that the probe of the smallest model logged.
        large: those of the largest's.
        targets: of an epoch, by dataset and share of its users.
        seconds_per_target: of a target, seconds at no multiply-adds, and more for each multiply-add.
        seconds_apart: of a run, for starting and compiling.
        inner_per_width: of the architecture.
    """

    small: Mapping[str, str]
    large: Mapping[str, str]
    targets: Mapping[tuple[str, float], int]
    seconds_per_target: tuple[float, float]
    seconds_apart: float
    inner_per_width: float

    def per_target(self, cell: Cell) -> float:
        """Multiply-adds of a forward pass, as total_flops has them."""
        small = self.small
        tied = all(of["embedding_size"] == of["hidden_size"] for of in (small, self.large))
        shape = flops.Shape(
            n_layers=cell.depth, n_heads=int(small["n_heads"]), hidden_size=cell.width,
            inner_size=round(self.inner_per_width * cell.width),
            embedding_size=None if tied else int(small["embedding_size"]),
            max_length=int(small["MAX_ITEM_LIST_LENGTH"]),
        )  # fmt: skip
        batch = int(small["train_batch_size"])
        n_features = small["selected_features"].count("'") // 2
        shared = small["nce_global_negatives"] == "True"
        return flops.total_multiply_adds(shape, n_features, batch, int(small["nce_num_negatives"]), shared) / batch

    def compute(self, cell: Cell) -> float:
        """In all, in the unit of total_flops."""
        return self.per_target(cell) * self.targets[cell.dataset, cell.users_share] * cell.epochs

    def seconds(self, cell: Cell) -> float:
        """About how long it will take."""
        base, each = self.seconds_per_target
        targets = self.targets[cell.dataset, cell.users_share] * cell.epochs
        return self.seconds_apart + targets * (base + each * self.per_target(cell))


def line_through(small: tuple[float, float], large: tuple[float, float]) -> tuple[float, float]:
    """Base and slope, neither below 0, of a line through two points (x, y)."""
    slope = max(0.0, (large[1] - small[1]) / (large[0] - small[0])) if large[0] > small[0] else 0.0
    base = small[1] - slope * small[0]
    return (base, slope) if base >= 0 else (0.0, large[1] / large[0])


def targets_of(
    datasets: Sequence[str], shares: Sequence[float], seed: int, split: Callable[[Dataset], Split]
) -> dict[tuple[str, float], int]:
    """Training targets of an epoch, by dataset and share of its users."""
    targets = {}
    for dataset in datasets:
        divided = split(open_dataset(dataset, verify=True))
        for share in shares:
            lengths = share_of_users(divided, share, seed).train_lengths
            targets[dataset, share] = int(np.maximum(lengths - 1, 0).sum())
    return targets
