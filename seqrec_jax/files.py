"""Files that appear whole or not at all."""

import os
import shutil
from pathlib import Path


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
