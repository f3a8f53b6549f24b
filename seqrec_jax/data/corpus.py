"""Datasets, their split, which interactions train, and which items compete with which."""

import copy
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from absl import logging

from seqrec_jax.data import split as splits
from seqrec_jax.data.split import Split, Targets, TrainInteractions
from seqrec_jax.data.store import Dataset, Items, open_dataset
from seqrec_jax.describe import check_types, describe
from seqrec_jax.errors import InputError, in_short

OWN, ALL = "own", "all"


@dataclass(frozen=True, eq=False)
class Corpus:
    """One dataset or several, read as one: `sr.Corpus([data], split=sr.leave_one_out)`.

    What is computed of the settings is computed when it is first asked for. The items of the datasets keep rows of
    their own in the union's catalog, and the users too, whatever their ids. A corpus of one dataset is that dataset.
    An InputError where a dataset is missing or damaged, their tokenizers or names do not fit, or a setting is wrong.
    """

    datasets: Any  # one or a list of Dataset or folders, which are opened and verified; kept as a tuple of Dataset
    split: Callable[[Dataset], Split] = splits.leave_one_out  # splits one dataset
    shares: Sequence[float] | None = None  # of an epoch's targets by dataset, in any unit; None: each interaction once
    negatives_from: str = OWN  # "own": an item competes with those of its own dataset; "all": with all
    exclude_users_of: Sequence[str] | str = ()  # folders, or files of a user id a line, that are left out
    users_share: float = 1.0  # share in (0, 1] of the users to train on
    validate_all: bool = True  # whether `users_share` leaves the validation of all users alone
    seed: int = 2020  # of the draw of those users

    def __post_init__(self):
        check_types(self)
        given = tuple(self.datasets) if isinstance(self.datasets, list | tuple) else (self.datasets,)
        if not given:
            raise InputError("Corpus.datasets = [] names no dataset")
        for part in given:
            if not isinstance(part, Dataset | str | Path):
                raise InputError(f"Corpus.datasets holds a {type(part).__name__}, neither a Dataset nor a folder")
        if self.negatives_from not in (OWN, ALL):
            raise InputError(f"Corpus.negatives_from = {self.negatives_from!r} is neither {OWN!r} nor {ALL!r}")
        if self.shares is not None and (len(self.shares) != len(given) or min(self.shares) <= 0):
            raise InputError(f"Corpus.shares = {list(self.shares)} must hold a number above 0 for each of "
                             f"{len(given)} datasets")  # fmt: skip
        if not 0 < self.users_share <= 1:
            raise InputError(f"Corpus.users_share = {self.users_share} is not in (0, 1]")
        opened = tuple((part if isinstance(part, Dataset) else open_dataset(part)).checked for part in given)
        names = [part.name for part in opened]
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"Corpus.datasets has two datasets {name!r}; their folders need different names")
        _check_tokenizers(opened)
        object.__setattr__(self, "datasets", opened)

    @property
    def name(self) -> str:
        """The datasets' names, joined by +."""
        return "+".join(part.name for part in self.datasets)

    def summary(self) -> dict[str, Any]:
        """What results.json says of the data: sizes, and the order of "ties" by dataset."""
        return {"n_users": self.data.n_users, "n_items": self.data.n_items, "n_inters": self.data.n_interactions,
                "ties": {part.name: part.ties for part in self.datasets}}  # fmt: skip

    @cached_property
    def item_starts(self) -> np.ndarray:
        """Rows item_starts[i] + 1 to item_starts[i + 1] are the items of dataset i: [datasets + 1] int64."""
        return _starts([part.n_items for part in self.datasets])

    @cached_property
    def user_starts(self) -> np.ndarray:
        """Users user_starts[i] to user_starts[i + 1] - 1 are those of dataset i: [datasets + 1] int64."""
        return _starts([part.n_users for part in self.datasets])

    @cached_property
    def data(self) -> Dataset:
        """The union of the datasets; the dataset itself where there is one."""
        return self.datasets[0] if len(self.datasets) == 1 else _union(self.datasets, self.item_starts[:-1])

    @cached_property
    def excluded(self) -> np.ndarray:
        """Users left out in training and evaluation: [users] bool."""
        sources = (self.exclude_users_of,) if isinstance(self.exclude_users_of, str) else self.exclude_users_of
        excluded = is_user_in(self.data, users_named_in(sources))
        logging.info("%s: %d of %d users left out, named in %s",
                     self.name, excluded.sum(), len(excluded), ", ".join(sources))  # fmt: skip
        return excluded

    def _whole_division(self) -> Split:
        """The split of the union, made of each dataset's own, on all of its users."""
        parts = [self.split(part) for part in self.datasets]
        if len(parts) == 1:
            return parts[0]
        lengths = np.concatenate([part.train_lengths for part in parts])
        valid, test = [part.valid for part in parts], [part.test for part in parts]
        return Split(lengths, self._union_targets(valid), self._union_targets(test))

    @cached_property
    def division(self) -> Split:
        """The split of the union on the users that the settings leave."""
        division = self._whole_division()
        if self.exclude_users_of:
            division = splits.without_users(division, self.excluded)
        if self.users_share < 1:
            division = splits.share_of_users(division, self.users_share, self.seed, self.validate_all)
        return division

    def check_targets(self, parts: Sequence[str] = ("valid", "test")) -> None:
        """Refuses, by an InputError, a corpus without targets in one of the parts that are needed."""
        for part in parts:
            if not len(getattr(self.division, part).users):
                setting, reason = self._why_no_target(part)
                raise InputError(f"{self.data.folder}: Corpus.{setting} leaves no target in {part}, so there is "
                                 f"nothing to measure: {reason}")  # fmt: skip

    def _why_no_target(self, part: str) -> tuple[str, str]:
        """The setting that leaves a part without targets, and the reason with the remedy."""
        users = getattr(self._whole_division(), part).users
        if len(users) and self.exclude_users_of and self.excluded[users].all():
            named = f"all {len(np.unique(users)):,} users who have one are named there"
            return "exclude_users_of", f"{named}; name fewer users"
        if len(users) and part == "valid" and self.users_share < 1 and not self.validate_all:
            return "users_share", "none of the users drawn has one; raise it, or set Corpus.validate_all = True"
        if describe(self.split)["name"] == splits.global_cut.__name__:
            alone = f"no user has an interaction in the time of {part} and another one before it"
            return "split", f"{alone}; raise global_cut.{part}, or bind SPLIT = @leave_one_out"
        longest = np.diff(self.data.offsets).max()
        if longest >= 3:
            return "split", "it puts no interaction there; bind another SPLIT"
        return "split", (
            f"of its {self.data.n_users:,} users the longest history has {longest:,} interactions, and three are "
            "needed, to train on, to validate with and to test with; give more data"
        )

    def _union_targets(self, targets: Sequence[Targets]) -> Targets:
        users = [part.users + first for part, first in zip(targets, self.user_starts[:-1], strict=True)]
        return Targets(np.concatenate(users), np.concatenate([part.positions for part in targets]))

    @cached_property
    def train(self) -> TrainInteractions:
        """The interactions to train on."""
        return splits.train_interactions(self.data, self.division)

    @cached_property
    def group_ids(self) -> np.ndarray | None:
        """Items of one number compete: [n_items + 1] int32, 0 for padding, then from 1; None where all compete."""
        if len(self.datasets) == 1 or self.negatives_from == ALL:
            return None
        groups = np.repeat(np.arange(1, len(self.datasets) + 1), np.diff(self.item_starts))
        return np.concatenate([[0], groups]).astype(np.int32)

    @cached_property
    def n_groups(self) -> int:
        """Number of groups of competing items."""
        return 1 if self.group_ids is None else int(self.group_ids.max())

    @cached_property
    def user_groups(self) -> np.ndarray | None:
        """Which of `mixture_shares` a user's interactions count to: [users] int64; None for one dataset."""
        return np.repeat(np.arange(len(self.datasets)), np.diff(self.user_starts)) if len(self.datasets) > 1 else None

    @cached_property
    def mixture_shares(self) -> tuple[float, ...] | None:
        """Shares of an epoch's targets, for each number of `user_groups`."""
        return None if self.shares is None else tuple(self.shares)

    def part_targets(self, part: int, targets: Targets) -> Targets:
        """The targets of one dataset's users, as rows of that dataset."""
        if len(self.datasets) == 1:
            return targets
        first, end = self.user_starts[part : part + 2]
        inside = (targets.users >= first) & (targets.users < end)
        return Targets(targets.users[inside] - first, targets.positions[inside])

    def part_rows(self, part: int) -> np.ndarray:
        """Rows of the union's catalog that make one dataset's, padding first: [n_items of it + 1] int64."""
        first, end = self.item_starts[part : part + 2]
        return np.concatenate([[0], np.arange(first + 1, end + 1)])

    def replaced(self, **computed: Any) -> Self:
        """A copy in which computed values are given, such as `division` or `group_ids`; those that follow from them are
        computed anew. So are all where `datasets` are given: two may have one name; two tokenizers are an InputError.
        """
        other = copy.copy(self)
        if "datasets" in computed:
            _check_tokenizers(computed["datasets"])
            other = object.__new__(type(self))
            other.__dict__.update({field.name: getattr(self, field.name) for field in fields(self)})
        for name, source in (("train", "division"), ("n_groups", "group_ids")):
            if source in computed:
                other.__dict__.pop(name, None)
        other.__dict__.update(computed)
        return other

    def settings(self) -> dict[str, Any]:
        """What is trained on, as JSON: equal for the same interactions and the same settings, wherever they lie."""
        settings: dict[str, Any] = {
            "datasets": [part.digest() for part in self.datasets], "split": describe(self.split),
            "shares": describe(self.mixture_shares), "negatives_from": self.negatives_from,
        }  # fmt: skip
        if self.exclude_users_of:
            settings["exclude_users_of"] = hashlib.sha256(np.packbits(self.excluded).tobytes()).hexdigest()
        if self.users_share < 1:
            settings |= {"users_share": self.users_share, "validate_all": self.validate_all, "seed": self.seed}
        return settings


