"""Runs pure functions over partitions: on a pool of processes, or on a Dask cluster."""

import multiprocessing
import os
import signal
import threading
import time
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import gin
import psutil

from seqrec_jax.errors import InputError
from seqrec_jax.host_memory import keep_freed_memory, memory_bytes

Result = TypeVar("Result")

_SECONDS_TO_ANSWER = 10

WORKER_BYTES = 400 << 20
"""What a worker needs at most for a block or a partition, its libraries included, measured with room to spare."""


def affordable_processes(wanted: int | None, limit: int, shared_bytes: int) -> int:
    """How many worker processes fit into the memory limit beside the main process, at most `wanted`.

    Args:
        wanted: binding PROCESSES; None for one a core.
        limit: bytes for the whole tree of processes.
        shared_bytes: what every process maps: the table of items.

    Raises:
        InputError: not even one fits, or `wanted` is no positive number.
    """
    if wanted is not None and wanted < 1:
        raise InputError(f"PROCESSES = {wanted}: must be 1 or more")
    main = WORKER_BYTES + shared_bytes
    fitting = (limit - main) // (WORKER_BYTES + shared_bytes)
    if fitting < 1:
        least = (main + WORKER_BYTES + shared_bytes) / 1e9
        raise InputError(f"MEMORY_LIMIT = {limit / 1e9:.2f} GB is too little; this catalog needs {least:.2f} GB")
    return min(wanted or os.cpu_count() or 1, fitting)


def _start_worker(parent: int) -> None:
    """Sets a worker up, and ends it soon after its parent, however that one died."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends in good order.
    keep_freed_memory()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class _Interruption:
    """Remembers Ctrl-C, whose exception is lost where a library that runs just then drops it."""

    def __init__(self) -> None:
        self.came = False

    @contextmanager
    def watched_for(self) -> Iterator[None]:
        """Notes the signal, besides raising KeyboardInterrupt."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(number: int, frame: types.FrameType | None) -> None:
            self.came = True
            signal.default_int_handler(number, frame)

        self.came = False
        before = signal.signal(signal.SIGINT, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def check(self) -> None:
        """Raises KeyboardInterrupt where the signal has come."""
        if self.came:
            raise KeyboardInterrupt


_INTERRUPTION = _Interruption()


@gin.configurable
@dataclass(frozen=True)
class Workers:
    """What computes, and in how much memory; nothing here changes what is made.

    Attributes:
        memory_limit: of all processes together, such as '4GB' or '1.5GB'; decides how many there are.
        processes: most worker processes; None for one a core.
        executor: address of a Dask scheduler whose workers see the same files, such as 'tcp://host:8786'; None for
            processes on this machine.
    """

    memory_limit: str | int | float = "4GB"
    processes: int | None = None
    executor: str | None = None

    @contextmanager
    def open(self, shared_bytes: int) -> Iterator[tuple[Executor, int]]:
        """An executor and how many tasks it runs at a time, where every process maps `shared_bytes`.

        Raises:
            InputError: the memory is too little, Dask is not installed, or nobody answers at the address.
        """
        processes = affordable_processes(self.processes, memory_bytes(self.memory_limit), shared_bytes)
        if self.executor is not None:
            with _dask_client(self.executor) as client:
                yield client.get_executor(pure=False), max(1, sum(client.nthreads().values()))
            return
        context = multiprocessing.get_context("spawn")
        with (
            _INTERRUPTION.watched_for(),
            ProcessPoolExecutor(processes, context, _start_worker, (os.getpid(),)) as pool,
        ):
            try:
                yield pool, processes
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise


def _dask_client(address: str) -> Any:
    """A client of the scheduler at an address."""
    try:
        from distributed import Client
    except ImportError as error:
        raise InputError(f"EXECUTOR = {address!r} needs Dask: pip install 'seqrec-jax[dask]'") from error
    try:
        return Client(address, timeout=_SECONDS_TO_ANSWER)
    except (OSError, ValueError) as error:
        raise InputError(f"EXECUTOR = {address!r}: no Dask scheduler answers there") from error


def in_order(
    executor: Executor,
    at_a_time: int,
    function: Callable[..., Result],
    tasks: Iterable[tuple[str, tuple[Any, ...], Result | None]],
    commit: Callable[[str, Result], None],
) -> Iterator[Result]:
    """The results of named tasks in their order; tasks are drawn as workers come free, so few are held at a time.

    Args:
        executor: runs them.
        at_a_time: how many it runs at a time.
        function: a pure function that writes its output whole or not at all.
        tasks: name and arguments of each, and its result where an earlier run has finished it.
        commit: is called with each new result, in order.

    Raises:
        InputError: a worker was killed.
    """
    pending: deque[tuple[str, Future[Result] | Result]] = deque()

    def settle() -> Result:
        name, outcome = pending.popleft()
        _INTERRUPTION.check()
        if isinstance(outcome, Future):
            result = outcome.result()
            commit(name, result)
            return result
        return outcome

    try:
        for name, arguments, result in tasks:
            pending.append((name, executor.submit(function, *arguments) if result is None else result))
            if len(pending) > at_a_time + 1:
                yield settle()
        while pending:
            yield settle()
    except BrokenProcessPool as error:
        raise InputError(
            "a worker was killed, perhaps for want of memory; the same command goes on from what is finished, "
            "with fewer PROCESSES if this happens again"
        ) from error
    finally:
        for _, outcome in pending:
            if isinstance(outcome, Future):
                outcome.cancel()


class PeakMemory:
    """Largest resident memory of this process and its children together, sampled ten times a second.

    Looking for new children takes a while, so that is done once a second.
    """

    def __init__(self) -> None:
        self._peak, self._processes = 0, [psutil.Process()]
        threading.Thread(target=self._watch, daemon=True).start()

    @property
    def bytes(self) -> int:
        """Since the last restart."""
        self._sample()
        return self._peak

    def restart(self) -> None:
        """Forgets what was seen before."""
        self._peak = 0

    def _watch(self) -> None:
        while True:
            self._processes = [self._processes[0], *self._processes[0].children(recursive=True)]
            for _ in range(10):
                self._sample()
                time.sleep(0.1)

    def _sample(self) -> None:
        total = 0
        for process in self._processes:
            try:
                total += process.memory_info().rss
            except psutil.Error:  # It ended meanwhile.
                continue
        self._peak = max(self._peak, total)
