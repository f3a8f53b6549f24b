"""Checkpoints of training by Orbax, written in the background: all that a run needs to go on, bit for bit.

`checkpoints/<step>/` holds the items `params` (what is evaluated), `model` (JSON), `training` (the rest of the state),
`progress` (JSON) and `checksums.json`; model/storage.py reads the model alone. Orbax writes a checkpoint under a
temporary name, the checksums last, and renames it. One that does not agree with them is put aside, in `damaged/`.
"""

import contextlib
import logging as std_logging
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import tensorstore
from absl import logging

from seqrec_jax.errors import InputError, in_short
from seqrec_jax.files import read_json
from seqrec_jax.host_memory import release_freed_memory
from seqrec_jax.model.parameters import Params
from seqrec_jax.model.spec import Spec
from seqrec_jax.model.storage import (
    ANOTHER_RUN,
    CHECKPOINTS,
    ORBAX_ERRORS,
    being_written,
    best_of,
    check_whole,
    steps_of,
    what_is_wrong,
    write_checksums,
)
from seqrec_jax.model.stored_arrays import shapes_of


def named_arrays(tree: Any) -> dict[str, jax.Array]:
    """The arrays of any tree under their paths."""
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _placed_like(arrays: Mapping[str, jax.Array]) -> ocp.args.StandardRestore:
    """What to read, and onto which devices."""
    like = {name: jax.ShapeDtypeStruct(of.shape, of.dtype, sharding=of.sharding) for name, of in arrays.items()}
    return ocp.args.StandardRestore(like)


def _mend_orbax() -> None:
    """Leaves out what Orbax's writers print, one by one, when a checkpoint cannot be written; it is raised as well.

    And what it counts for its own log, as tensorstore 0.1.86 loses 8 kB each time that it is asked: see BUILD.md.
    """

    def hook(unraisable: Any) -> None:
        if "loop is closed" not in str(unraisable.exc_value):
            sys.__unraisablehook__(unraisable)

    sys.unraisablehook = hook
    tensorstore.experimental_collect_matching_metrics = lambda *_: []  # type: ignore[assignment, misc]
    std_logging.getLogger("asyncio").setLevel(std_logging.CRITICAL)


def _why_not(folder: Path, step: int, run: str) -> str | None:
    """Why a run cannot go on from a checkpoint, or None: it and the best one that it names have to be whole."""
    if (wrong := what_is_wrong(folder / str(step), run)) is not None:
        return wrong
    best = best_of(folder / str(step))
    if best in (0, step) or (wrong := what_is_wrong(folder / str(best), run)) is None:
        return None
    return f"the best one, {best}, {'is missing' if not (folder / str(best)).is_dir() else wrong}"


def put_damaged_aside(run_dir: Path, run: str) -> str | None:
    """Moves to `damaged/` what a run cannot go on from, from the latest checkpoint to the first that it can.

    That is a checkpoint that is damaged or was not finished, or whose best one is. Where one belongs to another run
    than that of the identity `run`, nothing is moved; returns what to do then.
    """
    folder = run_dir / CHECKPOINTS
    reasons = {}
    for step in steps_of(folder):
        if (wrong := _why_not(folder, step, run)) is None:
            break
        if ANOTHER_RUN in wrong:
            return f"{folder / str(step)}: {wrong}; move it away, or bind another RUN_DIR"
        reasons[step] = wrong
    for step, wrong in reasons.items():
        aside = run_dir / "damaged" / str(step)
        shutil.rmtree(aside, ignore_errors=True)
        aside.parent.mkdir(exist_ok=True)
        (folder / str(step)).rename(aside)
        logging.warning("checkpoint %s: %s; put aside as %s", folder / str(step), wrong, aside)
    for leftover in folder.glob("[0-9]*.orbax-checkpoint-tmp*"):
        shutil.rmtree(leftover, ignore_errors=True)
    return None


def _check_readable(params: Path, spec: Spec) -> None:
    """Reads parameters that were just written; what Orbax raises where it cannot, a ValueError where some are missing.

    The first checkpoint of a process is read back so: what keeps one from being read, such as a file system that loses
    what is written, keeps all.
    """
    with ocp.StandardCheckpointer() as reader:
        found = reader.restore(params.resolve())
    if found.keys() != spec.graph().shapes.keys():
        raise ValueError("what was written cannot be read back")


