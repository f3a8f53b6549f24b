"""Checkpoints by Orbax, written in the background: everything that a run needs in order to go on, bit for bit.

A run's folder holds `tokenizer.model` and `checkpoints/<step>/`, each with the items `params` (what is evaluated),
`training` (the rest of the state), `progress` and `model` (JSON), and `checksums.json`. Orbax writes a checkpoint under
a temporary name, the checksums last, and renames it. One that does not agree with them is put aside, in `damaged/`.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging as std_logging
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gin
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from absl import logging
from flax import nnx

from seqrec_jax.errors import InputError
from seqrec_jax.files import write_text
from seqrec_jax.host_memory import release_freed_memory
from seqrec_jax.model import parameters
from seqrec_jax.model.recommender import build
from seqrec_jax.training.model_record import ModelRecord

CHECKPOINTS = "checkpoints"
DAMAGED = "damaged"
CHECKSUMS = "checksums.json"
ORBAX_ERRORS = (ValueError, KeyError, TypeError, AttributeError, OSError)


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """When a run writes checkpoints, beside those at each evaluation, and how many it keeps.

    Attributes:
        every_steps: steps between them; None for none by steps.
        every_minutes: minutes between them; None for none by time.
        keep: the latest that are kept, at least 2, so that one is left where the last is damaged. The best on
            validation is kept as well.
    """

    every_steps: int | None = None
    every_minutes: float | None = 10.0
    keep: int = 2

    def __post_init__(self):
        for name, least in (("every_steps", 1), ("keep", 2)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"Checkpoints.{name} = {value} is below {least}")
        if self.every_minutes is not None and self.every_minutes <= 0:
            raise InputError(f"Checkpoints.every_minutes = {self.every_minutes} is not above 0")


def named_arrays(tree: Any) -> dict[str, jax.Array]:
    """The arrays of any tree under their paths."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def with_arrays(like: Any, arrays: Mapping[str, jax.Array]) -> Any:
    """The inverse of named_arrays, for a tree of the structure of `like`."""
    return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in named_arrays(like)])


def _placed_like(arrays: Mapping[str, jax.Array]) -> Any:
    """What to read, and onto which devices."""
    return ocp.args.StandardRestore(
        {
            name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)
            for name, array in arrays.items()
        }
    )


@dataclasses.dataclass
class _LatestAndBest:
    """Orbax's policy of what is kept."""

    keep: int
    best_step: int = 0

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        steps = [checkpoint.step for checkpoint in checkpoints]
        return [step in steps[-self.keep :] or step == self.best_step for step in steps]


def _quiet_orbax() -> None:
    """Leaves out what Orbax's writers print, one by one, when a checkpoint cannot be written; it is raised as well."""

    def but_for_closed_loops(unraisable: Any) -> None:
        if "loop is closed" not in str(unraisable.exc_value):
            sys.__unraisablehook__(unraisable)

    sys.unraisablehook = but_for_closed_loops
    std_logging.getLogger("asyncio").setLevel(std_logging.CRITICAL)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(folder: Path) -> dict[str, Path]:
    """Those of the items; what Orbax writes beside them, last of all, are times and marks."""
    files = (path for path in sorted(folder.glob("*/**/*")) if path.is_file())
    return {str(path.relative_to(folder)): path for path in files}


def what_is_wrong(folder: Path) -> str | None:
    """Why a checkpoint cannot be used, or None: its files are compared with its checksums."""
    try:
        expected = json.loads((folder / CHECKSUMS).read_text())
    except FileNotFoundError:
        return "was not finished"
    except (OSError, ValueError):
        return f"{CHECKSUMS} cannot be read"
    files = _files(folder)
    for name in sorted(expected.keys() | files.keys()):
        if name not in files:
            return f"{name} is missing"
        if name not in expected:
            return f"{name} does not belong to it"
        if _digest(files[name]) != expected[name]:
            return f"{name} is damaged"
    return None


def check_whole(folder: Path) -> None:
    """Refuses a checkpoint that does not agree with its checksums.

    Raises:
        InputError: saying what is wrong, and how to use the one before.
    """
    wrong = what_is_wrong(folder) if folder.is_dir() else "it is missing"
    if wrong is not None:
        raise InputError(
            f"{folder}: the checkpoint is damaged ({wrong}); move the folder away to use the one before it"
        )


