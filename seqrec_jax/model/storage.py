"""Recommenders on disk: the checkpoints of a run's folder as Orbax writes them, with checksums over every file.

A folder holds `tokenizer.model`, a file for each statistic, and `checkpoints/<step>/`, each with the items `params` and
`model` (JSON, the spec), in training also `training` and `progress`, and with `checksums.json`: of these files, of
those beside `checkpoints`, and the identity of the run that wrote them.
"""

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from seqrec_jax.data.format import TOKENIZER, sha256_of
from seqrec_jax.describe import identity_of
from seqrec_jax.errors import InputError, in_short
from seqrec_jax.files import check_no_pattern, read_json, sync_folder, write_bytes, write_text
from seqrec_jax.model.parameters import check_finite
from seqrec_jax.model.recommender import Recommender
from seqrec_jax.model.spec import Spec
from seqrec_jax.model.stored_arrays import shapes_of
from seqrec_jax.model.terms import TERMS
from seqrec_jax.runs.folder import CHECKPOINTS, CONFIG

CHECKSUMS = "checksums.json"
ANOTHER_RUN = "belongs to another run"
STATISTICS = {term: term.statistic for term in TERMS if term.statistic is not None}
BESIDE = (TOKENIZER, *(f"{term.name}.npz" for term in STATISTICS))  # what a checkpoint needs beside `checkpoints`
ORBAX_ERRORS = (Exception,)  # of what cannot be read or written it raises any, and Exception itself
MOST_TRIES, SECONDS_BETWEEN_TRIES = 5, 0.1


def _files(folder: Path) -> dict[str, Path]:
    """Those of the items, and what else is no folder; what Orbax writes beside them, last, are times and marks."""
    files = (path for path in sorted(folder.rglob("*")) if not path.is_dir() and path.parent != folder)
    return {path.relative_to(folder).as_posix(): path for path in files}


def write_checksums(folder: Path, run: str | None = None) -> None:
    """Writes the checksums of a checkpoint into its folder, once all of it is on the disk.

    `run` is the identity of the run that it belongs to; None for a recommender that is no run's.
    """
    files, root = _files(folder), folder.parent.parent
    for path in files.values():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    for place in {path.parent for path in files.values()}:
        sync_folder(place)
    beside = {name: sha256_of(root / name) for name in BESIDE if (root / name).exists()}
    record = {"run": run, "files": {name: sha256_of(path) for name, path in files.items()}, "beside": beside}
    write_text(folder / CHECKSUMS, json.dumps(record, indent=1) + "\n")


def _differing(expected: Mapping[str, str], files: Mapping[str, Path]) -> Iterator[str]:
    """What is wrong with files that have names and checksums."""
    for name in sorted(expected.keys() | files.keys()):
        if name not in files or not files[name].exists():
            yield f"{name} is missing"
        elif not files[name].is_file():
            yield f"{name} is no file"
        elif name not in expected:
            yield f"{name} does not belong to it"
        elif sha256_of(files[name]) != expected[name]:
            yield f"{name} is damaged"


def what_is_wrong(folder: Path, run: str | None = None) -> str | None:
    """Why a checkpoint cannot be used, or None: its files, and those that it needs, are compared with its checksums.

    `run` is the identity of the run that it has to belong to; None takes any.
    """
    if not (folder / CHECKSUMS).exists():
        return "was not finished"
    try:
        record = read_json(folder / CHECKSUMS, "")
        owner, expected, beside = record["run"], record["files"], record["beside"]
    except (InputError, LookupError, TypeError):
        return f"{CHECKSUMS} cannot be read"
    if not (isinstance(expected, dict) and isinstance(beside, dict)):
        return f"{CHECKSUMS} cannot be read"
    if run not in (None, owner):
        return ANOTHER_RUN
    if strange := [name for name in beside if name not in BESIDE]:
        return f"{CHECKSUMS} names {strange[0]!r}, which is no file of a run's"
    root = folder.parent.parent
    for path in (*sorted(folder.rglob("*")), *(root / name for name in BESIDE)):
        if path.is_symlink():
            return f"{path.name} is a link"
    try:
        return next(_differing(expected, _files(folder)), None) or next(
            _differing(beside, {name: root / name for name in beside}), None
        )
    except OSError as error:
        return str(error)


def check_whole(folder: Path, run: str | None = None) -> None:
    """Refuses, by an InputError, a checkpoint that does not agree with its checksums, or is another run's."""
    wrong = what_is_wrong(folder, run) if folder.is_dir() else "it is missing"
    if wrong is not None:
        raise InputError(f"{folder}: the checkpoint is damaged ({wrong}); copy the whole folder of the run again, or "
                         "move the checkpoint away to use the one before it")  # fmt: skip


def steps_of(folder: Path) -> list[int]:
    """Steps of the checkpoints in a `checkpoints` folder, the latest first."""
    return sorted((int(path.name) for path in folder.glob("[0-9]*") if re.fullmatch("[0-9]+", path.name)), reverse=True)


def being_written(folder: Path, step: int) -> Path:
    """Where Orbax writes a checkpoint, before it gives the folder its name."""
    return next(path for path in folder.iterdir() if path.name.startswith(f"{step}.orbax-checkpoint-tmp"))


