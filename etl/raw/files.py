"""Finds the raw files of a source, and tells their format by their names."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from seqrec_jax.errors import InputError

_KINDS = {".csv": "csv", ".tsv": "tsv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}


def is_name(text: str) -> bool:
    """Whether a text names something in a folder, and leads nowhere else."""
    return text not in ("", "..") and "\0" not in text and Path(text).name == text


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

    A folder stands for the files in it, at any depth, as Spark writes tables; names that begin with `_` or `.` and
    empty files are passed over there.

    Raises:
        InputError: no folder, a pattern without a file, an unknown suffix, or an empty file.
    """
    if not source.is_dir():
        raise InputError(f"{source}: no such folder; bind SOURCE to the folder of the raw files")
    found: list[Path] = []
    for pattern in patterns:
        fitting = [path for place in _matches(source, pattern, binding) for path in _files_of(place)]
        if not fitting:
            raise InputError(f"{source / pattern}: no such file ({binding}); put it there or bind SOURCE elsewhere")
        found += [path for path in fitting if path not in found]
    for path in found:
        kind_of(path)
        if not path.stat().st_size:
            raise InputError(f"{path}: is empty")
    return found


def _matches(source: Path, pattern: str, binding: str) -> list[Path]:
    """Files and folders that a name or a pattern stands for, relative to the source unless it is absolute."""
    if not pattern:
        raise InputError(f"Gin binding {binding}: holds an empty name")
    named = source / pattern
    if named.exists():
        return [named]
    try:
        if Path(pattern).is_absolute():
            return sorted(Path(named.anchor).glob(str(named.relative_to(named.anchor))))
        return sorted(source.glob(pattern))
    except ValueError as error:
        raise InputError(f"{pattern!r}: is no pattern of files ({binding}): {error}") from error


def _files_of(place: Path) -> list[Path]:
    """A file, or the files in a folder."""
    if not place.is_dir():
        return [place]
    inside = ((path, path.relative_to(place).parts) for path in sorted(place.rglob("*")) if path.is_file())
    return [path for path, parts in inside if path.stat().st_size and all(part[0] not in "_." for part in parts)]


def identity_of(path: Path) -> list[int]:
    """What changes with a file's content: its size, its times, of which the second cannot be set back, its inode."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def check_unchanged(identities: Mapping[Path, list[int]]) -> None:
    """Raises an InputError where a file is not what it was when it was hashed."""
    for path, identity in identities.items():
        if identity_of(path)[:-1] != identity[:-1]:  # Network file systems may number a file anew at any time.
            raise InputError(f"{path}: has changed while it was read; run the same command again")