def _steps(folder: Path) -> list[int]:
    """Steps of the checkpoints that are there, the latest first."""
    if not folder.is_dir():
        return []
    return sorted((int(path.name) for path in folder.iterdir() if path.name.isdigit()), reverse=True)


def put_damaged_aside(run_dir: Path) -> None:
    """Moves checkpoints that are damaged or were not finished to `damaged/`, from the latest to the first whole one."""
    folder = run_dir / CHECKPOINTS
    for step in _steps(folder):
        wrong = what_is_wrong(folder / str(step))
        if wrong is None:
            break
        aside = run_dir / DAMAGED / str(step)
        shutil.rmtree(aside, ignore_errors=True)
        aside.parent.mkdir(exist_ok=True)
        (folder / str(step)).rename(aside)
        logging.warning("checkpoint %s: %s; put aside as %s", folder / str(step), wrong, aside)
    for leftover in folder.glob("*.orbax-checkpoint-tmp*"):
        shutil.rmtree(leftover, ignore_errors=True)


class CheckpointWriter:
    """Writes and reads back the checkpoints of a run, on one host or several that share its folder.

    Args:
        run_dir: the run's folder.
        record: of the model.
        settings: how many to keep.
    """

    def __init__(self, run_dir: Path, record: ModelRecord, settings: Checkpoints):
        self._record, self._folder = record, run_dir / CHECKPOINTS
        self._policy, self._written = _LatestAndBest(settings.keep), 0
        _quiet_orbax()
        self._manager = ocp.CheckpointManager(
            self._folder.resolve(),
            item_names=("params", "training", "progress", "model"),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self._policy,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._add_checksums),
            ),
        )

    def _add_checksums(self) -> None:
        """Called when all is written, before Orbax gives the folder its name."""
        if jax.process_index() == 0:
            folder = next(self._folder.glob(f"{self._written}.orbax-checkpoint-tmp*"))
            digests = {name: _digest(path) for name, path in _files(folder).items()}
            write_text(folder / CHECKSUMS, json.dumps(digests, indent=1) + "\n")
        release_freed_memory()  # What a checkpoint took lies among the steps' buffers, and would never be given back.

    def latest(self) -> int | None:
        """Step of the latest checkpoint."""
        return self._manager.latest_step()

    def save(self, step: int, params: nnx.State, training: Any, progress: Mapping[str, Any], best_step: int) -> None:
        """Copies the state and writes it in the background, after waiting for the checkpoint before.

        Args:
            step: its name.
            params: what is evaluated.
            training: a tree of the other arrays.
            progress: a JSON object.
            best_step: the checkpoint that is kept beside the latest.

        Raises:
            InputError: the one before could not be written.
        """
        self.wait()
        self._policy.best_step, self._written = best_step, step
        arrays = (parameters.named(params), named_arrays(training))
        if jax.default_backend() == "cpu":  # Orbax reads these in place, and the next step may write over them.
            arrays = jax.tree.map(jnp.copy, arrays)
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardSave(arrays[0]),
                    training=ocp.args.StandardSave(arrays[1]),
                    progress=ocp.args.JsonSave(dict(progress)),
                    model=ocp.args.JsonSave(self._record.to_json()),
                ),
            )
        except ORBAX_ERRORS as error:
            raise self._failed(error) from error

    def _failed(self, error: BaseException) -> InputError:
        text = " ".join(str(error).split())[:300]
        return InputError(
            f"{self._folder / str(self._written)}: the checkpoint could not be written ({text}); those before are "
            "whole: mend the cause, such as a full disk, and run the same command to go on"
        )

    def wait(self) -> None:
        """Waits until all is on disk.

        Raises:
            InputError: it could not be written.
        """
        try:
            self._manager.wait_until_finished()
        except (*ORBAX_ERRORS, RuntimeError) as error:
            raise self._failed(error) from error

    def progress(self, step: int) -> dict[str, Any]:
        """The JSON object of a checkpoint."""
        return self._manager.restore(step, args=ocp.args.Composite(progress=ocp.args.JsonRestore())).progress

    def restore(self, step: int, params: nnx.State, training: Any) -> tuple[nnx.State, Any]:
        """Reads the state back, onto the devices where `params` and `training` lie.

        Raises:
            InputError: what is there does not fit.
        """
        args = ocp.args.Composite(
            params=_placed_like(parameters.named(params)), training=_placed_like(named_arrays(training))
        )
        try:
            saved = self._manager.restore(step, args=args)
        except ORBAX_ERRORS as error:
            text = " ".join(str(error).split())[:200]
            raise InputError(f"{self._folder / str(step)}: is not this run's ({text})") from error
        return parameters.from_named(params, saved.params), with_arrays(training, saved.training)

    def best_params(self, step: int, params: nnx.State) -> nnx.State:
        """The evaluated parameters of a checkpoint, where `params` lie."""
        args = ocp.args.Composite(params=_placed_like(parameters.named(params)))
        saved = self._manager.restore(step, args=args).params
        return parameters.from_named(params, saved)

    def close(self) -> None:
        """Waits for what is being written and gives up what is held; what failed has been told by save or wait."""
        with contextlib.suppress(*ORBAX_ERRORS, RuntimeError):
            self._manager.close()


