"""How the C library gives memory back, which decides a good part of a step's time on a CPU."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h
TOP_PAD = 64 << 20


def keep_freed_memory() -> None:
    """Makes glibc keep what is freed for the next allocation; does nothing on other systems.

    XLA allocates its buffers anew in every step. By default glibc maps large ones from the kernel and unmaps them when
    they are freed, so that each page of them is faulted in and zeroed again at every step. Call it before the first.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_TOP_PAD, TOP_PAD)


def release_freed_memory() -> None:
    """Gives back what `keep_freed_memory` has kept, between two phases of different needs."""
    if sys.platform.startswith("linux"):
        malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if malloc_trim is not None:
            malloc_trim(0)
