"""Memory of the host: amounts as users write them, what is free, and what the C library gives back."""

import ctypes
import re
import sys
from pathlib import Path

from seqrec_jax.errors import InputError

_UNITS = {"gib": 1 << 30, "mib": 1 << 20, "gb": 10**9, "mb": 10**6, None: 1}
_CONTROL_GROUP = Path("/sys/fs/cgroup")

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8  # of glibc's malloc.h
TOP_PAD = 64 << 20
ARENAS = 2


def keep_freed_memory() -> None:
    """Makes glibc keep what is freed for the next allocation; does nothing on other systems.

    XLA allocates its buffers anew in every step. By default glibc maps large ones from the kernel and unmaps them when
    they are freed, so that each page of them is faulted in and zeroed again at every step. And it gives each thread an
    arena of its own, so that what short-lived threads free (those of checkpoints, say) would be kept many times over;
    two are enough. Call it before the first step.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_TOP_PAD, TOP_PAD)
        mallopt(M_ARENA_MAX, ARENAS)


def release_freed_memory() -> None:
    """Gives back what `keep_freed_memory` has kept, between two phases of different needs."""
    if sys.platform.startswith("linux"):
        malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if malloc_trim is not None:
            malloc_trim(0)


def memory_bytes(limit: str | int | float, binding: str = "MEMORY_LIMIT") -> int:
    """Bytes of an amount of memory: '4GB', '1.5 GiB', '800MB', or a number of bytes.

    Args:
        limit: the amount.
        binding: that it comes from, for the message.

    Raises:
        InputError: it is none of these.
    """
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
