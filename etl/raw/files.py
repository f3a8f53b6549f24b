"""Finds the raw files of a source, and tells their format by their names."""

from collections.abc import Sequence
from pathlib import Path

from seqrec_jax.errors import InputError

_KINDS = {".csv": "csv", ".tsv": "tsv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}


def kind_of(path: Path) -> str:
    """`csv`, `tsv`, `json` (an object a line) or `parquet`.

    Raises:
        InputError: the name ends in none of the known suffixes.
    """
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if suffix not in _KINDS or (suffix == ".parquet" and path.suffix == ".gz"):
        raise InputError(f"{path}: unknown kind of file; known are {', '.join(_KINDS)}, all but Parquet also with .gz")
    return _KINDS[suffix]


def find_files(source: Path, patterns: Sequence[str], binding: str) -> list[Path]:
    """The files of a source that fit the patterns, in the order of their names, one pattern after the other.

    Raises:
        InputError: no folder, a pattern without a file, an unknown suffix, or an empty file.
    """
    if not source.is_dir():
        raise InputError(f"{source}: no such folder; bind SOURCE to the folder of the raw files")
    found: list[Path] = []
    for pattern in patterns:
        fitting = [path for path in sorted(source.glob(pattern)) if path.is_file()]
        if not fitting:
            raise InputError(f"{source / pattern}: no such file ({binding}); put it there or bind SOURCE elsewhere")
        found += [path for path in fitting if path not in found]
    for path in found:
        kind_of(path)
        if not path.stat().st_size:
            raise InputError(f"{path}: is empty")
    return found
