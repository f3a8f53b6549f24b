import subprocess
import sys

import pytest

FAULTS = """
import resource
from seqrec_jax.host_memory import keep_freed_memory
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


RELEASE = """
import psutil
from seqrec_jax.host_memory import keep_freed_memory, release_freed_memory
keep_freed_memory()
blocks = [b"x" * (1 << 20) for _ in range(200)]
del blocks
kept = psutil.Process().memory_info().rss
release_freed_memory()
print(kept - psutil.Process().memory_info().rss)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's")
def test_what_was_kept_is_given_back_when_asked():
    process = subprocess.run([sys.executable, "-c", RELEASE], capture_output=True, text=True, check=True)
    assert int(process.stdout) > 150 << 20
