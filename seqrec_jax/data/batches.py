"""Batches of packed rows: one documented structure from here to the loss and the ranking."""

import itertools
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np

from seqrec_jax.data import packing
from seqrec_jax.data.corpus import Corpus
from seqrec_jax.data.packing import Packing, Windows
from seqrec_jax.data.store import ranges
from seqrec_jax.errors import InputError

Item = TypeVar("Item")


class Batch(NamedTuple):
    """One step's input. The first axis of every array is split over devices; indices are local to a device's share."""

    items: np.ndarray  # [distinct] int32, the distinct catalog items of inputs and targets, filled up with 0
    inputs: np.ndarray  # [rows, length] int32, places in `items`
    segments: np.ndarray  # [rows, length] int32, from 1 in each row, 0 for padding; a position attends within its own
    positions: np.ndarray  # [rows, length] int32, counted from the segment's start
    slots: np.ndarray  # [slots] int32, flattened places (row * length + column) whose output is scored
    targets: np.ndarray  # [slots] int32, places in `items` of what comes next
    weights: np.ndarray  # [slots] float32, 1 for a target and 0 for padding


class Mixture(NamedTuple):
    """How often an epoch reads the windows of each of several datasets."""

    groups: np.ndarray  # [windows] int64, the dataset of each window
    times: np.ndarray  # [datasets] float64, how often a window occurs in an epoch, on average

    @staticmethod
    def of_shares(groups: np.ndarray, lengths: np.ndarray, shares: Sequence[float]) -> "Mixture":
        """Gives each dataset its share, in any unit, of an epoch's targets, as many as all windows have.

        `groups` and `lengths`, [windows] int64, are the dataset and the targets of each window.
        """
        targets = np.bincount(groups, lengths, minlength=len(shares))
        parts = np.asarray(shares, np.float64) / np.sum(shares)
        return Mixture(groups, parts * targets.sum() / np.maximum(targets, 1))

    def quotas(self, lengths: np.ndarray) -> dict[int, list[tuple[np.ndarray, int]]]:
        """For each length, of each dataset its windows and how many places they have in an epoch."""
        quotas: dict[int, list[tuple[np.ndarray, int]]] = {}
        for group, times in enumerate(self.times):
            mine = np.flatnonzero(self.groups == group)
            mine = mine[np.argsort(lengths[mine], kind="stable")]
            for windows in np.split(mine, np.flatnonzero(np.diff(lengths[mine])) + 1):
                if len(windows):
                    quotas.setdefault(int(lengths[windows[0]]), []).append((windows, round(times * len(windows))))
        return quotas

    def lengths_of_places(self, lengths: np.ndarray) -> np.ndarray:
        """Lengths of an epoch's windows, for the packing."""
        quotas = self.quotas(lengths)
        return np.repeat(list(quotas), [sum(places for _, places in parts) for parts in quotas.values()])


def _draw(rng: np.random.Generator | None, windows: np.ndarray, places: int) -> np.ndarray:
    """Windows for so many places: each as often as the others, up to one."""
    times, rest = divmod(places, len(windows))
    order = windows if rng is None or not places else rng.permutation(windows)
    return np.concatenate([np.tile(windows, times), order[:rest]])


