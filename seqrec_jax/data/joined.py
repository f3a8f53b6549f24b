"""Several datasets read as one, each with its own catalog and users."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from seqrec_jax.data.split import Split, Targets
from seqrec_jax.data.store import Dataset, Items, open_dataset
from seqrec_jax.errors import InputError


class JoinedItems(NamedTuple):
    """All users' items, one dataset after the other; see FlatItems.

    Attributes:
        parts: of the datasets.
        starts: [parts] int64, flat position of each one's first item.
        shifts: [parts] int32, what is added to each one's item rows.
    """

    parts: tuple[Items, ...]
    starts: np.ndarray
    shifts: np.ndarray

    def take(self, indices: np.ndarray) -> np.ndarray:
        """Items at flat positions: [n] int64 -> [n] int32."""
        part = np.searchsorted(self.starts, indices, side="right") - 1
        items = np.empty(len(indices), np.int32)
        for ordinal in range(len(self.parts)):
            inside = part == ordinal
            items[inside] = self.parts[ordinal].take(indices[inside] - self.starts[ordinal]) + self.shifts[ordinal]
        return items


class Joined(NamedTuple):
    """Datasets and their union.

    Attributes:
        whole: the union. Rows item_starts[i] + 1 to item_starts[i + 1] of its catalog are the items of dataset i, and
            its users user_starts[i] to user_starts[i + 1] - 1 are that dataset's.
        parts: the datasets.
        item_starts: [parts + 1] int64.
        user_starts: [parts + 1] int64.
    """

    whole: Dataset
    parts: tuple[Dataset, ...]
    item_starts: np.ndarray
    user_starts: np.ndarray

    def domains(self) -> np.ndarray:
        """Which dataset an item of the union belongs to, from 1: [n_items + 1] int32; 0 for padding."""
        return np.concatenate([[0], np.repeat(np.arange(len(self.parts)) + 1, np.diff(self.item_starts))]).astype(
            np.int32
        )

    def groups(self) -> np.ndarray:
        """Which dataset a user of the union belongs to, from 0: [users] int64."""
        return np.repeat(np.arange(len(self.parts)), np.diff(self.user_starts))

    def split(self, how: Callable[[Dataset], Split]) -> Split:
        """The union's split, made of each dataset's own.

        Args:
            how: splits a dataset, such as leave_one_out.
        """
        splits = [how(part) for part in self.parts]

        def together(of_parts: Sequence[Targets]) -> Targets:
            users = [of.users + first for of, first in zip(of_parts, self.user_starts[:-1], strict=True)]
            return Targets(np.concatenate(users), np.concatenate([of.positions for of in of_parts]))

        return Split(
            np.concatenate([split.train_lengths for split in splits]),
            together([split.valid for split in splits]),
            together([split.test for split in splits]),
        )

    def targets_of(self, part: int, targets: Targets) -> Targets:
        """The targets of one dataset's users, as rows of that dataset."""
        first, end = self.user_starts[part : part + 2]
        inside = (targets.users >= first) & (targets.users < end)
        return Targets(targets.users[inside] - first, targets.positions[inside])

    def rows_of(self, part: int) -> np.ndarray:
        """Rows of the union's catalog that make one dataset's: [n_items of it + 1] int64, padding first."""
        first, end = self.item_starts[part : part + 2]
        return np.concatenate([[0], np.arange(first + 1, end + 1)])


def _starts(sizes: Sequence[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def _manifest(parts: Sequence[Dataset]) -> dict[str, Any]:
    """Of the union: every feature once, in the order in which the datasets bring them."""
    features = {feature["name"]: feature for part in reversed(parts) for feature in part.manifest["features"]}
    order = dict.fromkeys(name for part in parts for name in part.features)
    return {
        "features": [features[name] for name in order],
        "tokenizer": parts[0].manifest["tokenizer"],
        "checksums": {f"{ordinal}": part.digest() for ordinal, part in enumerate(parts)},
    }


def join(parts: Sequence[Dataset]) -> Joined:
    """Joins datasets of one tokenizer; one alone is its own union.

    Raises:
        InputError: they were made with different tokenizers.
    """
    for part in parts[1:]:
        if part.tokenizer_sha256 != parts[0].tokenizer_sha256:
            raise InputError(
                f"{part.folder}: was made with another tokenizer than {parts[0].folder}; make both again with the same "
                f"TOKENIZER, such as --gin_bindings=\"TOKENIZER='{parts[0].folder}'\", or train one over their sources "
                "with gin/etl_tokenizer.gin"
            )
    item_starts, user_starts = _starts([part.n_items for part in parts]), _starts([part.n_users for part in parts])
    if len(parts) == 1:
        return Joined(parts[0], tuple(parts), item_starts, user_starts)
    flat_starts = _starts([part.n_interactions for part in parts])
    offsets = [part.offsets[1:] + start for part, start in zip(parts, flat_starts, strict=False)]
    catalogs = [part.items_table.slice(int(ordinal > 0)) for ordinal, part in enumerate(parts)]  # one row of padding
    users = [part.interactions_table.select(["user_id"]) for part in parts]
    whole = Dataset(
        folder=Path("+".join(part.name for part in parts)),
        manifest=_manifest(parts),
        offsets=np.concatenate([np.zeros(1, np.int64), *offsets]),
        items=JoinedItems(tuple(part.items for part in parts), flat_starts[:-1], item_starts[:-1].astype(np.int32)),
        interactions_table=pa.concat_tables(users),
        items_table=pa.concat_tables(catalogs, promote_options="default"),
    )
    return Joined(whole, tuple(parts), item_starts, user_starts)


def users_named_in(sources: Sequence[str]) -> pa.Array:
    """Ids of users, each once.

    Args:
        sources: dataset folders, whose users are meant, or text files of an id a line.

    Raises:
        InputError: one is missing.
    """
    ids: list[pa.Array] = []
    for source in sources:
        path = Path(source)
        if path.is_file():
            ids.append(pa.array(path.read_text(encoding="utf-8").split("\n"), pa.string()))
        else:
            ids.append(open_dataset(path).interactions_table["user_id"].combine_chunks())
    return pa.concat_arrays(ids).unique()


def is_user_in(data: Dataset, ids: pa.Array) -> np.ndarray:
    """Which users of a dataset are named: [users] bool."""
    column = data.interactions_table["user_id"]
    return pc.is_in(column, value_set=ids).combine_chunks().to_numpy(zero_copy_only=False)
