"""Several hosts as one run: JAX's own runtime, joined before anything else."""

import logging as std_logging
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

from absl import flags, logging

from seqrec_jax.errors import InputError, Interrupted, in_short

SECONDS_TO_JOIN = 45
SECONDS_TO_MISS = 30  # after so long without a sign of life from a host the others end

_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "host:port of the first process, where several hosts make one run; 'auto' asks SLURM, "
    "Open MPI or Kubernetes."
)  # fmt: skip
_PROCESSES = flags.DEFINE_integer("num_processes", None, "Processes of the run, with --coordinator=host:port.")
_PROCESS = flags.DEFINE_integer("process_id", None, "This process's number, from 0, with --coordinator=host:port.")


def _give_up(address: str, process: int | None) -> None:
    """Ends the process with a line of what to do; JAX's own client would abort it without one."""
    if process == 0:
        what = f"the other processes of --coordinator={address} did not join"
        hint = "start them on their hosts, with --process_id from 1"
    else:
        what = f"--coordinator={address} could not be reached"
        hint = "start the process with --process_id=0 on that host, and see that the port is open"
    print(f"error: {what} within {SECONDS_TO_JOIN} seconds; {hint}", file=sys.stderr, flush=True)
    os._exit(2)


def join() -> None:
    """Joins the run that the flags name, without which this process is the run; InputError where that cannot be."""
    address, n_processes, process = _COORDINATOR.value, _PROCESSES.value, _PROCESS.value
    if address is None:
        if n_processes is not None or process is not None:
            raise InputError("--num_processes and --process_id need --coordinator=host:port")
        return
    where: dict[str, Any] = {"coordinator_address": address, "num_processes": n_processes, "process_id": process}
    if address == "auto":
        where = {}
    elif n_processes is None or process is None or not 0 <= process < n_processes or ":" not in address:
        raise InputError(f"--coordinator={address} wants host:port, and --num_processes and --process_id below it")
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    alarm = threading.Timer(SECONDS_TO_JOIN, _give_up, (address, process))
    alarm.daemon = True
    alarm.start()
    try:
        jax.distributed.initialize(
            **where, initialization_timeout=2 * SECONDS_TO_JOIN, heartbeat_timeout_seconds=SECONDS_TO_MISS,
            shutdown_timeout_seconds=SECONDS_TO_MISS,
        )  # fmt: skip
    except (RuntimeError, ValueError) as error:
        raise InputError(f"the hosts could not be joined: {in_short(error)}") from error
    finally:
        alarm.cancel()
    std_logging.getLogger("jax").setLevel(std_logging.ERROR)
    logging.info("process %d of %d, %d devices of %d", jax.process_index(), jax.process_count(),
                 jax.local_device_count(), jax.device_count())  # fmt: skip


def is_first_host() -> bool:
    """Whether this process is the one that writes; starts no device."""
    import jax

    return not jax.distributed.is_initialized() or jax.process_index() == 0


def raise_on_all_hosts(error: str | None) -> None:
    """Raises the first host's error, if it has one, as an InputError on every host; waits until all are here."""
    import jax

    if jax.distributed.is_initialized():
        import numpy as np
        from jax.experimental import multihost_utils

        text = np.zeros(1000, np.uint8)
        encoded = (error or "").encode()[:1000]
        text[: len(encoded)] = np.frombuffer(encoded, np.uint8)
        error = bytes(multihost_utils.broadcast_one_to_all(text)).rstrip(b"\0").decode(errors="replace") or None
    if error is not None:
        raise InputError(error)


def run_distributed(run: Callable[[], None]) -> None:
    """Joins the hosts and runs a task, or raises InputError; ends the process where another host is lost."""
    join()
    if _COORDINATOR.value is None:
        run()
        return
    import jax

    try:
        run()
    except (InputError, Interrupted):
        raise
    except jax.errors.JaxRuntimeError as error:
        first = in_short(error)
        print(f"error: process {jax.process_index()}: another host was lost ({first}); run the same command on all "
              "hosts to go on from the latest checkpoint", file=sys.stderr, flush=True)  # fmt: skip
        os._exit(1)  # JAX would wait for the lost host at exit.
