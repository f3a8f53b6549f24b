"""The best parameters of a run, by Orbax, and the record of what model they belong to.

A run's folder holds `checkpoints/<epoch>/` with the items `params` and `model`, and `tokenizer.model`.
Orbax writes each checkpoint under a temporary name and renames it, so one that is there is whole.
"""

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from flax import nnx

from seqrec_jax.data import format
from seqrec_jax.errors import InputError
from seqrec_jax.model import parameters
from seqrec_jax.model.item_encoder import ITEM_ID
from seqrec_jax.model.recommender import Architecture, build

CHECKPOINTS = "checkpoints"


class ModelRecord(NamedTuple):
    """What a checkpoint says of its model.

    Attributes:
        architecture: the recommender's shape.
        vocab_sizes: rows of each feature's token table, in the order of concatenation, and of the items' under
            `item_id`.
        max_tokens: most tokens that the model reads of each text feature.
        tokenizer_sha256: of the SentencePiece model whose tokens it knows.
        catalog_sha256: of the catalog whose items it has rows for; None where it has none.
    """

    architecture: Architecture
    vocab_sizes: dict[str, int]
    max_tokens: dict[str, int]
    tokenizer_sha256: str
    catalog_sha256: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; the features are a list, as their order matters."""
        return {
            "architecture": dataclasses.asdict(self.architecture),
            "features": [
                {"name": name, "vocab_size": self.vocab_sizes[name], "max_tokens": most}
                for name, most in self.max_tokens.items()
            ],
            "tokenizer_sha256": self.tokenizer_sha256,
            "item_rows": self.vocab_sizes.get(ITEM_ID),
            "catalog_sha256": self.catalog_sha256,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "ModelRecord":
        """The inverse of to_json."""
        features, item_rows = record["features"], record.get("item_rows")
        return cls(
            Architecture(**record["architecture"]),
            {feature["name"]: feature["vocab_size"] for feature in features}
            | ({} if item_rows is None else {ITEM_ID: item_rows}),
            {feature["name"]: feature["max_tokens"] for feature in features},
            record["tokenizer_sha256"],
            record.get("catalog_sha256"),
        )


class BestCheckpoint:
    """Keeps the best parameters of a run in its folder.

    Args:
        run_dir: the run's folder.
        record: of the model.
        tokenizer: SentencePiece model file, copied beside the checkpoints.
    """

    def __init__(self, run_dir: Path, record: ModelRecord, tokenizer: Path):
        self._record = record
        run_dir.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(tokenizer, run_dir / format.TOKENIZER)
        self._manager = ocp.CheckpointManager(
            (run_dir / CHECKPOINTS).resolve(),
            options=ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False),
        )

    def save(self, epoch: int, params: nnx.State) -> None:
        """Writes the parameters, then removes the ones kept before."""
        self._manager.save(
            epoch,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(parameters.named(params)),
                model=ocp.args.JsonSave(self._record.to_json()),
            ),
        )

    def close(self) -> None:
        """Waits for pending work."""
        self._manager.close()


class Restored(NamedTuple):
    """A checkpoint read back."""

    record: ModelRecord
    graph: nnx.GraphDef
    params: nnx.State


def restore(run_dir: str | Path) -> Restored:
    """Reads the checkpoint of a run's folder: what model it is, its graph, and its parameters.

    Raises:
        InputError: there is none, it is damaged, or its arrays do not fit its own record.
    """
    folder = Path(run_dir) / CHECKPOINTS
    if not folder.is_dir():
        raise InputError(
            f"{run_dir}: holds no {CHECKPOINTS} folder; bind CHECKPOINT to the RUN_DIR of a pre-training run"
        )
    with ocp.CheckpointManager(
        folder.resolve(),
        options=ocp.CheckpointManagerOptions(read_only=True),
        item_handlers={"params": ocp.StandardCheckpointHandler(), "model": ocp.JsonCheckpointHandler()},
    ) as manager:
        epoch = manager.latest_step()
        if epoch is None:
            raise InputError(f"{folder}: holds no finished checkpoint; the run stopped before its first evaluation")
        place = folder / str(epoch)
        try:
            model = manager.restore(epoch, args=ocp.args.Composite(model=ocp.args.JsonRestore())).model
            record = ModelRecord.from_json(model)
            graph, like = build(record.architecture, record.vocab_sizes, seed=0)
            device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            stored = manager.item_metadata(epoch).params
            wanted = {
                name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device) for name, leaf in stored.items()
            }
            saved = manager.restore(epoch, args=ocp.args.Composite(params=ocp.args.StandardRestore(wanted))).params
        except InputError as error:
            raise InputError(f"{place}: {error}") from error
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            raise InputError(f"{place}: the checkpoint is damaged ({' '.join(str(error).split())[:200]})") from error
    try:
        return Restored(record, graph, parameters.from_named(like, saved))
    except InputError as error:
        raise InputError(f"{place}: {error}") from error
