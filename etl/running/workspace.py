"""What is finished and what is not: the folder of intermediate results, which an interrupted run goes on from.

`OUTPUT/.etl/NAME` holds a folder per step. A step's `key` says what its result depends on: the hashes of its inputs,
its parameters, and the keys of the steps before. Results of tasks appear by rename, each with a record; a step whose
key has changed begins afresh.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from etl import dataset_writer
from etl.running.report import StepReport
from seqrec_jax.errors import InputError
from seqrec_jax.files import write_text

SCHEMA_VERSION = 2
FOLDER = ".etl"


def key_of(*parts: Any) -> str:
    """A hash of anything that JSON can write."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _read_json(path: Path) -> Any:
    """A record's content, or None where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InputError(f"{path}: is damaged ({error}); remove {path.parent} to redo this step") from error


class Step:
    """A step's folder: the results of its tasks, each with a record, and the record of the whole."""

    def __init__(self, folder: Path, key: str):
        self.folder, self.key = folder, key
        record = _read_json(folder / "step.json")
        if record is not None and record["key"] != key:
            shutil.rmtree(folder)
            record = None
        for abandoned in folder.glob(".*"):  # What a killed run was writing.
            abandoned.unlink()
        if record is None:
            folder.mkdir(parents=True, exist_ok=True)
            write_text(folder / "step.json", json.dumps({"key": key, "report": None, "result": None}))
        self._record = record or {"report": None, "result": None}

    @property
    def is_done(self) -> bool:
        """Whether an earlier run has finished this step, from the same inputs and parameters."""
        return self._record["report"] is not None

    @property
    def report(self) -> StepReport:
        """Of a finished step."""
        return StepReport(**self._record["report"])

    @property
    def result(self) -> Any:
        """Of a finished step: what the steps after it need to know."""
        return self._record["result"]

    def path(self, task: str) -> Path:
        """Where a task's Arrow file goes."""
        return self.folder / f"{task}.arrow"

    def finished(self, task: str) -> Any:
        """The result of a task that an earlier run has finished, or None."""
        return _read_json(self.folder / f"{task}.json")

    def commit(self, task: str, result: Any) -> None:
        """Records that a task is finished."""
        write_text(self.folder / f"{task}.json", json.dumps(result))

    def finish(self, report: StepReport, result: Any) -> None:
        """Records that the step is finished."""
        self._record = {"key": self.key, "report": report._asdict(), "result": result}
        write_text(self.folder / "step.json", json.dumps(self._record))


class Workspace:
    """The folder of a pipeline's intermediate results."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self._fingerprints: dict[str, Any] = _read_json(self.folder / "inputs.json") or {}

    def step(self, name: str, key: str) -> Step:
        """A step's folder, emptied where it holds the results of other inputs or parameters."""
        return Step(self.folder / name, key)

    def fingerprints(self, paths: Sequence[Path], executor: Executor) -> list[dict[str, Any]]:
        """Name, size and SHA-256 of raw files; a file is read again only when its size or time has changed."""
        times = {path: path.stat().st_mtime_ns for path in paths}
        stale = [path for path in paths if self._fingerprints.get(str(path.resolve()), [None])[0] != times[path]]
        for path, record in zip(stale, executor.map(dataset_writer.input_record, stale), strict=True):
            self._fingerprints[str(path.resolve())] = [times[path], record]
        if stale:
            write_text(self.folder / "inputs.json", json.dumps(self._fingerprints))
        records = [self._fingerprints[str(path.resolve())][1] for path in paths]
        for path, record in zip(paths, records, strict=True):
            if path.stat().st_size != record["bytes"]:
                raise InputError(f"{path}: has changed while it was read; run the same command again")
        return records


@contextmanager
def open_workspace(output: Path, name: str) -> Iterator[Workspace]:
    """Opens an output folder for one run at a time.

    Args:
        output: folder that receives the datasets.
        name: of the pipeline; several can have the same output folder.

    Raises:
        InputError: it is a file, of another schema, or another run is working on it.
    """
    if output.exists() and not output.is_dir():
        raise InputError(f"{output}: is a file; bind OUTPUT to a folder")
    folder = output / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+") as lock:
        _take(lock, output)
        version = _read_json(folder / "schema.json")
        if version is None:
            if any(path.name != "lock" for path in folder.iterdir()):
                raise InputError(f"{folder}: is no folder of etl's; bind OUTPUT to another folder, or remove it")
            write_text(folder / "schema.json", json.dumps({"schema_version": SCHEMA_VERSION}))
        elif not isinstance(version, Mapping) or version.get("schema_version") != SCHEMA_VERSION:
            raise InputError(
                f"{folder / 'schema.json'}: schema version {version.get('schema_version')}, but this program writes "
                f"{SCHEMA_VERSION}; bind OUTPUT to another folder, or remove {folder}"
            )
        yield Workspace(folder / name)


def _take(lock: IO[str], output: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.seek(0)
        raise InputError(
            f"{output}: another etl (process {lock.read().strip() or 'unknown'}) is working on it; wait for it, or "
            "bind OUTPUT to another folder"
        ) from error
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
