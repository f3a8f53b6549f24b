"""The step of a run, compiled for a batch size, or for the largest that fits."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging

from seqrec_jax.data.batches import PackedBatches, training_batches
from seqrec_jax.data.corpus import Corpus
from seqrec_jax.devices import MODEL_AXIS, local_shards, place, replicate, shardings, split_rows
from seqrec_jax.errors import InputError
from seqrec_jax.losses.loss import Loss
from seqrec_jax.model.graph import Graph
from seqrec_jax.model.parameters import Params
from seqrec_jax.model.recommender import Recommender
from seqrec_jax.model.spec import Spec
from seqrec_jax.runs import costs
from seqrec_jax.runs.step_flops import Flops, traced_flops
from seqrec_jax.training.config import AUTO, TrainConfig
from seqrec_jax.training.optimizers import build_optimizer
from seqrec_jax.training.schedules import Schedule
from seqrec_jax.training.step import Catalog, TrainState, make_train_step
from seqrec_jax.training.tuning import Anchor, Tuning

_batches = functools.lru_cache(maxsize=16)(training_batches)  # Phases of a fine-tuning train on the same batches.


def make_catalog(model: Recommender, corpus: Corpus, config: TrainConfig, mesh: jax.sharding.Mesh) -> Catalog:
    """The items of a corpus as the step reads them, on each device, with the proposal of the configuration."""
    features, proposal = model.features(corpus.data, corpus.item_starts), config.proposal(corpus.train)
    return replicate(mesh, Catalog(features, proposal, corpus.group_ids, corpus.n_groups))


class CompiledStep(NamedTuple):
    """A step and what it was compiled for."""

    batch_size: int  # targets of a step, about
    batches: PackedBatches
    schedule: Schedule  # of the whole run
    optimizer: optax.GradientTransformation
    step: jax.stages.Compiled  # see make_train_step
    bytes: int  # memory of one device, while it runs and between steps
    flops: Flops  # floating-point operations of a step, over all devices


@dataclasses.dataclass(frozen=True, eq=False)
class StepCompiler:
    """All that a step depends on but the batch size."""

    config: TrainConfig
    corpus: Corpus
    spec: Spec
    catalog: Catalog  # items of the corpus, on the devices
    mesh: jax.sharding.Mesh
    start: Params  # parameters to begin with; they are copied
    tuning: Tuning = Tuning()
    anchor: Anchor = Anchor()  # what the tuning's penalty holds them near

    @functools.cached_property
    def loss(self) -> Loss:
        """Loss of the targets."""
        return self.config.loss()

    @functools.cached_property
    def graph(self) -> Graph:
        """Graph that is trained, within shard_map."""
        axis = MODEL_AXIS if self.mesh.shape[MODEL_AXIS] > 1 else None
        return self.spec.graph(rematerialize=self.config.rematerialize, table_axis=axis)

    @functools.cached_property
    def peak_flops(self) -> float:
        """Floating-point operations a second that the devices give."""
        return costs.matmul_peak(self.config.compute_dtype)

    @functools.cached_property
    def epoch_tokens(self) -> int:
        """Text tokens of all training interactions."""
        texts = [np.asarray(self.catalog.features[text.name]) for text in self.spec.texts]
        return int(sum(((tokens != 0).sum(1) * self.corpus.train.counts).sum() for tokens in texts))

    def batches(self, batch_size: int) -> PackedBatches:
        """Batches of about that many targets; an InputError where they do not divide over the devices, or are none."""
        config, length = self.config, self.spec.architecture.max_length
        return _batches(
            self.corpus, batch_size=batch_size, loss_positions=config.loss_positions, max_length=length,
            shards=self.mesh.size, seed=config.seed, accumulation_steps=config.accumulation_steps,
        )  # fmt: skip

    def init(self, optimizer: optax.GradientTransformation) -> TrainState:
        """A fresh state on the devices; its buffers are its own, as steps give them up."""
        tables = self.graph.tables
        start = place(self.mesh, self.start, tables)
        trained, fixed = place(self.mesh, self.tuning.split(start, self.config.seed, self.anchor), tables)
        trained, fixed = jax.tree.map(jnp.copy, (trained, fixed))
        places = shardings(self.mesh, jax.eval_shape(optimizer.init, trained), tables)
        state = jax.jit(optimizer.init, out_shardings=places)(trained)
        step = jax.jit(lambda: np.int32(0), out_shardings=shardings(self.mesh, np.int32(0)))()
        averaged = None if self.config.ema_decay is None else jax.tree.map(jnp.copy, trained)
        return TrainState(trained, state, step, averaged, fixed)

    def prepare(self, batch_size: int) -> tuple[PackedBatches, Schedule, optax.GradientTransformation]:
        """What a step needs before it is compiled; refuses at once, by an InputError, what compiling would later."""
        batches, config = self.batches(batch_size), self.config
        schedule = config.schedule(config.epochs * batches.steps_per_epoch, learning_rate=config.learning_rate)
        return batches, schedule, build_optimizer(config, schedule)

    def check(self) -> None:
        """Refuses, by an InputError, batches as above, and a loss that cannot train the model or draw its negatives."""
        config, architecture = self.config, self.spec.architecture
        if architecture.repeat_offset and not (self.loss.whole_catalog or self.loss.scores_history):
            raise InputError(
                "Architecture.repeat_offset = True is learnt from the histories' items; let TrainConfig.loss be "
                "full_softmax, or sampled_softmax with sampled_softmax.history_negatives = True"
            )
        size = config.train_batch_size
        rows = 2 if isinstance(size, str) else self.batches(size).rows // self.mesh.size
        self.loss.check(self.catalog.proposal, self.catalog.n_items, rows // config.accumulation_steps)

    def trace(self, batches: PackedBatches, optimizer: optax.GradientTransformation) -> tuple[jax.stages.Traced, int]:
        """The traced step and the bytes of its state; nothing of the batch's size is allocated."""

        def fresh(params: Params) -> TrainState:
            trained, fixed = self.tuning.split(params, self.config.seed, self.anchor)
            averaged = None if self.config.ema_decay is None else trained
            return TrainState(trained, optimizer.init(trained), jnp.int32(0), averaged, fixed)

        shapes = jax.eval_shape(fresh, self.start)
        places = shardings(self.mesh, shapes, self.graph.tables)
        state = jax.tree.map(lambda leaf, place: leaf.update(sharding=place, weak_type=False), shapes, places)
        step = make_train_step(self.graph, self.loss, optimizer, self.mesh, self.config, self.tuning)
        batch = split_rows(self.mesh, batches.batch(0, local_shards(self.mesh, batches.shards)))
        return step.trace(state, self.catalog, batch), shapes.bytes

    def compile(self, batch_size: int) -> CompiledStep:
        """Compiles the step for a batch size. Refuses what prepare does."""
        batches, schedule, optimizer = self.prepare(batch_size)
        traced, state_bytes = self.trace(batches, optimizer)
        compiled = traced.lower().compile()
        needed = costs.compiled_bytes(compiled) + 4 * (self.catalog.n_items + 1) * self.spec.output_size  # evaluation
        if jax.default_backend() == "cpu":
            needed += state_bytes  # a checkpoint's copy
        return CompiledStep(batch_size, batches, schedule, optimizer, compiled, needed, traced_flops(traced))

    def largest(self, limit: int) -> CompiledStep:
        """The step of the largest batch, up to an epoch, that fits into `limit` bytes of a device, to a tenth.

        Nothing is run to find it: by the compiler's plans, memory grows with the batch along a line, nearly, so a few
        compilations find the place. An InputError where not even the smallest batch fits.
        """
        length = 1 if self.config.loss_positions == "last" else self.spec.architecture.max_length
        unit = self.mesh.size * self.config.accumulation_steps * length
        best = self.compile(unit)
        costs.check_memory(best.bytes, limit)
        most = max(1, best.batches.n_targets // unit)
        low, high, guess = 1, most + 1, min(8, most)
        for _ in range(8):  # compilations at most
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
        logging.info("TrainConfig.train_batch_size = %r: %d, %.3g GB", AUTO, best.batch_size, best.bytes / 1e9)
        return best
