"""What a step costs as the compiler plans it, and what the machine gives."""

import resource
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import psutil

from seqrec_jax.host_memory import free_memory


def compiled_flops(compiled: jax.stages.Compiled) -> float:
    """Floating-point operations of one call, over all devices, from the compiler's cost analysis; nan where it tells
    none."""
    analysis: Any = compiled.cost_analysis()
    if isinstance(analysis, list):
        analysis = analysis[0] if analysis else None
    return float((analysis or {}).get("flops", float("nan"))) * jax.device_count()


def compiled_bytes(compiled: jax.stages.Compiled) -> int:
    """Memory of one device while a call runs: arguments, results and temporary buffers, as the compiler plans them."""
    plan: Any = compiled.memory_analysis()
    held = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
    return int(held + plan.temp_size_in_bytes)


def device_bytes() -> int:
    """Memory of one device; on a CPU, an equal share of what is free."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    return int(stats.get("bytes_limit") or free_memory() // jax.local_device_count())


def matmul_peak(dtype: str) -> float:
    """Floating-point operations a second of all devices together, each multiplying large matrices.

    What model FLOPs utilisation is measured against. It is taken from one device; simulated devices of a CPU share its
    cores, so there it counts once.
    """
    on_cpu = jax.default_backend() == "cpu"
    size = 1024 if on_cpu else 16384
    square = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(square, square))
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        jax.block_until_ready(product(square, square))
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best * (jax.process_count() if on_cpu else jax.device_count())


def memory_in_use() -> dict[str, float]:
    """Gigabytes: of the process now and at most, and of its first device at most where that is known."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    used = {"host_memory_gb": psutil.Process().memory_info().rss / 1e9, "host_memory_peak_gb": most / 1e9}
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        used["device_memory_peak_gb"] = stats["peak_bytes_in_use"] / 1e9
    return used