class CheckpointWriter:
    """Writes and reads back the checkpoints of training, on one host or several that share the folder.

    They lie in `folder`/checkpoints and belong to the run of the identity `run`; the `keep` latest are kept beside the
    best.
    """

    def __init__(self, folder: Path, spec: Spec, keep: int, run: str):
        self._spec, self._folder, self._run, self._written = spec, folder / CHECKPOINTS, run, 0
        self._read_back = False
        self._latest = ocp.checkpoint_managers.LatestN(keep)
        self._policy = ocp.checkpoint_managers.AnyPreservationPolicy([self._latest])
        _mend_orbax()
        in_background = ocp.AsyncOptions(post_finalization_callback=self._finalize)
        self._manager = ocp.CheckpointManager(
            self._folder.resolve(), item_names=("params", "training", "progress", "model"),
            options=ocp.CheckpointManagerOptions(preservation_policy=self._policy, async_options=in_background),
        )  # fmt: skip

    def _finalize(self) -> None:
        """Called when all is written, before Orbax gives the folder its name."""
        if jax.process_index() == 0:
            place = being_written(self._folder, self._written)
            if not self._read_back and jax.process_count() == 1:
                _check_readable(place / "params", self._spec)
                self._read_back = True
            write_checksums(place, self._run)
        release_freed_memory()  # What a checkpoint took lies among the steps' buffers, and would never be given back.

    def latest(self) -> int | None:
        """Step of the latest checkpoint."""
        return self._manager.latest_step()

    def save(self, step: int, params: Params, training: Any, progress: Mapping[str, Any], best_step: int) -> None:
        """Copies the state and writes it in the background, after waiting for the checkpoint before.

        `params` are what is evaluated, `training` is a tree of the other arrays, `progress` a JSON object. The
        checkpoint of `best_step` is kept beside the latest. An InputError where the one before could not be written.
        """
        self.wait()
        self._policy.policies = [self._latest, ocp.checkpoint_managers.CustomSteps([best_step])]
        self._written, arrays = step, {"params": params, "training": named_arrays(training)}
        if jax.default_backend() == "cpu":  # Orbax reads these in place, and the next step may write over them.
            arrays = jax.tree.map(jnp.copy, arrays)
        args = {name: ocp.args.StandardSave(tree) for name, tree in arrays.items()} | {
            "progress": ocp.args.JsonSave(dict(progress)), "model": ocp.args.JsonSave(self._spec.to_json()),
        }  # fmt: skip
        with self._failure():
            self._manager.save(step, args=ocp.args.Composite(**args))

    @contextlib.contextmanager
    def _failure(self) -> Iterator[None]:
        """Says what to do where a checkpoint cannot be written."""
        try:
            yield
        except ORBAX_ERRORS as error:
            raise InputError(
                f"{self._folder / str(self._written)}: the checkpoint could not be written "
                f"({in_short(error)}); those before are whole: mend the cause, such as a full disk, "
                "and run the same command to go on"
            ) from error

    def wait(self) -> None:
        """Waits until all is on disk; an InputError where it could not be written."""
        with self._failure():
            self._manager.wait_until_finished()

    def progress(self, step: int) -> dict[str, Any]:
        """The JSON object of a checkpoint."""
        return read_json(self._folder / str(step) / "progress" / "metadata", "move the checkpoint away")

    def restore(self, step: int, params: Params, training: Any) -> tuple[Params, Any]:
        """Reads the state back, onto the devices where `params` and `training` lie, or raises an InputError."""
        named = named_arrays(training)
        saved = self._restore(step, params=params, training=named)
        return saved.params, jax.tree.unflatten(jax.tree.structure(training), [saved.training[name] for name in named])

    def best_params(self, step: int, params: Params) -> Params:
        """The evaluated parameters of a checkpoint, where `params` lie; an InputError where it is damaged."""
        check_whole(self._folder / str(step), self._run)
        return self._restore(step, params=params).params

    def _restore(self, step: int, **like: Mapping[str, jax.Array]) -> Any:
        """Reads items, each onto the devices where the like arrays lie, or raises an InputError."""
        place = self._folder / str(step)
        try:
            for name, arrays in like.items():
                stored = {of: (array.shape, array.dtype) for of, array in shapes_of(place / name).items()}
                if stored != {of: (array.shape, array.dtype) for of, array in arrays.items()}:
                    raise ValueError(f"its {name} have other names, shapes or types")
            args = {name: _placed_like(arrays) for name, arrays in like.items()}
            return self._manager.restore(step, args=ocp.args.Composite(**args))
        except ORBAX_ERRORS as error:
            raise InputError(f"{place}: is not this run's ({in_short(error)})") from error

    def close(self) -> None:
        """Waits for what is being written; what failed has been raised by save or wait."""
        with contextlib.suppress(*ORBAX_ERRORS):
            self._manager.close()