class PackedBatches:
    """Batches of windows laid out by a packing: random access by step, deterministic in (seed, step).

    Every epoch has the same number of steps and every batch the same shapes. A step's rows are drawn one from each of
    `rows` strata of equal size, from rows of few windows to rows of many, which bounds the distinct items of a step.

    `take` gives items at flat positions, [n] int64 -> [n] int32 (FlatItems.take). `packing` has places for the windows,
    made from their lengths. A batch has `rows`, and as many empty ones as make them a multiple of the devices,
    `shards`, so that any number of devices has the same batches. `last_only` scores each window's last position alone.
    Without a seed all epochs have one order, for evaluation. A mixture says how often windows occur, where the packing
    has places for that; without one each occurs once.
    """

    def __init__(
        self, take: Callable[[np.ndarray], np.ndarray], windows: Windows, packing: Packing, *, rows: int,
        shards: int = 1, last_only: bool = False, seed: int | None = None, mixture: Mixture | None = None,
    ):  # fmt: skip
        padding = -rows % shards
        self.windows, self.packing, self.shards, self.last_only = windows, packing, shards, last_only
        self.rows, self.steps_per_epoch = rows + padding, max(1, -(-packing.n_rows // rows))
        self._take, self._seed, empty = take, seed, self.steps_per_epoch * rows
        self._windows_by_length = np.argsort(windows.lengths, kind="stable")
        self._quotas = None if mixture is None else mixture.quotas(windows.lengths)
        self._places_by_row = np.argsort(packing.rows, kind="stable")
        per_row = np.bincount(packing.rows, minlength=empty + 1)
        self._first_place = np.concatenate([[0], np.cumsum(per_row)])
        self._strata = np.argsort(per_row[:empty], kind="stable").reshape(rows, self.steps_per_epoch)
        self._padding = np.full((padding, self.steps_per_epoch), empty)
        most = np.concatenate([per_row[self._strata].max(axis=1), np.zeros(padding, np.int64)])
        self.max_windows_per_shard = max(1, int(most.reshape(-1, shards).sum(axis=0).max()))
        self._epoch, self._order = -1, self._draw_order(None)

    @property
    def n_targets(self) -> int:
        """Targets of an epoch."""
        return len(self.packing.lengths) if self.last_only else int(self.packing.lengths.sum())

    def _draw_order(self, rng: np.random.Generator | None) -> tuple[np.ndarray, np.ndarray]:
        """Which window lies in which place, and which rows make which step, for one epoch."""
        window_of_place = self._windows_by_length.copy()
        if self._quotas is not None:
            drawn = [_draw(rng, *part) for length in sorted(self._quotas) for part in self._quotas[length]]
            window_of_place = np.concatenate(drawn)
        if rng is None:
            return window_of_place, np.concatenate([self._strata, self._padding]).T
        bounds = np.searchsorted(self.packing.lengths, np.arange(self.packing.row_length + 2))
        for first, last in itertools.pairwise(bounds):
            rng.shuffle(window_of_place[first:last])
        return window_of_place, np.concatenate([rng.permuted(self._strata, axis=1), self._padding]).T

    def _places_of(self, step: int, local: range | None = None) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Of each shard the places in its rows, and for each of them the row's ordinal and the window there."""
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        if self._seed is not None and epoch != self._epoch:
            self._order, self._epoch = self._draw_order(np.random.default_rng([self._seed, epoch])), epoch
        window_of_place, step_rows = self._order
        found = []
        for shard in range(self.shards) if local is None else local:
            rows = step_rows[step_of_epoch].reshape(-1, self.shards)[:, shard]
            firsts, counts = self._first_place[rows], self._first_place[rows + 1] - self._first_place[rows]
            places = self._places_by_row[ranges(firsts, counts)]
            found.append((places, np.repeat(np.arange(len(rows)), counts), window_of_place[places]))
        return found

    def windows_of(self, step: int) -> list[np.ndarray]:
        """Windows of each shard of a step, in the order of the batch's slots where last_only is set."""
        return [windows for _, _, windows in self._places_of(step)]

    def batch(self, step: int, local: range | None = None) -> Batch:
        """The batch of a step, counted from the start of the run; of the shards `local` of one host, or of all."""
        shards = [self._shard(*places) for places in self._places_of(step, local)]
        return shards[0] if len(shards) == 1 else Batch(*(np.concatenate(part) for part in zip(*shards, strict=True)))

    def _shard(self, places: np.ndarray, row: np.ndarray, windows: np.ndarray) -> Batch:
        starts, lengths = self.windows.starts[windows], self.windows.lengths[windows]
        shape = (self.rows // self.shards, self.packing.row_length)
        n_cells, n_slots = shape[0] * shape[1], self.max_windows_per_shard
        flat = ranges(starts, lengths)
        cells = ranges(row * shape[1] + self.packing.offsets[places], lengths)
        last = np.cumsum(lengths) - 1
        distinct, where = np.unique(self._take(np.concatenate([flat, starts + lengths])), return_inverse=True)
        inputs_where, ends_where = where[: len(flat)], where[len(flat) :]
        items = np.zeros(n_cells + n_slots, np.int32)
        items[: len(distinct)] = distinct
        inputs, segments, positions = (np.zeros(n_cells, np.int32) for _ in range(3))
        inputs[cells] = inputs_where
        segments[cells] = np.repeat(np.arange(1, len(windows) + 1), lengths)
        positions[cells] = ranges(np.zeros_like(lengths), lengths)
        if self.last_only:
            slots, targets = np.zeros(n_slots, np.int32), np.zeros(n_slots, np.int32)
            slots[: len(windows)], targets[: len(windows)] = cells[last], ends_where
            weights = (np.arange(n_slots) < len(windows)).astype(np.float32)
        else:
            slots, targets = np.arange(n_cells, dtype=np.int32), np.zeros(n_cells, np.int32)
            targets[cells] = np.roll(inputs_where, -1)
            targets[cells[last]] = ends_where
            weights = (segments > 0).astype(np.float32)
        return Batch(items, inputs.reshape(shape), segments.reshape(shape), positions.reshape(shape),
                     slots, targets, weights)  # fmt: skip


def training_batches(
    corpus: Corpus, *, batch_size: int, loss_positions: str, max_length: int, shards: int, seed: int,
    accumulation_steps: int = 1,
) -> PackedBatches:  # fmt: skip
    """Batches of about `batch_size` targets, over all devices, of what a corpus trains on.

    `loss_positions` are "all": packed rows, a target at every position; or "last": RecBole's scheme, a padded prefix
    for each target. The model reads up to `max_length` items at once. Each of the devices, `shards`, takes its share in
    `accumulation_steps` parts. `seed` is that of the epochs' orders. An InputError where a device would have no row, or
    nothing is there to train on.
    """
    if loss_positions not in ("all", "last"):
        raise InputError(f"TrainConfig.loss_positions = {loss_positions!r} is neither 'all' nor 'last'")
    shards *= accumulation_steps
    last_only = loss_positions == "last"
    rows = batch_size if last_only else batch_size // max_length
    if rows < shards:
        raise InputError(
            f"TrainConfig.train_batch_size = {batch_size} is less than a row for each of {shards} devices"
            + " and TrainConfig.accumulation_steps" * (accumulation_steps > 1)
            + f"; set at least {shards * (1 if last_only else max_length)}"
        )
    data, division = corpus.data, corpus.division
    windows = (packing.prefixes if last_only else packing.all_positions)(data.offsets, division, max_length)
    if not len(windows.lengths):
        raise InputError(f"{data.folder}: no user has two training interactions, so there is nothing to train on")
    mixture, lengths = None, windows.lengths
    if corpus.user_groups is not None and corpus.mixture_shares is not None:
        users = np.searchsorted(data.offsets, windows.starts, side="right") - 1
        targets = np.ones_like(lengths) if last_only else lengths
        mixture = Mixture.of_shares(corpus.user_groups[users], targets, corpus.mixture_shares)
        lengths = mixture.lengths_of_places(lengths)
    layout = packing.one_per_row(lengths, max_length) if last_only else packing.pack(lengths, batch_size // rows)
    return PackedBatches(data.items.take, windows, layout, rows=rows, shards=shards, last_only=last_only, seed=seed,
                         mixture=mixture)  # fmt: skip


def prefetch(make: Callable[[int], Item], steps: range, ahead: int = 2) -> Generator[Item, None, None]:
    """Yields make(step) for each step, made in a background thread up to `ahead` steps before it is asked for."""
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
        pending = [pool.submit(make, step) for step in steps[:ahead]]
        for step in steps:
            item = pending.pop(0).result()
            if step + ahead * steps.step in steps:
                pending.append(pool.submit(make, step + ahead * steps.step))
            yield item
