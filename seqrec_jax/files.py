"""Files that appear whole or not at all."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text beside `path` and renames it into place; a reader never sees half of it."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def copy_file(source: Path, target: Path) -> None:
    """Copies a file beside `target` and renames it into place."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.copyfile(source, partial)
    os.replace(partial, target)


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Writes named arrays as an `.npz` beside `path` and renames it into place."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        np.savez(file, allow_pickle=False, **{name: np.asarray(array) for name, array in arrays.items()})
    os.replace(partial, path)