def write_model(run_dir: Path, record: ModelRecord, params: nnx.State, step: int) -> None:
    """Writes a checkpoint of a finished model, which nothing goes on from, in place of any there.

    Args:
        run_dir: folder that receives it.
        record: of the model.
        params: of the model.
        step: its name, above 0.

    Raises:
        InputError: it could not be written.
    """
    if jax.process_index() == 0:
        shutil.rmtree(run_dir / CHECKPOINTS, ignore_errors=True)
    writer = CheckpointWriter(run_dir, record, Checkpoints())
    try:
        writer.save(step, params, {"step": jnp.int32(step)}, {"best_step": step}, step)
        writer.wait()
    finally:
        writer.close()


class Restored(NamedTuple):
    """A checkpoint read back."""

    record: ModelRecord
    graph: nnx.GraphDef
    params: nnx.State


def best_step(run_dir: str | Path) -> int:
    """Step of the best checkpoint on validation so far, as the latest one says.

    Raises:
        InputError: there is none.
    """
    folder = Path(run_dir) / CHECKPOINTS
    if not folder.is_dir():
        raise InputError(
            f"{run_dir}: holds no {CHECKPOINTS} folder; bind CHECKPOINT to the RUN_DIR of a pre-training run"
        )
    steps = _steps(folder)
    best = 0
    if steps:
        check_whole(folder / str(steps[0]))
        best = json.loads((folder / str(steps[0]) / "progress" / "metadata").read_text())["best_step"]
    if not best:
        raise InputError(f"{folder}: holds no finished checkpoint; the run stopped before its first evaluation")
    return best


def restore(run_dir: str | Path) -> Restored:
    """Reads the best checkpoint of a run's folder: what model it is, its graph, and its parameters.

    Raises:
        InputError: there is none, it is damaged, or its arrays do not fit its own record.
    """
    step = best_step(run_dir)
    place = Path(run_dir) / CHECKPOINTS / str(step)
    check_whole(place)
    with ocp.CheckpointManager(
        place.parent.resolve(),
        options=ocp.CheckpointManagerOptions(read_only=True),
        item_handlers={"params": ocp.StandardCheckpointHandler(), "model": ocp.JsonCheckpointHandler()},
    ) as manager:
        try:
            model = manager.restore(step, args=ocp.args.Composite(model=ocp.args.JsonRestore())).model
            record = ModelRecord.from_json(model)
            graph, like = build(record.architecture, record.vocab_sizes, seed=0)
            device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            stored = manager.item_metadata(step).params
            wanted = {
                name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device) for name, leaf in stored.items()
            }
            saved = manager.restore(step, args=ocp.args.Composite(params=ocp.args.StandardRestore(wanted))).params
        except InputError as error:
            raise InputError(f"{place}: {error}") from error
        except ORBAX_ERRORS as error:
            raise InputError(f"{place}: the checkpoint is damaged ({' '.join(str(error).split())[:200]})") from error
    try:
        return Restored(record, graph, parameters.from_named(like, saved))
    except InputError as error:
        raise InputError(f"{place}: {error}") from error
