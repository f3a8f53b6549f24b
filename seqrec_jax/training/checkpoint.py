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
from absl import logging

from seqrec_jax.errors import InputError
from seqrec_jax.host_memory import release_freed_memory
from seqrec_jax.model.parameters import Params
from seqrec_jax.model.spec import Spec
from seqrec_jax.model.storage import CHECKPOINTS, ORBAX_ERRORS, steps_of, what_is_wrong, write_checksums


def named_arrays(tree: Any) -> dict[str, jax.Array]:
    """The arrays of any tree under their paths."""
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _placed_like(arrays: Mapping[str, jax.Array]) -> ocp.args.StandardRestore:
    """What to read, and onto which devices."""
    like = {name: jax.ShapeDtypeStruct(of.shape, of.dtype, sharding=of.sharding) for name, of in arrays.items()}
    return ocp.args.StandardRestore(like)


def _quiet_orbax() -> None:
    """Leaves out what Orbax's writers print, one by one, when a checkpoint cannot be written; it is raised as well."""

    def hook(unraisable: Any) -> None:
        if "loop is closed" not in str(unraisable.exc_value):
            sys.__unraisablehook__(unraisable)

    sys.unraisablehook = hook
    std_logging.getLogger("asyncio").setLevel(std_logging.CRITICAL)


def put_damaged_aside(run_dir: Path) -> None:
    """Moves checkpoints that are damaged or were not finished to `damaged/`, from the latest to the first whole one."""
    folder = run_dir / CHECKPOINTS
    for step in steps_of(folder):
        if (wrong := what_is_wrong(folder / str(step))) is None:
            break
        aside = run_dir / "damaged" / str(step)
        shutil.rmtree(aside, ignore_errors=True)
        aside.parent.mkdir(exist_ok=True)
        (folder / str(step)).rename(aside)
        logging.warning("checkpoint %s: %s; put aside as %s", folder / str(step), wrong, aside)
    for leftover in folder.glob("*.orbax-checkpoint-tmp*"):
        shutil.rmtree(leftover, ignore_errors=True)


class CheckpointWriter:
    """Writes and reads back the checkpoints of training, on one host or several that share the folder.

    They lie in `folder`/checkpoints; the `keep` latest are kept beside the best.
    """

    def __init__(self, folder: Path, spec: Spec, keep: int):
        self._spec, self._folder, self._written = spec, folder / CHECKPOINTS, 0
        self._latest = ocp.checkpoint_managers.LatestN(keep)
        self._policy = ocp.checkpoint_managers.AnyPreservationPolicy([self._latest])
        _quiet_orbax()
        in_background = ocp.AsyncOptions(post_finalization_callback=self._finalize)
        self._manager = ocp.CheckpointManager(
            self._folder.resolve(), item_names=("params", "training", "progress", "model"),
            options=ocp.CheckpointManagerOptions(preservation_policy=self._policy, async_options=in_background),
        )  # fmt: skip

    def _finalize(self) -> None:
        """Called when all is written, before Orbax gives the folder its name."""
        if jax.process_index() == 0:
            write_checksums(next(self._folder.glob(f"{self._written}.orbax-checkpoint-tmp*")))
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
        except (*ORBAX_ERRORS, RuntimeError) as error:
            raise InputError(
                f"{self._folder / str(self._written)}: the checkpoint could not be written "
                f"({' '.join(str(error).split())[:300]}); those before are whole: mend the cause, such as a full disk, "
                "and run the same command to go on"
            ) from error

    def wait(self) -> None:
        """Waits until all is on disk; an InputError where it could not be written."""
        with self._failure():
            self._manager.wait_until_finished()

    def progress(self, step: int) -> dict[str, Any]:
        """The JSON object of a checkpoint."""
        return self._manager.restore(step, args=ocp.args.Composite(progress=ocp.args.JsonRestore())).progress

    def restore(self, step: int, params: Params, training: Any) -> tuple[Params, Any]:
        """Reads the state back, onto the devices where `params` and `training` lie, or raises an InputError."""
        named = named_arrays(training)
        args = ocp.args.Composite(params=_placed_like(params), training=_placed_like(named))
        try:
            saved = self._manager.restore(step, args=args)
        except ORBAX_ERRORS as error:
            text = " ".join(str(error).split())[:200]
            raise InputError(f"{self._folder / str(step)}: is not this run's ({text})") from error
        return saved.params, jax.tree.unflatten(jax.tree.structure(training), [saved.training[name] for name in named])

    def best_params(self, step: int, params: Params) -> Params:
        """The evaluated parameters of a checkpoint, where `params` lie."""
        return self._manager.restore(step, args=ocp.args.Composite(params=_placed_like(params))).params

    def close(self) -> None:
        """Waits for what is being written; what failed has been raised by save or wait."""
        with contextlib.suppress(*ORBAX_ERRORS, RuntimeError):
            self._manager.close()
