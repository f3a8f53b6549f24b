"""Memory of the host: amounts as users write them, what is free, and what the C library gives back."""

import ctypes
import re
import sys
from collections.abc import Callable
from pathlib import Path

from seqrec_jax.errors import InputError

_UNITS = {"gib": 1 << 30, "mib": 1 << 20, "gb": 10**9, "mb": 10**6, None: 1}
_CONTROL_GROUP = Path("/sys/fs/cgroup")

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8  # of glibc's malloc.h
TOP_PAD = 64 << 20
ARENAS = 2


def _glibc(name: str) -> Callable[..., object]:
    """A function of glibc; on other systems, one that does nothing."""
    return getattr(ctypes.CDLL(None) if sys.platform.startswith("linux") else None, name, lambda *arguments: None)


def keep_freed_memory() -> None:
    """Makes glibc keep what is freed for the next allocation; does nothing on other systems.

    XLA allocates its buffers anew in every step. By default glibc unmaps large ones when they are freed, so that each
    of their pages is faulted in and zeroed again at every step. And it gives each thread an arena of its own, so that
    what short-lived threads free, as at checkpoints, would be kept many times over. Call it before the first step.
    """
    kept = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: TOP_PAD, M_ARENA_MAX: ARENAS}
    for option, value in kept.items():
        _glibc("mallopt")(option, value)


def release_freed_memory() -> None:
    """Gives back what `keep_freed_memory` has kept, between two phases of different needs."""
    _glibc("malloc_trim")(0)


def memory_bytes(limit: str | int | float, binding: str = "MEMORY_LIMIT") -> int:
    """Bytes of an amount of memory: '4GB', '1.5 GiB', '800MB', or a number; InputError, with the binding, if none."""
    if not isinstance(limit, str):
        return int(limit)
    match = re.fullmatch(r"([\d.]+)\s*(gib|mib|gb|mb)?", limit.strip().lower())
    try:
        return int(float(match[1]) * _UNITS[match[2]]) if match else int(limit)
    except ValueError as error:
        raise InputError(f"{binding} = {limit!r}: is no amount of memory; write '4GB' or '800MB'") from error


def free_memory() -> int:
    """Bytes that this process may still take: of the machine, or of the container that it runs in."""
    import psutil

    free = psutil.virtual_memory().available
    try:
        most = (_CONTROL_GROUP / "memory.max").read_text().strip()
        used = int((_CONTROL_GROUP / "memory.current").read_text())
    except (OSError, ValueError):
        return free
    return free if most == "max" else min(free, max(0, int(most) - used))
