"""A job's process, `python -m seqrec_jax.child PARENT --gin_file=...`: it ends with the process PARENT."""

import os
import sys
import threading
import time

SECONDS_BETWEEN_LOOKS = 0.2


def _end_with(parent: int) -> None:
    """Ends the process soon after the one that started it, however and whenever that one died."""
    while os.getppid() == parent:
        time.sleep(SECONDS_BETWEEN_LOOKS)
    os._exit(1)


def main() -> None:
    """Watches the parent from the first instruction on, then does as `seqrec_jax.main`."""
    threading.Thread(target=_end_with, args=(int(sys.argv.pop(1)),), daemon=True).start()
    from seqrec_jax.main import main as run

    run()


if __name__ == "__main__":
    main()
