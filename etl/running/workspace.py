"""What is finished and what is not: the folder of intermediate results, which an interrupted run goes on from.

`OUTPUT/.etl/NAME` holds a folder per step. A step's `key` says what its result depends on: the hashes of its inputs,
its parameters, and the keys of the steps before. Results of tasks appear by rename, each with a record of its checksum;
what is not as it was written is made again. A step whose key has changed begins afresh.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

from absl import logging

from etl import output_folder
from etl.dataset_writer import input_record
from etl.raw import files
from etl.running.records import Checksum, checksum, is_whole, read_record, write_record
from etl.running.report import StepReport
from etl.running.workers import in_order
from seqrec_jax.errors import InputError
from seqrec_jax.files import read_json, write_text

SCHEMA_VERSION = 3
PASSING = "block-"
"""What the names of files begin with that nobody needs once the step is finished."""

_NANOSECONDS_TO_SETTLE = 2_000_000_000
_PARTIAL = re.compile(r"\..+\.partial(-\d+)?")
_KEPT = (".arrow", ".npy", ".model")


def key_of(*parts: Any) -> str:
    """A hash of anything that JSON can write."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _refuse_link(folder: Path) -> Path:
    """The folder; an InputError where it is a link, as what lies behind it may be another's."""
    if folder.is_symlink():
        raise InputError(f"{folder}: is a link, which etl does not follow; remove it")
    return folder


class Step:
    """A step's folder: the results of its tasks, each with a record, and the record of the whole.

    Args:
        folder: of the step.
        key: of what its result depends on.
        raw: identities of the raw files that it reads; an unfinished step goes on only where they are the same.
    """

    def __init__(self, folder: Path, key: str, raw: Sequence[Sequence[int]] = ()):
        self.folder, self.key = _refuse_link(folder), key
        self._files: dict[str, Checksum] = {}
        raw_now = list(map(list, raw))
        begun: dict[str, Any] = {"key": key, "raw": raw_now, "report": None, "result": None, "files": {}}
        record = read_record(folder / "step.json", f"remove {folder} to redo this step")
        if record is None or record["key"] != key or (record["report"] is None and record["raw"] != raw_now):
            if folder.exists():
                shutil.rmtree(folder)
            folder.mkdir(parents=True)
            record = begun
            write_record(folder / "step.json", record)
        self._record = record
        self._tidy()

    def _tidy(self) -> None:
        """Removes what a killed run was writing and, of a finished step, what nobody needs any more."""
        for path in self.folder.iterdir():
            passing = path.suffix == ".arrow" and path.name.startswith(PASSING) and self.is_done
            if (passing or path.suffix == ".text" or _PARTIAL.fullmatch(path.name)) and not path.is_dir():
                path.unlink()

    @property
    def is_done(self) -> bool:
        """Whether this step is finished, from the same inputs and parameters."""
        return self._record["report"] is not None

    @property
    def report(self) -> StepReport:
        """Of a finished step."""
        return StepReport(**self._record["report"])

    @property
    def result(self) -> Any:
        """Of a finished step: what the steps after it need to know."""
        return self._record["result"]

    def damaged(self) -> Path | None:
        """A file of a finished step that is missing, or not as it was written; None where all are whole."""
        paths = {self._inside(name): expected for name, expected in self._record["files"].items()}
        return next((path for path, expected in paths.items() if not is_whole(path, expected)), None)

    def reopen(self) -> None:
        """Begins a finished step again, with those results of its tasks that are whole."""
        self._record = {**self._record, "report": None}

    def _inside(self, name: str) -> Path:
        """A file below the step's folder."""
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise InputError(f"{self.folder}: its record names {name!r}, which is not in it; remove {self.folder}")
        return self.folder / name

    def path(self, task: str) -> Path:
        """Where a task's Arrow file goes."""
        return self._inside(f"{task}.arrow")

    def finished(self, task: str) -> dict[str, Any] | None:
        """What an earlier run has committed of a task whose output is still whole, or None."""
        path = self.path(task)
        try:
            record = read_record(path.with_suffix(".json"), "this part is made again")
        except InputError as error:
            logging.warning("%s", error)
            return None
        if record is None or not path.exists():
            return None
        if not is_whole(path, record["file"]):
            logging.warning("%s: is not as it was written; it is made again", path)
            return None
        self._files[path.name] = record["file"]
        return record

    def commit(self, task: str, record: dict[str, Any]) -> None:
        """Records that a task is finished: its `result`, and `file`, the checksum of its output."""
        path = self.path(task)
        write_record(path.with_suffix(".json"), record, synced=False)
        self._files[path.name] = record["file"]

    def finish(self, report: StepReport, result: Any) -> None:
        """Records that the step is finished, and the checksums of the files that it leaves to others."""
        paths = [path for path in self.folder.rglob("*") if path.suffix in _KEPT and not path.name.startswith(PASSING)]
        names = {str(path.relative_to(self.folder)): path for path in sorted(paths)}
        sums = {name: self._files.get(name) or checksum(path) for name, path in names.items()}
        self._record = {**self._record, "report": report._asdict(), "result": result, "files": sums}
        write_record(self.folder / "step.json", self._record)
        self._tidy()


