import subprocess
import sys

import pytest

FAULTS = """
import resource
from seqrec_jax.training.host_memory import keep_freed_memory
{call}
def allocate():
    block = b"x" * (48 << 20)
allocate()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    allocate()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(call: str) -> int:
    process = subprocess.run(
        [sys.executable, "-c", FAULTS.format(call=call)], capture_output=True, text=True, check=True
    )
    return int(process.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's")
def test_memory_that_was_freed_is_not_faulted_in_again():
    if page_faults("") < 1000:
        pytest.skip("this C library keeps memory by itself")
    assert page_faults("keep_freed_memory()") < 1000
