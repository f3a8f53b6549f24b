"""Recommenders on disk: the checkpoints of a run's folder as Orbax writes them, with checksums over every file.

A folder holds `tokenizer.model`, a file for each statistic, and `checkpoints/<step>/`, each with the items `params` and
`model` (JSON, the spec), in training also `training` and `progress`, and with `checksums.json`.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from seqrec_jax.data.format import TOKENIZER, sha256_of
from seqrec_jax.errors import InputError
from seqrec_jax.files import write_text
from seqrec_jax.model.parameters import check_finite
from seqrec_jax.model.recommender import Recommender
from seqrec_jax.model.spec import Spec
from seqrec_jax.model.terms import TERMS

CHECKPOINTS = "checkpoints"
CHECKSUMS = "checksums.json"
CONFIG = "config.json"
ORBAX_ERRORS = (ValueError, KeyError, TypeError, AttributeError, OSError)


def _files(folder: Path) -> dict[str, Path]:
    """Those of the items; what Orbax writes beside them, last of all, are times and marks."""
    files = (path for path in sorted(folder.glob("*/**/*")) if path.is_file())
    return {str(path.relative_to(folder)): path for path in files}


def write_checksums(folder: Path) -> None:
    """Writes the checksums of a checkpoint's files into its folder."""
    digests = {name: sha256_of(path) for name, path in _files(folder).items()}
    write_text(folder / CHECKSUMS, json.dumps(digests, indent=1) + "\n")


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
        if sha256_of(files[name]) != expected[name]:
            return f"{name} is damaged"
    return None


def check_whole(folder: Path) -> None:
    """Refuses, by an InputError, a checkpoint that does not agree with its checksums."""
    wrong = what_is_wrong(folder) if folder.is_dir() else "it is missing"
    if wrong is not None:
        raise InputError(f"{folder}: the checkpoint is damaged ({wrong}); move it away to use the one before it")


def steps_of(folder: Path) -> list[int]:
    """Steps of the checkpoints in a `checkpoints` folder, the latest first."""
    return sorted((int(path.name) for path in folder.glob("[0-9]*") if path.name.isdigit()), reverse=True)


def best_step(run_dir: Path) -> int:
    """Step of the best checkpoint on validation so far, as the latest one says; an InputError where there is none."""
    folder = run_dir / CHECKPOINTS
    if not folder.is_dir():
        raise InputError(f"{run_dir}: holds no {CHECKPOINTS} folder; bind CHECKPOINT to the RUN_DIR of a training run")
    best = 0
    for latest in steps_of(folder)[:1]:
        check_whole(folder / str(latest))
        best = json.loads((folder / str(latest) / "progress" / "metadata").read_text())["best_step"]
    if not best:
        raise InputError(f"{folder}: holds no finished checkpoint; the run stopped before its first evaluation")
    return best


def load(folder: str | Path) -> Recommender:
    """Reads a recommender: the best of a run's folder on validation, or a saved one.

    An InputError where there is none, it is damaged, or its arrays do not fit its own spec or are not finite.
    """
    run_dir = Path(folder)
    step = best_step(run_dir)
    place = run_dir / CHECKPOINTS / str(step)
    check_whole(place)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    try:
        spec = Spec.from_json(json.loads((place / "model" / "metadata").read_text()))
        wanted = {
            name: jax.ShapeDtypeStruct(of.shape, of.dtype, sharding=device) for name, of in spec.graph().shapes.items()
        }
        with ocp.StandardCheckpointer() as reader:
            params = reader.restore((place / "params").resolve(), wanted)
        check_finite(params)
    except InputError as error:
        raise InputError(f"{place}: {error}") from error
    except ORBAX_ERRORS as error:
        raise InputError(f"{place}: the checkpoint is damaged ({' '.join(str(error).split())[:200]})") from error
    statistics = {
        term.name: term.statistic.read(run_dir / f"{term.name}.npz")
        for term in TERMS
        if term.statistic is not None and term.is_in(spec.architecture)
    }
    config, tokenizer = run_dir / CONFIG, run_dir / TOKENIZER
    trained_with = json.loads(config.read_text()).get("Corpus", {}) if config.exists() else {}
    return Recommender(spec, params, statistics, tokenizer.read_bytes() if tokenizer.exists() else b"", trained_with)


def write_beside(folder: Path, model: Recommender) -> None:
    """Writes what lies beside the checkpoints: the tokenizer, and the statistics."""
    partial = folder / f".{TOKENIZER}.partial"
    partial.write_bytes(model.tokenizer)
    partial.replace(folder / TOKENIZER)
    for name, statistic in model.statistics.items():
        statistic.write(folder / f"{name}.npz")


def save(folder: str | Path, model: Recommender, step: int = 1) -> None:
    """Writes a recommender that nothing goes on from, as the checkpoint of a step, on one host or several.

    An InputError where the folder holds a checkpoint already, or cannot be written.
    """
    folder = Path(folder)
    if (folder / CHECKPOINTS).exists():
        raise InputError(f"{folder}: holds a checkpoint; bind RUN_DIR to another folder")
    first = jax.process_index() == 0
    try:
        if first:
            folder.mkdir(parents=True, exist_ok=True)
            write_beside(folder, model)

        def finalize() -> None:
            if first:
                write_checksums(next((folder / CHECKPOINTS).glob(f"{step}.orbax-checkpoint-tmp*")))

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
    except (*ORBAX_ERRORS, RuntimeError) as error:
        raise InputError(f"{folder}: the model could not be written ({' '.join(str(error).split())[:300]})") from error
