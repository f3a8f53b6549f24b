"""The order of a user's interactions: by time, and what decides between those of one time."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from absl import logging

from etl.ids import hash_of
from seqrec_jax.errors import InputError

MOST_TIED = 0.1
"""Largest share of neighbours of one time about which nothing is said."""


@dataclass(frozen=True)
class TimeOrder:
    """How a log's interactions are ordered. An InputError where a value is not allowed.

    Attributes:
        ties: What decides between interactions of a user at the same time: 'file', their order in the files, or
            'random', a hash of the seed, the user's id and the item's.
        seed: Of that hash.
        units_per_second: Unit of the times, in which they are compared.
    """

    ties: str = "file"
    seed: int = 42
    units_per_second: int = 1

    def __post_init__(self) -> None:
        if self.ties not in ("file", "random"):
            raise InputError(f"TIES = {self.ties!r}: must be 'file' or 'random'")
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**64:
            raise InputError(f"SEED = {self.seed!r}: must be a whole number, from 0 to 2^64 - 1")

    @property
    def rule(self) -> dict[str, Any]:
        """What decides between equal times, as the manifest has it."""
        return {"order": self.ties} | ({"seed": self.seed} if self.ties == "random" else {})

    def tie_keys(self, users: np.ndarray, items: np.ndarray) -> np.ndarray | None:
        """What interactions of one time are sorted by, of hashes of their ids: [n], [n] -> [n] uint64; None for 'file'.

        Equal for a pair that is repeated, so such interactions keep the order of the files.
        """
        return hash_of([items, users], self.seed) if self.ties == "random" else None

    def in_seconds(self, interactions: pa.Table) -> tuple[pa.Table, int, int]:
        """Rounds times down to seconds; counts neighbours of a user that have the same time, and all neighbours."""
        lists = interactions["timestamps"].combine_chunks()
        times, lengths = lists.flatten().to_numpy(), pc.list_value_length(lists).to_numpy()
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        same_user = np.ones(len(times) + 1, bool)  # as the one before
        same_user[offsets] = False
        tied = int((same_user[1:-1] & (times[1:] == times[:-1])).sum())
        seconds = pa.array((times // self.units_per_second).astype(np.int64))
        column = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), seconds)
        place = interactions.schema.get_field_index("timestamps")
        return interactions.set_column(place, "timestamps", column), tied, int(same_user.sum())


def log_ties(name: str, ties: Mapping[str, Any]) -> None:
    """Says so where many neighbours of a dataset have the same time, given the manifest's record of ties."""
    if ties["neighbours"] <= MOST_TIED * ties["of"]:
        return
    text = "%s: %.0f %% of neighbouring interactions of a user have the same time; "
    arguments = (name, 100 * ties["neighbours"] / ties["of"])
    if ties["order"] == "random":
        logging.info(text + "they are in random order", *arguments)
    else:
        logging.warning(
            text + "they are in the order of the files, which a model can learn where it is that of the ids; "
            "TIES = 'random' shuffles them", *arguments
        )  # fmt: skip
