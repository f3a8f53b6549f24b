"""What a step costs as the compiler plans it, and what the machine gives."""

import resource
import sys
import timeit
from typing import Any

import jax
import jax.numpy as jnp
import psutil

from seqrec_jax.errors import InputError
from seqrec_jax.host_memory import free_memory, memory_bytes


def compiled_bytes(compiled: jax.stages.Compiled) -> int:
    """Memory of one device while a call runs: arguments, results and temporary buffers, as the compiler plans them."""
    plan: Any = compiled.memory_analysis()
    kept = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
    return int(kept + plan.temp_size_in_bytes)


def device_bytes(limit: str | int | None = None) -> int:
    """Bytes of one device, on a CPU an equal share of what is free; or `limit`, such as '8GB', else an InputError."""
    if limit is not None:
        return memory_bytes(limit, "RunSettings.memory_limit")
    stats = jax.local_devices()[0].memory_stats() or {}
    return int(stats.get("bytes_limit") or free_memory() // jax.local_device_count())


def check_memory(step_bytes: int, limit: int) -> None:
    """Refuses a step that needs more bytes than a device has, with an InputError that says what to bind."""
    if step_bytes > limit:
        raise InputError(f"a step needs {step_bytes / 1e9:.3g} GB of memory, but a device has {limit / 1e9:.3g} GB; "
                         "bind TrainConfig.train_batch_size = 'auto' or lower it, or TrainConfig.accumulation_steps, "
                         "or TrainConfig.rematerialize = True")  # fmt: skip


def matmul_peak(dtype: str) -> float:
    """Floating-point operations a second of all devices together, each multiplying large matrices of `dtype`.

    It is taken from one device; simulated devices of a CPU share its cores, so there it counts once.
    """
    on_cpu = jax.default_backend() == "cpu"
    size = 1024 if on_cpu else 16384
    square = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.matmul)
    seconds = timeit.repeat(lambda: jax.block_until_ready(product(square, square)), number=1, repeat=4)
    return 2 * size**3 / min(seconds[1:]) * (jax.process_count() if on_cpu else jax.device_count())


def memory_in_use() -> dict[str, float]:
    """Gigabytes of the process, now and at most, and of its first device at most where that is known."""
    now = psutil.Process().memory_info().rss
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    used = {"host_memory_gb": now / 1e9, "host_memory_peak_gb": max(now, most) / 1e9}  # the kernel counts `most` late
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        used["device_memory_peak_gb"] = stats["peak_bytes_in_use"] / 1e9
    return used