class UnionItems(NamedTuple):
    """All users' items, one dataset after the other, as FlatItems has them for one."""

    parts: tuple[Items, ...]
    starts: np.ndarray  # [datasets] int64, flat position of each one's first item
    shifts: np.ndarray  # [datasets] int32, what is added to each one's item rows

    def take(self, indices: np.ndarray) -> np.ndarray:
        """Items at flat positions: [n] int64 -> [n] int32."""
        part = np.searchsorted(self.starts, indices, side="right") - 1
        items = np.empty(len(indices), np.int32)
        for ordinal, of_part in enumerate(self.parts):
            inside = part == ordinal
            items[inside] = of_part.take(indices[inside] - self.starts[ordinal]) + self.shifts[ordinal]
        return items


def _starts(sizes: Sequence[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def _check_tokenizers(parts: Sequence[Dataset]) -> None:
    for part in parts[1:]:
        if (part.tokenizer_sha256, part.vocab_size) != (parts[0].tokenizer_sha256, parts[0].vocab_size):
            raise InputError(
                f"Corpus.datasets: {part.folder} was made with another tokenizer than {parts[0].folder}; make both "
                f"again with the same TOKENIZER, such as --gin_bindings=\"TOKENIZER='{parts[0].folder}'\", or train "
                "one over their sources with gin/etl_tokenizer.gin")  # fmt: skip


def _union(parts: Sequence[Dataset], item_shifts: np.ndarray) -> Dataset:
    """Reads several datasets as one, with every text feature once, in the order in which the datasets bring them."""
    flat_starts = _starts([part.n_interactions for part in parts])
    offsets = [part.offsets[1:] + start for part, start in zip(parts, flat_starts, strict=False)]
    features: dict[str, Any] = {}
    for feature in (feature for part in parts for feature in part.manifest["features"]):
        features.setdefault(feature["name"], feature)
    ties = {n: sum(part.ties[n] for part in parts) for n in ("neighbours", "of")}
    manifest = {
        "features": list(features.values()), "tokenizer": parts[0].manifest["tokenizer"],
        "ties": {"order": "+".join(dict.fromkeys(part.ties["order"] for part in parts))} | ties,
        "checksums": {str(ordinal): part.digest() for ordinal, part in enumerate(parts)},
    }  # fmt: skip
    catalogs = [part.items_table.slice(int(ordinal > 0)) for ordinal, part in enumerate(parts)]  # one row of padding
    try:
        items = pa.concat_tables(catalogs, promote_options="default")
    except pa.ArrowException as error:
        raise InputError(f"Corpus.datasets: columns of one name have different types ({in_short(error)})") from error
    union = Dataset(
        Path("+".join(part.name for part in parts)), manifest, np.concatenate([np.zeros(1, np.int64), *offsets]),
        UnionItems(tuple(part.items for part in parts), flat_starts[:-1], item_shifts.astype(np.int32)),
        pa.concat_tables([part.interactions_table.select(["user_id"]) for part in parts]), items,
    )  # fmt: skip
    union.__dict__["checked"] = union  # as its parts are
    return union


def users_named_in(sources: Sequence[str]) -> pa.Array:
    """Ids of users, each once: those of dataset folders, or of text files of an id a line; else an InputError."""
    ids = [pa.array([], pa.string())]
    for source in map(Path, sources):
        if source.is_file():
            try:
                ids.append(pa.array(source.read_text(encoding="utf-8").split("\n"), pa.string()))
            except (OSError, ValueError) as error:
                raise InputError(f"{source}: is no text file of user ids ({in_short(error)})") from error
        else:
            ids.append(open_dataset(source, verify=True).interactions_table["user_id"].combine_chunks())
    return pa.concat_arrays(ids).unique()


def is_user_in(data: Dataset, ids: pa.Array) -> np.ndarray:
    """Which users of a dataset have one of the ids: [users] bool."""
    found = pc.is_in(data.interactions_table["user_id"], value_set=ids)
    return found.combine_chunks().to_numpy(zero_copy_only=False)
