"""What of a folder is a run's, so that nothing else is ever removed or written over."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from seqrec_jax.errors import InputError

RESULTS, CONFIG, CONFIG_TEXT, LOCK, LOG = "results.json", "config.json", "config.gin", ".lock", "log.txt"
METRICS, TRACKING = "metrics.jsonl", "tracking.json"
CHECKPOINTS, DAMAGED, TRACE = "checkpoints", "damaged", "trace"
BEFORE = (LOCK, LOG, CONFIG_TEXT, "raw", "dataset")  # what a folder may hold before a run is begun there

_NAMES = (
    RESULTS, CONFIG, CONFIG_TEXT, LOCK, LOG, METRICS, TRACKING, "tokenizer.model", "transitions.npz", "fisher.npz",
    "phase.json", "scaling_law.json", "scaling_law.html", "scaling_law.png",
)  # fmt: skip
_OF_CHECKPOINT = re.compile(
    r"\d+(\.orbax-checkpoint-tmp[^/]*)?/(checksums\.json|commit_success\.txt|_.+|(params|training|progress|model)/.+)"
)


def _is_ours(path: Path) -> bool:
    """Whether a run, or one of the runs of a study, has written a file, by its path in the study's folder."""
    for place, name in enumerate(path.parts[:-1]):
        if name in (CHECKPOINTS, DAMAGED):
            return _OF_CHECKPOINT.fullmatch("/".join(path.parts[place + 1 :])) is not None
    whole = path.name.removeprefix(".").removesuffix(".partial") if path.suffix == ".partial" else path.name
    return path.parts[0] == TRACE or whole in _NAMES


def _files(folder: Path) -> Iterator[Path]:
    """Files and links, at any depth."""
    return (path for path in sorted(folder.rglob("*")) if path.is_symlink() or not path.is_dir())


def check_new(folder: Path) -> None:
    """Refuses, by an InputError, to begin a run in a folder that holds other things, or is no folder."""
    names = sorted(path.name for path in folder.iterdir())
    there = [name for name in names if name not in BEFORE and not name.endswith(".partial")]
    if there:
        raise InputError(
            f"{folder}: holds {', '.join(there[:3])}{', ...' * (len(there) > 3)} and is no run, as it has no {CONFIG}; "
            "bind RUN_DIR to a new folder"
        )


def remove(folder: Path, names: Sequence[str]) -> None:
    """Removes files and folders that a run has written, by their names in its folder.

    An InputError, and nothing is removed, where one of the folders holds a file that no run has written.
    """
    places = [folder / name for name in names]
    inside = [path for place in places if place.is_dir() and not place.is_symlink() for path in _files(place)]
    if strange := [path for path in inside if not _is_ours(path.relative_to(folder))]:
        raise InputError(f"{strange[0]}: no run has written this, and its folder is to be removed; move it away")
    for path in [*inside, *(place for place in places if place.is_symlink() or not place.is_dir())]:
        path.unlink(missing_ok=True)
    for place in places:
        for path in sorted(place.rglob("*"), reverse=True) if place.is_dir() else ():
            path.rmdir()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            place.rmdir()


def report_folder(run_dir: str | Path, *writes: str) -> Path:
    """A folder to write a report to; an InputError where it holds a run, or anything but an earlier report.

    `writes` are the names of the report's files.
    """
    folder = Path(run_dir)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; bind RUN_DIR to a folder")
    there = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    if strange := [name for name in there if name not in (*writes, TRACKING)]:
        what = "a run" if {CONFIG, CHECKPOINTS} & set(strange) else strange[0]
        raise InputError(f"{folder}: holds {what}; bind RUN_DIR to another folder, or to none")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
