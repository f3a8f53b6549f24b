"""Batches of packed rows: one documented structure from here to the loss and the ranking."""

import itertools
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np

from seqrec_jax.data.packing import Packing, Windows
from seqrec_jax.data.split import ranges

Item = TypeVar("Item")


class Batch(NamedTuple):
    """One step's input. The first axis of every array is split over devices; indices are local to a device's share.

    Attributes:
        items: [distinct] int32, the distinct catalog items of inputs and targets, filled up with 0.
        inputs: [rows, length] int32, places in `items`.
        segments: [rows, length] int32, from 1 in each row; 0 is padding. A position attends within its segment.
        positions: [rows, length] int32, counted from the segment's start.
        slots: [slots] int32, flattened places (row * length + column) whose output is scored.
        targets: [slots] int32, places in `items` of what comes next.
        weights: [slots] float32, 1 for a target and 0 for padding.
    """

    items: np.ndarray
    inputs: np.ndarray
    segments: np.ndarray
    positions: np.ndarray
    slots: np.ndarray
    targets: np.ndarray
    weights: np.ndarray


class Mixture(NamedTuple):
    """How often an epoch reads the windows of each of several datasets.

    Attributes:
        groups: [windows] int64, the dataset of each window.
        times: [datasets] float64, times that a window occurs in an epoch, on average.
    """

    groups: np.ndarray
    times: np.ndarray

    @staticmethod
    def of_shares(groups: np.ndarray, lengths: np.ndarray, shares: Sequence[float]) -> "Mixture":
        """Gives each dataset its share of an epoch's targets, of which there are as many as all windows have.

        Args:
            groups: [windows] int64.
            lengths: [windows] int64.
            shares: of the datasets, in any unit.
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
                    places = round(times * len(windows))
                    quotas.setdefault(int(lengths[windows[0]]), []).append((windows, places))
        return quotas

    def lengths_of_places(self, lengths: np.ndarray) -> np.ndarray:
        """Lengths of an epoch's windows, for the packing."""
        quotas = self.quotas(lengths)
        return np.repeat(list(quotas), [sum(places for _, places in parts) for parts in quotas.values()])


