"""What a machine refuses is one line that says where, why and what to do."""

import errno
import os

import numpy as np
import pyarrow as pa
import pytest

from etl.running.failures import in_one_line
from seqrec_jax.errors import InputError

FULL, MEMORY = "out: no space is left on the disk; free some and run", "out: memory has run out; run the same command"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/x"), FULL),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), FULL),
        (OSError("32769 requested and 32736 written"), FULL),
        (MemoryError(), MEMORY),
        (np._core._exceptions._ArrayMemoryError((1 << 40,), np.dtype(np.int64)), MEMORY),
        (pa.ArrowMemoryError("malloc of size 9 failed"), MEMORY),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), MEMORY),
        (OSError("Memory mapping file failed: Cannot allocate memory"), MEMORY),
        (RuntimeError("can't start new thread"), MEMORY),
        (RuntimeError("Resource temporarily unavailable"), MEMORY),
        (OSError(errno.EROFS, os.strerror(errno.EROFS), "/x/y"), "/x/y: Read-only file system; mend that and run the"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "/x: Permission denied; mend that"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/x"), "/x: No such file or directory; mend"),
        (OSError("[Errno 28] of\nsome library"), r"out: \[Errno 28\] of some library; mend that"),
    ],
)
def test_every_refusal_is_one_line_with_what_to_do(error, words):
    with pytest.raises(InputError, match=words) as caught, in_one_line("out", "nothing was written"):
        raise error
    assert str(caught.value).endswith("(nothing was written)")
    assert "\n" not in str(caught.value)


def test_faults_of_the_program_stay_what_they_are():
    for error in (RuntimeError("something else"), ValueError("x"), InputError("y"), KeyboardInterrupt()):
        with pytest.raises(type(error)), in_one_line("out", ""):
            raise error
