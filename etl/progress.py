"""Progress bars: often on a terminal, a line now and then in a log."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 10.0


def progress(items: Iterable[Any] | None = None, **options: Any) -> tqdm:
    """A bar with rate and time left; options as tqdm has them."""
    interval = 0.1 if sys.stderr.isatty() else _SECONDS_BETWEEN_LINES
    return tqdm(items, mininterval=interval, **options)