def _draw(rng: np.random.Generator | None, windows: np.ndarray, places: int) -> np.ndarray:
    """Windows for so many places: each as often as the others, up to one."""
    if not places:
        return windows[:0]
    rest = places % len(windows)
    some = windows[:rest] if rng is None else rng.permutation(windows)[:rest]
    return np.concatenate([np.tile(windows, places // len(windows)), some])


class _Order(NamedTuple):
    """Which window lies in which place, and which rows make which step, for one epoch."""

    window_of_place: np.ndarray
    step_rows: np.ndarray


class PackedBatches:
    """Batches of windows laid out by a packing: random access by step, deterministic in (seed, step).

    Every epoch has the same number of steps and every batch the same shapes. A step's rows are drawn one from each of
    `rows` strata of equal size, from rows of few windows to rows of many, which bounds the distinct items of a step.

    Args:
        take: items at flat positions, [n] int64 -> [n] int32 (FlatItems.take).
        windows: what to lay out.
        packing: places for them, made from their lengths.
        rows: rows of a batch, over all shards; a multiple of `shards`.
        shards: devices that share a batch.
        last_only: score each window's last position only, not every position.
        seed: of the epochs' orders; None keeps the same order, for evaluation.
        mixture: how often windows occur, where the packing has places for that; None for once each.
    """

    def __init__(
        self,
        take: Callable[[np.ndarray], np.ndarray],
        windows: Windows,
        packing: Packing,
        *,
        rows: int,
        shards: int = 1,
        last_only: bool = False,
        seed: int | None = None,
        mixture: Mixture | None = None,
    ):
        self.windows, self.packing, self.rows, self.shards, self.last_only = windows, packing, rows, shards, last_only
        self._take, self._seed = take, seed
        self.steps_per_epoch = max(1, -(-packing.n_rows // rows))
        self._windows_by_length = np.argsort(windows.lengths, kind="stable")
        self._quotas = None if mixture is None else mixture.quotas(windows.lengths)
        self._places_by_row = np.argsort(packing.rows, kind="stable")
        per_row = np.bincount(packing.rows, minlength=self.steps_per_epoch * rows)
        self._first_place = np.concatenate([[0], np.cumsum(per_row)])
        self._strata = np.argsort(per_row, kind="stable").reshape(rows, self.steps_per_epoch)
        most = per_row[self._strata].max(axis=1).reshape(rows // shards, shards).sum(axis=0).max()
        self.max_windows_per_shard = max(1, int(most))
        self._epoch, self._order = -1, self._draw_order(None)

    @property
    def n_targets(self) -> int:
        """Targets of an epoch."""
        return len(self.packing.lengths) if self.last_only else int(self.packing.lengths.sum())

    def _draw_order(self, rng: np.random.Generator | None) -> _Order:
        window_of_place = self._windows_by_length.copy()
        if self._quotas is not None:
            drawn = [_draw(rng, *part) for length in sorted(self._quotas) for part in self._quotas[length]]
            window_of_place = np.concatenate(drawn)
        if rng is None:
            return _Order(window_of_place, self._strata.T)
        bounds = np.searchsorted(self.packing.lengths, np.arange(self.packing.row_length + 2))
        for first, last in itertools.pairwise(bounds):
            rng.shuffle(window_of_place[first:last])
        return _Order(window_of_place, rng.permuted(self._strata, axis=1).T)

    def _order_of(self, epoch: int) -> _Order:
        if self._seed is not None and epoch != self._epoch:
            self._order = self._draw_order(np.random.default_rng([self._seed, epoch]))
            self._epoch = epoch
        return self._order

    def windows_of(self, step: int) -> list[np.ndarray]:
        """Windows of each shard of a step, in the order of the batch's slots where last_only is set."""
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        order = self._order_of(epoch)
        rows = order.step_rows[step_of_epoch].reshape(self.rows // self.shards, self.shards)
        return [order.window_of_place[self._places(rows[:, shard])[0]] for shard in range(self.shards)]

    def _places(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Places in the given rows, and for each the row's ordinal: [places], [places]."""
        firsts, counts = self._first_place[rows], self._first_place[rows + 1] - self._first_place[rows]
        return self._places_by_row[ranges(firsts, counts)], np.repeat(np.arange(len(rows)), counts)

    def batch(self, step: int, local: range | None = None) -> Batch:
        """The batch of a step, which may lie in any epoch.

        Args:
            step: counted from the start of the run.
            local: the shards to make, those of one host; None for all.
        """
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        order = self._order_of(epoch)
        rows = order.step_rows[step_of_epoch].reshape(self.rows // self.shards, self.shards)
        shards = [self._shard(order, rows[:, shard]) for shard in (range(self.shards) if local is None else local)]
        return shards[0] if len(shards) == 1 else Batch(*(np.concatenate(part) for part in zip(*shards, strict=True)))

    def _shard(self, order: _Order, rows: np.ndarray) -> Batch:
        places, row = self._places(rows)
        windows = order.window_of_place[places]
        starts, lengths = self.windows.starts[windows], self.windows.lengths[windows]
        length = self.packing.row_length
        first_cell = row * length + self.packing.offsets[places]

        flat, cells = ranges(starts, lengths), ranges(first_cell, lengths)
        ends = starts + lengths
        n_inputs = len(flat)
        distinct, where = np.unique(self._take(np.concatenate([flat, ends])), return_inverse=True)
        inputs_where, ends_where = where[:n_inputs], where[n_inputs:]
        last = np.cumsum(lengths) - 1
        targets_where = np.empty_like(inputs_where)
        targets_where[:-1] = inputs_where[1:]
        targets_where[last] = ends_where

        n_cells = len(rows) * length
        items = np.zeros(n_cells + self.max_windows_per_shard, np.int32)
        items[: len(distinct)] = distinct
        inputs, segments, positions = (np.zeros(n_cells, np.int32) for _ in range(3))
        inputs[cells] = inputs_where
        segments[cells] = np.repeat(np.arange(1, len(windows) + 1), lengths)
        positions[cells] = ranges(np.zeros_like(lengths), lengths)
        if self.last_only:
            n_slots = self.max_windows_per_shard
            slots, targets = np.zeros(n_slots, np.int32), np.zeros(n_slots, np.int32)
            slots[: len(windows)] = cells[last]
            targets[: len(windows)] = ends_where
            weights = (np.arange(n_slots) < len(windows)).astype(np.float32)
        else:
            slots, targets = np.arange(n_cells, dtype=np.int32), np.zeros(n_cells, np.int32)
            targets[cells] = targets_where
            weights = (segments > 0).astype(np.float32)
        shape = (len(rows), length)
        return Batch(
            items, inputs.reshape(shape), segments.reshape(shape), positions.reshape(shape), slots, targets, weights
        )


def prefetch(make: Callable[[int], Item], steps: range, ahead: int = 2) -> Generator[Item, None, None]:
    """Yields make(step) for each step, made in a background thread up to `ahead` steps before it is asked for."""
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
        pending = [pool.submit(make, step) for step in steps[:ahead]]
        for step in steps:
            item = pending.pop(0).result()
            if step + ahead * steps.step in steps:
                pending.append(pool.submit(make, step + ahead * steps.step))
            yield item