def best_of(checkpoint: Path) -> int:
    """Step of the best checkpoint on validation so far, as a whole one says; 0 before the first evaluation."""
    path, remedy = checkpoint / "progress" / "metadata", "move the checkpoint away to use the one before it"
    progress = read_json(path, remedy)
    best = progress.get("best_step") if isinstance(progress, dict) else None
    if not isinstance(best, int) or not 0 <= best <= int(checkpoint.name):
        raise InputError(f"{path}: names no best checkpoint up to its own step; {remedy}")
    return best


def _best_checkpoint(run_dir: Path, run: str | None) -> Path:
    """The best checkpoint on validation so far, as the latest one says; an InputError unless both are whole."""
    folder = run_dir / CHECKPOINTS
    if not folder.is_dir():
        raise InputError(f"{run_dir}: holds no {CHECKPOINTS} folder; bind CHECKPOINT to the RUN_DIR of a training run")
    best, latest = 0, next(iter(steps_of(folder)), None)
    if latest is not None:
        check_whole(folder / str(latest), run)
        best = best_of(folder / str(latest))
    if not best:
        raise InputError(f"{folder}: holds no finished checkpoint; the run stopped before its first evaluation")
    if best != latest:
        check_whole(folder / str(best), run)
    return folder / str(best)


def load(folder: str | Path) -> Recommender:
    """Reads a recommender: the best of a run's folder on validation, or a saved one.

    A run may be going on there. An InputError where there is none, it is damaged, it is another run's, or its arrays do
    not fit its own spec or are not finite.
    """
    said: list[str] = []
    while True:
        try:
            return _load(Path(folder))
        except InputError as error:  # Once more, unless it stays: a training may be removing what is read.
            if str(error) in said or len(said) == MOST_TRIES:
                raise
            said.append(str(error))
            time.sleep(SECONDS_BETWEEN_TRIES)


def _config_of(run_dir: Path) -> dict[str, Any]:
    """The configuration of a run; empty for a model that is no run's, an InputError where it is damaged."""
    path, remedy = run_dir / CONFIG, "copy the whole RUN_DIR again"
    config = read_json(path, remedy) if path.exists() else {}
    corpus = config.get("Corpus", {}) if isinstance(config, dict) else None
    if not isinstance(corpus, dict) or not isinstance(corpus.get("split", {}), dict):
        raise InputError(f"{path}: is no configuration of a run; {remedy}")
    return config


def _load(run_dir: Path) -> Recommender:
    """Reads a recommender, once."""
    config = _config_of(run_dir)
    run = identity_of(config) if config else None
    place = _best_checkpoint(run_dir, run)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    try:
        spec = Spec.from_json(read_json(place / "model" / "metadata", "copy the whole RUN_DIR again"))
        spec.check(shapes_of(place / "params"))
        shapes = spec.graph().shapes
        wanted = {name: jax.ShapeDtypeStruct(of.shape, of.dtype, sharding=device) for name, of in shapes.items()}
        with ocp.StandardCheckpointer() as reader:
            params = reader.restore((place / "params").resolve(), wanted)
        check_finite(params)
        statistics = {
            term.name: statistic.read(run_dir / f"{term.name}.npz")
            for term, statistic in STATISTICS.items() if term.is_in(spec.architecture)
        }  # fmt: skip
        tokenizer = run_dir / TOKENIZER
        tokens = tokenizer.read_bytes() if tokenizer.is_file() else b""
        if tokens and spec.texts and hashlib.sha256(tokens).hexdigest() != spec.tokenizer_sha256:
            raise InputError(f"{tokenizer} is not the model's")
    except InputError as error:
        raise InputError(f"{place}: {error}") from error
    except ORBAX_ERRORS as error:
        raise InputError(f"{place}: the checkpoint is damaged ({in_short(error)})") from error
    return Recommender(spec, params, statistics, tokens, config.get("Corpus", {}))


def write_beside(folder: Path, model: Recommender) -> None:
    """Writes what lies beside the checkpoints: the tokenizer, and the statistics."""
    write_bytes(folder / TOKENIZER, model.tokenizer)
    for name, statistic in model.statistics.items():
        statistic.write(folder / f"{name}.npz")


def save(folder: str | Path, model: Recommender, step: int = 1, run: str | None = None) -> None:
    """Writes a recommender that nothing goes on from, as the checkpoint of a step, on one host or several.

    `run` is the identity of the run whose folder it is; None for a recommender that is no run's.

    An InputError where the folder holds a checkpoint already, or cannot be written.
    """
    folder = Path(folder)
    check_no_pattern(folder)
    if (folder / CHECKPOINTS).exists():
        raise InputError(f"{folder}: holds a checkpoint; bind RUN_DIR to another folder")
    first = jax.process_index() == 0
    try:
        if first:
            folder.mkdir(parents=True, exist_ok=True)
            write_beside(folder, model)

        def finalize() -> None:
            if first:
                write_checksums(being_written(folder / CHECKPOINTS, step), run)

        options = ocp.CheckpointManagerOptions(
            async_options=ocp.AsyncOptions(post_finalization_callback=finalize), enable_async_checkpointing=True
        )
        with ocp.CheckpointManager((folder / CHECKPOINTS).resolve(), options=options) as manager:
            args = ocp.args.Composite(
                params=ocp.args.StandardSave(dict(model.params)),
                model=ocp.args.JsonSave(model.spec.to_json()),
                progress=ocp.args.JsonSave({"best_step": step}),
                training=ocp.args.StandardSave({"step": jnp.int32(step)}),
            )
            manager.save(step, args=args)
            manager.wait_until_finished()
    except ORBAX_ERRORS as error:
        raise InputError(f"{folder}: the model could not be written ({in_short(error)})") from error
