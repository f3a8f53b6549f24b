import pytest

from etl.running.workers import WORKER_BYTES, affordable_processes
from seqrec_jax.errors import InputError
from seqrec_jax.host_memory import memory_bytes


def test_amounts_of_memory():
    assert memory_bytes("4GB") == memory_bytes("4 gb") == memory_bytes(4e9) == memory_bytes("4000000000") == 4 * 10**9
    assert memory_bytes("1.5 GiB") == 3 << 29
    assert memory_bytes("800MB") == 800_000_000
    for wrong in ("", "four", "4 TB", "1.2.3GB"):
        with pytest.raises(InputError, match="is no amount of memory"):
            memory_bytes(wrong)


def test_the_limit_decides_how_many_processes_there_are():
    assert affordable_processes(7, 100 * WORKER_BYTES, 0) == 7
    assert affordable_processes(7, 4 * WORKER_BYTES, 0) == 3
    assert affordable_processes(7, 4 * WORKER_BYTES, WORKER_BYTES // 2) == 1
    with pytest.raises(InputError, match=r"MEMORY_LIMIT = 0.42 GB is too little; this catalog needs 0.84 GB"):
        affordable_processes(None, WORKER_BYTES, 0)
