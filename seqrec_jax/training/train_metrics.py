"""How well a model fits what it has seen and what it has not: metrics on train, and the training loss on valid."""

from collections.abc import Callable, Mapping

import jax

from seqrec_jax.data.batches import PackedBatches, prefetch
from seqrec_jax.data.packing import histories, pack
from seqrec_jax.data.split import some_targets
from seqrec_jax.devices import local_shards, split_rows
from seqrec_jax.model.parameters import Params
from seqrec_jax.training.compile import CompiledStep, StepCompiler
from seqrec_jax.training.step import make_valid_loss


class TrainMetrics:
    """What an evaluation reports beside the metrics on valid: f(params) -> `train/<metric>_at_<k>`, `valid/valid_loss`.

    Both are of at most `users` targets, the same each time. The loss is that of training without dropout, over the same
    negatives each time: drawn from the run's first proposal by keys of the run's seed and the target's place alone.
    `on_train` gives the metrics of parameters on training targets, `<metric>_at_<k>`.
    """

    def __init__(
        self, compiler: StepCompiler, compiled: CompiledStep, users: int,
        on_train: Callable[[Params], Mapping[str, float]],
    ):  # fmt: skip
        self._catalog, self._mesh, self._on_train = compiler.catalog, compiler.mesh, on_train
        data, config, shards = compiler.corpus.data, compiler.config, compiler.mesh.size
        length = compiler.spec.architecture.max_length
        windows = histories(data.offsets, some_targets(compiler.corpus.division.valid, users, config.seed), length)
        packing = pack(windows.lengths, length)
        rows = min(compiled.batches.rows, max(packing.n_rows, 1))
        self._n, self._local = len(windows.lengths), local_shards(self._mesh, shards)
        self._batches = PackedBatches(
            data.items.take, windows, packing, rows=rows, shards=shards, last_only=True, seed=None
        )
        self._loss = make_valid_loss(compiler.graph, compiler.loss, self._mesh, config.seed, config.compute_dtype)

    def __call__(self, params: Params) -> dict[str, float]:
        """The metrics of parameters."""
        metrics = {f"train/{name}": value for name, value in self._on_train(params).items()}
        if self._n:
            steps = range(self._batches.steps_per_epoch)
            batches = prefetch(lambda step: split_rows(self._mesh, self._batches.batch(step, self._local)), steps)
            sums = [self._loss(params, self._catalog, *batch) for batch in enumerate(batches)]
            metrics["valid/valid_loss"] = float(sum(float(value) for value in jax.device_get(sums))) / self._n
        return metrics