class Workspace:
    """The folder of a pipeline's intermediate results.

    Attributes:
        folder: where it lies.
        identities: of the raw files, as `files.identity_of` has them, from before they were hashed.
    """

    def __init__(self, folder: Path):
        self.folder = _refuse_link(folder)
        folder.mkdir(exist_ok=True)
        self.identities: dict[Path, list[int]] = {}
        try:
            self._hashed: dict[str, Any] = read_record(folder / "inputs.json", "raw files are hashed again") or {}
        except InputError as error:
            logging.warning("%s", error)
            self._hashed = {}

    def step(self, name: str, key: str, raw: Sequence[Path] = ()) -> Step:
        """A step's folder, emptied where it holds the results of other inputs or parameters."""
        return Step(self.folder / name, key, [self.identities[path] for path in raw])

    def fingerprints(self, paths: Sequence[Path], executor: Executor, at_a_time: int) -> dict[Path, dict[str, Any]]:
        """Name, size and SHA-256 of raw files; one is read again where it may have changed since.

        A change within two seconds of the hashing might leave the times as they are, so such a hash is used once.
        """
        self.identities |= {path: files.identity_of(path) for path in paths}
        names = {str(path.resolve()): path for path in paths}
        began = time.time_ns()

        def is_known(name: str) -> bool:
            _, _, changed, _ = identity = self.identities[names[name]]
            known = self._hashed.get(name, {"identity": None})
            return known["identity"] == identity and known["began"] - changed > _NANOSECONDS_TO_SETTLE

        def commit(name: str, record: dict[str, Any]) -> None:
            path = names[name]
            files.check_unchanged({path: self.identities[path]})
            self._hashed[name] = {"identity": self.identities[path], "began": began, "record": record}

        tasks = [(name, (path,), None) for name, path in names.items() if not is_known(name)]
        try:
            for _ in in_order(executor, at_a_time, input_record, tasks, commit):
                continue
        finally:
            if tasks:
                write_record(self.folder / "inputs.json", self._hashed)
        return {path: self._hashed[str(path.resolve())]["record"] for path in paths}

    def check_unchanged(self) -> None:
        """Raises an InputError where a raw file is not what it was when it was hashed."""
        files.check_unchanged(self.identities)


@contextmanager
def open_workspace(output: Path, name: str) -> Iterator[Workspace]:
    """Opens an output folder for one run at a time.

    Args:
        output: folder that receives the datasets.
        name: of the pipeline; several can have the same output folder.

    Raises:
        InputError: it is a file, is not etl's, is of another schema, or another run is working on it.
    """
    folder = output_folder.real_folder(output) / output_folder.WORKSPACE
    if not folder.exists():
        output_folder.check_is_ours(folder.parent)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+", errors="replace") as lock:
        _take(lock, output)
        _check_schema(folder)
        yield Workspace(folder / name)


def _check_schema(folder: Path) -> None:
    """Writes `schema.json` into a new folder; an InputError where one of etl's does not say this version."""
    path = folder / "schema.json"
    if not path.exists():
        if any(inside.name not in ("lock", ".schema.json.partial") for inside in folder.iterdir()):
            raise InputError(f"{folder}: is no folder of etl's; bind OUTPUT to another folder, or remove it")
        write_text(path, json.dumps({"schema_version": SCHEMA_VERSION}))
    remedy = f"bind OUTPUT to another folder, or remove {folder}"
    record = read_json(path, remedy)
    version = record.get("schema_version") if isinstance(record, Mapping) else None
    if version != SCHEMA_VERSION:
        raise InputError(f"{path}: schema version {version}, but this program writes {SCHEMA_VERSION}; {remedy}")


def _take(lock: IO[str], output: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.seek(0)
        raise InputError(
            f"{output}: another etl (process {lock.read(20).strip() or 'unknown'}) is working on it; wait for it, or "
            "bind OUTPUT to another folder"
        ) from error
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
