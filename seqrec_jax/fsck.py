"""Checks a dataset, a run or a model in full: `python -m seqrec_jax.fsck PATH ...`, or `seqrec check PATH ...`."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from seqrec_jax.data import format
from seqrec_jax.data.store import open_dataset
from seqrec_jax.describe import identity_of, shown
from seqrec_jax.errors import InputError, in_short
from seqrec_jax.files import read_arrays, read_json
from seqrec_jax.runs.folder import CHECKPOINTS, CONFIG, METRICS, RESULTS
from seqrec_jax.runs.metrics_log import damaged_lines
from seqrec_jax.runs.results import read_results

RUNS_WITHIN = ("runs", "trials", "probes", "phases")  # of studies, and of fine-tuning


def _of_dataset(folder: Path) -> Iterator[str]:
    """What is wrong with a dataset."""
    try:
        manifest = format.read_manifest(folder)
        if wrong := list(format.wrong_files(folder, manifest)):
            yield from wrong
            return
        open_dataset(folder).check_values()
    except InputError as error:
        yield str(error)


def _of_run(folder: Path) -> Iterator[str]:
    """What is wrong with a run, a study or a saved model."""
    from seqrec_jax.model import storage

    run = None
    for path in sorted(folder.glob("*.json")):
        read = read_results if path.name == RESULTS else read_json
        try:
            record = read(path, "see the log of the run for what it held")
            run = identity_of(record) if path.name == CONFIG else run
        except InputError as error:
            yield str(error)
    for path in sorted(folder.glob("*.npz")):
        yield from _of_file(path)
    for number in damaged_lines(folder / METRICS):
        yield f"{folder / METRICS}, line {number}: is damaged"
    of_checkpoints = []
    for step in storage.steps_of(folder / CHECKPOINTS):
        place = folder / CHECKPOINTS / str(step)
        if (wrong := storage.what_is_wrong(place, run)) is not None:
            of_checkpoints.append(f"{place}: {wrong}")
    yield from of_checkpoints
    is_finished = (folder / RESULTS).exists() or not (folder / CONFIG).exists()
    if (folder / CHECKPOINTS).exists() and not of_checkpoints and is_finished:
        try:
            storage.load(folder)
        except InputError as error:
            yield str(error)
    for within in RUNS_WITHIN:
        for path in sorted((folder / within).glob("*/")):
            if not path.is_symlink():  # It may lead round in a circle.
                yield from _of_run(path)


def _of_file(path: Path) -> Iterator[str]:
    """What is wrong with a file of arrays."""
    try:
        if path.suffix == ".npz":
            read_arrays(path)
        elif path.suffix == ".safetensors":
            from seqrec_jax.model.exchange import read_safetensors

            read_safetensors(path)
        else:
            yield f"{path}: is no folder, and no file of arrays (.npz, .safetensors)"
    except (InputError, ValueError, OSError) as error:
        yield f"{path}: {str(error).removeprefix(f'{path}: ')}"


def problems(path: str | Path) -> Iterator[str]:
    """What is wrong with datasets, a run, a study, a saved model or a file of arrays: a line each, none if whole."""
    path = Path(path)
    try:
        if path.is_file():
            yield from _of_file(path)
        elif (path / format.MANIFEST).exists():
            yield from _of_dataset(path)
        elif (path / CONFIG).exists() or (path / CHECKPOINTS).exists():
            yield from _of_run(path)
        elif datasets := sorted(manifest.parent for manifest in path.glob(f"*/{format.MANIFEST}")):
            for folder in datasets:
                yield from _of_dataset(folder)
        else:
            yield f"{path}: is neither a dataset ({format.MANIFEST}) nor a run ({CONFIG}) nor a model ({CHECKPOINTS})"
    except OSError as error:
        yield f"{path}: cannot be read ({in_short(error)})"


def main(paths: Sequence[str]) -> int:
    """Prints what is wrong, and returns the exit status: 0 where all is whole, 1 where not, 2 without a path."""
    if not paths or any(path.startswith("-") for path in paths):
        print("usage: python -m seqrec_jax.fsck PATH ..., each a dataset, a run, a model or a file of arrays",
              file=sys.stderr)  # fmt: skip
        return 2
    status = 0
    for path in paths:
        found = list(problems(path))
        for line in found:
            print(shown(line))
        if not found:
            print(shown(f"{path}: whole"))
        status = max(status, int(bool(found)))
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
