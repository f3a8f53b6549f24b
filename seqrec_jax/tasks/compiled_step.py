"""The step of a run, compiled for a batch size, or for the largest that fits."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from flax import nnx

from seqrec_jax.data.batches import PackedBatches
from seqrec_jax.data.split import Split
from seqrec_jax.data.store import Dataset
from seqrec_jax.devices import MODEL_AXIS, local_shards, shardings, split_rows
from seqrec_jax.losses.loss import Loss
from seqrec_jax.model.recommender import Architecture, build, graph_of
from seqrec_jax.tasks.training_data import training_batches
from seqrec_jax.training.costs import compiled_bytes
from seqrec_jax.training.guards import check_memory
from seqrec_jax.training.schedules import Schedule, scaled
from seqrec_jax.training.step import Catalog, Precision, TrainState, make_train_step
from seqrec_jax.training.tuning import Fixed, Held, Tuning

TRIES = 8


class CompiledStep(NamedTuple):
    """A step and what it was compiled for.

    Attributes:
        batch_size: targets of a step, about.
        batches: of training.
        schedule: of the whole run.
        optimizer: following it.
        step: see make_train_step.
        bytes: of one device, while it runs and between steps.
    """

    batch_size: int
    batches: PackedBatches
    schedule: Schedule
    optimizer: optax.GradientTransformation
    step: jax.stages.Compiled
    bytes: int


@dataclasses.dataclass(frozen=True)
class StepCompiler:
    """All that a step depends on but the batch size; see pretrain for the settings.

    Attributes:
        data: to train on.
        split: of it.
        mesh: of devices.
        architecture: of the model.
        vocab_sizes: see Recommender.
        catalog: on the devices.
        objective: the loss.
        schedule: from the number of steps.
        optimizer: from the schedule.
        precision: of the computation.
        start: parameters to begin with; None for fresh ones.
        tuning: what of them is trained; None for all.
        held: what the tuning's penalty holds them to.
        groups: see training_batches.
        shares: see training_batches.
        task: whose bindings messages name.
    """

    data: Dataset
    split: Split
    mesh: jax.sharding.Mesh
    architecture: Architecture
    vocab_sizes: dict[str, int]
    catalog: Catalog
    objective: Loss
    schedule: Callable[[int], Schedule]
    optimizer: Callable[[Schedule], optax.GradientTransformation]
    precision: Precision
    seed: int
    epochs: int
    loss_positions: str
    rematerialize: bool
    ema_decay: float | None
    skip_nonfinite: bool
    learning_rate_batch_size: int | None
    learning_rate_scaling: str
    start: nnx.State | None = None
    tuning: Tuning | None = None
    held: Held | None = None
    groups: np.ndarray | None = None
    shares: Sequence[float] | None = None
    task: str = "pretrain"

    def batches(self, batch_size: int) -> PackedBatches:
        """Batches of about that many targets.

        Raises:
            InputError: see training_batches.
        """
        return training_batches(
            self.data,
            self.split,
            train_batch_size=batch_size,
            loss_positions=self.loss_positions,
            max_length=self.architecture.max_length,
            shards=self.mesh.size,
            seed=self.seed,
            accumulation_steps=self.precision.accumulation_steps,
            task=self.task,
            groups=self.groups,
            shares=self.shares,
        )

    def _shapes(self, optimizer: optax.GradientTransformation) -> TrainState:
        """Shapes and places of the state's arrays."""

        def init() -> TrainState:
            trained, fixed = self._divided(build(self.architecture, self.vocab_sizes, self.seed)[1])
            averaged = None if self.ema_decay is None else trained
            return TrainState(trained, optimizer.init(trained), np.int32(0), averaged, fixed)

        shapes = jax.eval_shape(init)
        return jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            shapes,
            shardings(self.mesh, shapes),
        )

    def param_shapes(self) -> nnx.State:
        """Shapes of the model's parameters."""
        return jax.eval_shape(lambda: build(self.architecture, self.vocab_sizes, self.seed)[1])

    def init(self, optimizer: optax.GradientTransformation) -> tuple[nnx.GraphDef, TrainState]:
        """The graph for evaluation, and a fresh state on the devices."""
        graph, params = build(self.architecture, self.vocab_sizes, self.seed, lambda like: shardings(self.mesh, like))
        if self.start is not None:
            params = jax.device_put(self.start, shardings(self.mesh, self.start))
        if self.start is not None or self.tuning is not None:  # The state's buffers are given up, these are not.
            params, fixed = jax.tree.map(jnp.copy, self._divided(params))
        else:
            fixed = None
        places = shardings(self.mesh, jax.eval_shape(optimizer.init, params))
        state = jax.jit(optimizer.init, out_shardings=places)(params)
        step = jax.jit(lambda: np.int32(0), out_shardings=shardings(self.mesh, np.int32(0)))()
        averaged = None if self.ema_decay is None else jax.tree.map(lambda array: array.copy(), params)
        return graph, TrainState(params, state, step, averaged, fixed)

    def _divided(self, params: nnx.State) -> tuple[Any, Fixed | None]:
        """What is trained, and what is fixed."""
        return (params, None) if self.tuning is None else self.tuning.split(params, self.seed, self.held)

    def prepare(self, batch_size: int) -> tuple[PackedBatches, Schedule, optax.GradientTransformation]:
        """What a step needs before it is compiled; refuses at once what compiling would refuse later.

        Raises:
            InputError: the batch does not divide over the devices, or a setting of the schedule or optimizer is wrong.
        """
        batches = self.batches(batch_size)
        schedule = scaled(
            self.schedule(self.epochs * batches.steps_per_epoch),
            batch_size, self.learning_rate_batch_size, self.learning_rate_scaling,
        )  # fmt: skip
        return batches, schedule, self.optimizer(schedule)

    def compile(self, batch_size: int) -> CompiledStep:
        """Compiles the step for a batch size; nothing of the batch's size is allocated.

        Raises:
            InputError: see prepare.
        """
        batches, schedule, optimizer = self.prepare(batch_size)
        axis = MODEL_AXIS if self.mesh.shape[MODEL_AXIS] > 1 else None
        graph = graph_of(self.architecture, self.vocab_sizes, self.rematerialize, axis)
        step = make_train_step(
            graph, self.objective, optimizer, self.mesh, self.seed, self.precision, self.ema_decay, self.skip_nonfinite,
            self.tuning,
        )  # fmt: skip
        state = self._shapes(optimizer)
        batch = split_rows(self.mesh, batches.batch(0, local_shards(self.mesh, batches.shards)))
        compiled = step.lower(state, self.catalog, batch).compile()
        return CompiledStep(
            batch_size, batches, schedule, optimizer, compiled, compiled_bytes(compiled) + self._beside_the_step(state)
        )

    def _beside_the_step(self, state: TrainState) -> int:
        """Bytes of a device for what comes between steps: the catalog's embeddings; on a CPU, a checkpoint's copy."""
        evaluation = 4 * (self.catalog.n_items + 1) * self.architecture.output_size
        copied = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
        return evaluation + (copied if jax.default_backend() == "cpu" else 0)

    def largest(self, limit: int) -> CompiledStep:
        """The step of the largest batch that fits, by the compiler's plans, to a tenth; nothing is run to find it.

        Memory grows with the batch along a line, nearly, so a few compilations find the place. No batch is larger than
        an epoch.

        Args:
            limit: bytes of a device.

        Raises:
            InputError: not even the smallest batch fits.
        """
        length = 1 if self.loss_positions == "last" else self.architecture.max_length
        unit = self.mesh.size * self.precision.accumulation_steps * length
        best = self.compile(unit)
        check_memory(best.bytes, limit)
        most = max(1, best.batches.n_targets // unit)
        low, high, slope = 1, most + 1, 0.0
        guess = min(8, most)
        for _ in range(TRIES):
            if high - low <= max(1, low // 10):
                break
            tried = self.compile(guess * unit)
            logging.info("batch size %d needs %.3g GB of %.3g", guess * unit, tried.bytes / 1e9, limit / 1e9)
            slope = max(1.0, (tried.bytes - best.bytes) / (guess - low))
            if tried.bytes <= limit:
                best, low = tried, guess
            else:
                high = guess
            guess = min(high - 1, max(low + 1, low + int((limit - best.bytes) / slope)))
        logging.info("pretrain.train_batch_size = 'auto': %d, %.3g GB", best.batch_size, best.bytes / 1e9)
        return best
