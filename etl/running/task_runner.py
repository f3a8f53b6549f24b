"""Runs a step's tasks: those that are not finished yet, with a progress bar, and with their bad rows counted."""

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from absl import logging

from etl import dataset_writer
from etl.progress import progress
from etl.raw.bad_rows import BadRow, BadRows
from etl.raw.interaction_files import InteractionFiles
from etl.raw.item_files import ItemFiles
from etl.raw.text_blocks import BLOCK_BYTES
from etl.running.workers import in_order
from etl.running.workspace import Step, key_of
from seqrec_jax.data import format
from seqrec_jax.files import write_text

Task = tuple[str, tuple[Any, ...]]
"""A task's name and the arguments of the step's function."""


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
        results = self._results(step, function, tasks)
        yield from progress(results, total=len(tasks), desc=label, unit="part")

    def _results(
        self, step: Step, function: Callable[..., dict[str, Any]], tasks: Iterable[Task]
    ) -> Iterator[dict[str, Any]]:
        return in_order(self._executor, self._at_a_time, function, tasks, step.finished, step.commit)

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

        def tasks() -> Iterator[Task]:
            for place, path in enumerate(paths):
                for ordinal, block in enumerate(files.blocks(path, BLOCK_BYTES)):
                    name = f"{prefix}{place:03d}-{ordinal:05d}"
                    begun.append((name, block.file_bytes, path))
                    if step.finished(name) is None:
                        block = block.put_aside(step.folder / f"{name}.text")
                    yield name, (step.path(name), block, *arguments)

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
        self, records: Path, key: str, function: Callable[..., dict[str, Any]], tasks: Sequence[tuple[Path, Task]]
    ) -> Iterator[dict[str, Any]]:
        """Makes datasets, those that are not there yet from the same inputs and parameters.

        Args:
            records: folder of a file for each dataset that says what it was made from.
            key: of what all of them depend on.
            function: makes one and returns its manifest.
            tasks: each dataset's folder, what else it depends on, and the function's arguments.

        Yields:
            The datasets' manifests, in the order of the tasks.
        """
        records.mkdir(parents=True, exist_ok=True)
        folders = {folder.name: folder for folder, _ in tasks}
        keys = {folder.name: key_of(key, depends_on) for folder, (depends_on, _) in tasks}

        def made(name: str) -> str:
            return f"{keys[name]} {format.sha256_of(folders[name] / format.MANIFEST)}"

        def finished(name: str) -> dict[str, Any] | None:
            record, folder = records / f"{name}.key", folders[name]
            if not (record.exists() and (folder / format.MANIFEST).exists() and record.read_text() == made(name)):
                return None
            logging.info("%s: is there already", folder)
            return format.read_manifest(folder)

        def commit(name: str, manifest: dict[str, Any]) -> None:
            write_text(records / f"{name}.key", made(name))
            counts = [manifest["counts"][unit] for unit in ("users", "items", "interactions")]
            logging.info("%s: %d users, %d items, %d interactions", folders[name], *counts)

        for folder in folders.values():
            dataset_writer.check_replaceable(folder)
            for abandoned in folder.parent.glob(f".{folder.name}.*"):  # What a killed run was writing or replacing.
                shutil.rmtree(abandoned)
        named = [(folder.name, arguments) for folder, (_, arguments) in tasks]
        results = in_order(self._executor, self._at_a_time, function, named, finished, commit)
        yield from progress(results, total=len(named), desc=f"{records.name}: datasets", unit="dataset")
