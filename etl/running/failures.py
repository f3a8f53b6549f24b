"""What a machine refuses in the middle of a run, in one line with what to do: space, memory, permission."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from seqrec_jax.errors import InputError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_TO_NUMPY = "requested and"  # whose message has no number
_NO_MEMORY = os.strerror(errno.ENOMEM)
_NO_THREAD = (os.strerror(errno.EAGAIN), "can't start new thread")  # for want of memory for its stack


@contextmanager
def in_one_line(output: str | Path, state: str) -> Iterator[None]:
    """Raises an InputError where the disk is full, memory runs out, or a file cannot be read or written.

    Args:
        output: where the run writes.
        state: what there is then, such as 'nothing was written'.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(words in str(error) for words in _NO_THREAD):
            raise
        raise InputError(_of_memory(output, state)) from error
    except OSError as error:
        reason = " ".join(str(error.strerror or error).split())
        if error.errno in _FULL or (error.errno is None and _FULL_TO_NUMPY in reason):
            raise InputError(
                f"{output}: no space is left on the disk; free some and run the same command again ({state})"
            ) from error
        if any(words in reason for words in (_NO_MEMORY, *_NO_THREAD)):
            raise InputError(_of_memory(output, state)) from error
        place = output if error.filename is None else error.filename
        raise InputError(f"{place}: {reason}; mend that and run the same command again ({state})") from error


def _of_memory(output: str | Path, state: str) -> str:
    return f"{output}: memory has run out; run the same command again where more of it is free ({state})"
