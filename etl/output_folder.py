"""What lies where etl is to write: links are followed, what a killed run left is settled, what is not etl's stays."""

import os
import re
import shutil
from pathlib import Path

import psutil

from etl.running.report import REPORT
from seqrec_jax.data.format import DATA_FILES, MANIFEST, read_versioned
from seqrec_jax.errors import InputError
from seqrec_jax.files import sync_folder

WORKSPACE = ".etl"
_OF_A_DATASET = {*DATA_FILES, MANIFEST}
_LEFT_BEHIND = r"\.{}\.(old|partial)-(\d{{1,9}})"


def real_path(output: Path) -> Path:
    """Where an output path leads; an InputError where it is a link to nothing."""
    if output.is_symlink() and not output.exists():
        raise InputError(f"{output}: is a link to nothing; make what it names, or bind OUTPUT to something else")
    return Path(os.path.realpath(output))


def real_folder(output: Path) -> Path:
    """The folder, there or not, that an output path names; an InputError where it is a file or a link to nothing."""
    if output.exists() and not output.is_dir():
        raise InputError(f"{output}: is a file; bind OUTPUT to a folder")
    return real_path(output)


def check_is_ours(output: Path) -> None:
    """Refuses, by an InputError, a folder of datasets in which there is anything that etl does not put there."""
    for path in sorted(output.iterdir()) if output.exists() else ():
        if path.name[0] == "." or path.name in (REPORT, "lost+found") or path.suffix == ".model":
            continue
        made = path.is_dir() and any((path / name).exists() for name in (MANIFEST, WORKSPACE, REPORT))
        if not made and not (path.is_dir() and not any(path.iterdir())):
            raise InputError(
                f"{output}: is not empty, and etl has not made {path.name!r} in it; bind OUTPUT to another folder"
            )


def prepare(output: Path) -> Path:
    """The folder, there or not, that a dataset may take the place of, after a killed run's leavings are settled.

    Raises:
        InputError: it is a file, a link to nothing, a mount point, or holds anything but a dataset of this schema.
    """
    _settle(Path(os.path.realpath(output)))  # What a link names may be what has to be put back.
    folder = real_folder(output)
    if os.path.ismount(folder):
        raise InputError(f"{output}: is a mount point, which cannot be replaced; bind OUTPUT to a folder in it")
    names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    strange = [name for name in names if name not in _OF_A_DATASET] if MANIFEST in names else names
    if strange:
        raise InputError(
            f"{output}: is not empty and is no dataset alone ({strange[0]!r} is in it); bind OUTPUT to another folder, "
            "or move that elsewhere"
        )
    if names:
        try:
            read_versioned(folder / MANIFEST)
        except InputError as error:
            raise InputError(f"{str(error).split(';')[0]}; remove {folder} and run the same command again") from error
    return folder


def _settle(folder: Path) -> None:
    """Puts a dataset back that a killed run had moved away, and removes what such a run was writing or removing."""
    pattern = re.compile(_LEFT_BEHIND.format(re.escape(folder.name)))
    for path in sorted(folder.parent.iterdir()) if folder.parent.is_dir() else ():
        if (match := pattern.fullmatch(path.name)) is None or not _is_left_behind(path, int(match[2])):
            continue
        if match[1] == "old" and not folder.exists():
            os.replace(path, folder)
        else:
            shutil.rmtree(path)


def _is_left_behind(path: Path, process: int) -> bool:
    """Whether a folder holds a dataset's files alone, and the process that named it is gone."""
    if path.is_symlink() or not path.is_dir() or (process != os.getpid() and psutil.pid_exists(process)):
        return False
    return all(inside.name in _OF_A_DATASET and not inside.is_dir() for inside in path.iterdir())


def partial_folder(final: Path) -> Path:
    """An empty folder beside a dataset's, to be written and then to take its place."""
    partial = final.with_name(f".{final.name}.partial-{os.getpid()}")
    partial.mkdir()
    return partial


def replace(partial: Path, final: Path) -> None:
    """Puts a finished folder in its place; one that was there is removed once the new one is on the disk."""
    if not final.exists():
        os.replace(partial, final)
        return
    for path in partial.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    sync_folder(partial)
    old = final.with_name(f".{final.name}.old-{os.getpid()}")
    os.replace(final, old)
    try:
        os.replace(partial, final)
    except BaseException:
        os.replace(old, final)
        raise
    sync_folder(final.parent)
    shutil.rmtree(old)
