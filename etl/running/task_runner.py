"""Runs a step's tasks: those that are not finished yet, with a progress bar, and with their bad rows counted."""

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from absl import logging

from etl import output_folder
from etl.progress import progress
from etl.raw.bad_rows import BadRow, BadRows
from etl.raw.interaction_files import InteractionFiles
from etl.raw.item_files import ItemFiles
from etl.raw.text_blocks import BLOCK_BYTES
from etl.running.records import checksum, read_record, write_record
from etl.running.workers import in_order
from etl.running.workspace import Step, key_of
from seqrec_jax.data import format
from seqrec_jax.errors import InputError

Task = tuple[str, tuple[Any, ...]]
"""A task's name and the arguments of the step's function."""


def _with_checksum(function: Callable[..., dict[str, Any]], output: Path, *arguments: Any) -> dict[str, Any]:
    """What a task returns, and the checksum of the file that it wrote, taken where it was written."""
    return {"result": function(output, *arguments), "file": checksum(output)}


class TaskRunner:
    """Runs tasks of steps.

    Args:
        executor: runs them.
        at_a_time: how many.
    """

    def __init__(self, executor: Executor, at_a_time: int):
        self._executor, self._at_a_time = executor, at_a_time

    def run(
        self, step: Step, function: Callable[..., dict[str, Any]], tasks: Sequence[Task], label: str
    ) -> Iterator[dict[str, Any]]:
        """Results of a step's tasks, in their order."""
        known = ((name, arguments, step.finished(name)) for name, arguments in tasks)
        results = self._results(step, function, known)
        yield from progress(results, total=len(tasks), desc=label, unit="part")

    def _results(
        self,
        step: Step,
        function: Callable[..., dict[str, Any]],
        tasks: Iterable[tuple[str, tuple[Any, ...], dict[str, Any] | None]],
    ) -> Iterator[dict[str, Any]]:
        """Results of tasks, each with what `step.finished` has of it."""
        checked = functools.partial(_with_checksum, function)
        for record in in_order(self._executor, self._at_a_time, checked, tasks, step.commit):
            yield record["result"]

    def run_blocks(
        self,
        step: Step,
        prefix: str,
        files: ItemFiles | InteractionFiles,
        paths: Sequence[Path],
        function: Callable[..., dict[str, Any]],
        arguments: tuple[Any, ...],
        bad: BadRows,
    ) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Runs a function over the blocks of raw files, and adds their bad rows up.

        Args:
            step: whose tasks they are.
            prefix: of the tasks' names.
            files: cuts the raw files into blocks.
            paths: the raw files.
            function: of the path to write, the block, and the arguments; its result has `lines`, `rows` and `bad`.
            arguments: the rest of the function's.
            bad: where the bad rows go.

        Yields:
            The path that was written and the result, for each block in the order of the files.
        """
        begun: list[tuple[str, int, Path]] = []

        def tasks() -> Iterator[tuple[str, tuple[Any, ...], dict[str, Any] | None]]:
            for place, path in enumerate(paths):
                for ordinal, block in enumerate(files.blocks(path, BLOCK_BYTES)):
                    name = f"{prefix}{place:03d}-{ordinal:05d}"
                    begun.append((name, block.file_bytes, path))
                    if (known := step.finished(name)) is None:
                        block = block.put_aside(step.folder / f"{name}.text")
                    yield name, (step.path(name), block, *arguments), known

        lines: Counter[Path] = Counter()
        total = sum(path.stat().st_size for path in paths)
        with progress(total=total, desc=step.folder.name, unit="B", unit_scale=True) as bar:
            for result in self._results(step, function, tasks()):
                name, file_bytes, path = begun.pop(0)
                rows = [BadRow(*row) for row in result["bad"]]
                bad.add(str(path), lines[path], result["rows"] + len(rows), rows)
                lines[path] += result["lines"]
                (step.folder / f"{name}.text").unlink(missing_ok=True)
                bar.update(file_bytes)
                yield step.path(name), result

    def run_datasets(
        self,
        records: Path,
        key: str,
        function: Callable[..., dict[str, Any]],
        tasks: Sequence[tuple[Path, Task]],
        check: Callable[[], None],
    ) -> Iterator[dict[str, Any]]:
        """Makes datasets, those that are not there yet, and whole, from the same inputs and parameters.

        Args:
            records: folder of a file for each dataset that says what it was made from.
            key: of what all of them depend on.
            function: makes one and returns its manifest.
            tasks: each dataset's folder, what else it depends on, and the function's arguments.
            check: raises an InputError where a dataset just made is not of what its manifest says.

        Yields:
            The datasets' manifests, in the order of the tasks.
        """
        records.mkdir(parents=True, exist_ok=True)
        keys = {folder: key_of(key, depends_on) for folder, (depends_on, _) in tasks}

        def made(folder: Path) -> list[str]:
            return [keys[folder], format.sha256_of(folder / format.MANIFEST)]

        def finished(folder: Path) -> dict[str, Any] | None:
            if not (folder / format.MANIFEST).is_file():
                return None
            try:
                if read_record(records / f"{folder.name}.json", "nothing is lost") != made(folder):
                    return None
                manifest = format.read_manifest(folder)
                format.verify_checksums(folder, manifest)
            except InputError as error:
                logging.warning("%s: is made again (%s)", folder, error)
                return None
            logging.info("%s: is there already", folder)
            return manifest

        def commit(name: str, manifest: dict[str, Any]) -> None:
            check()
            folder = Path(name)
            write_record(records / f"{folder.name}.json", made(folder))
            counts = [manifest["counts"][unit] for unit in ("users", "items", "interactions")]
            logging.info("%s: %d users, %d items, %d interactions", folder, *counts)

        for folder in keys:
            output_folder.prepare(folder)
        named = ((str(folder), arguments, finished(folder)) for folder, (_, arguments) in tasks)
        results = in_order(self._executor, self._at_a_time, function, named, commit)
        yield from progress(results, total=len(tasks), desc=f"{records.name}: datasets", unit="dataset")
