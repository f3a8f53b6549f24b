"""How well a model fits what it has seen and what it has not: metrics on train, and the training loss on valid."""

from collections.abc import Callable, Mapping

import jax
from flax import nnx

from seqrec_jax.data.batches import PackedBatches, prefetch
from seqrec_jax.data.packing import histories, pack
from seqrec_jax.data.split import some_targets
from seqrec_jax.devices import local_shards, split_rows
from seqrec_jax.tasks.compiled_step import StepCompiler
from seqrec_jax.training.step import make_valid_loss

TrainMetrics = Callable[[nnx.State], Mapping[str, float]]


class FitReport:
    """What an evaluation tells beside the metrics on valid.

    Both are of at most `users` targets, the same each time. The loss is that of training without dropout, over the same
    negatives each time: drawn from the run's first proposal by keys of the run's seed and the target's place alone.

    Args:
        compiler: of the run.
        graph: of the recommender.
        rows: of a batch.
        users: see above.
        train_metrics: metrics of parameters on training targets, `<metric>_at_<k>`.
    """

    def __init__(self, compiler: StepCompiler, graph: nnx.GraphDef, rows: int, users: int, train_metrics: TrainMetrics):
        self._compiler, self._train_metrics, mesh = compiler, train_metrics, compiler.mesh
        data, length = compiler.data, compiler.architecture.max_length
        targets = some_targets(compiler.split.valid, users, compiler.seed)
        windows = histories(data.offsets, targets, length)
        packing = pack(windows.lengths, length)
        rows = min(rows, -(-max(packing.n_rows, 1) // mesh.size) * mesh.size)
        self._n = len(windows.lengths)
        self._batches = PackedBatches(
            data.items.take, windows, packing, rows=rows, shards=mesh.size, last_only=True, seed=None
        )
        self._local = local_shards(mesh, mesh.size)
        self._loss = make_valid_loss(graph, compiler.objective, mesh, compiler.seed, compiler.precision.compute_dtype)

    def _batch(self, step: int) -> tuple:
        return step, split_rows(self._compiler.mesh, self._batches.batch(step, self._local))

    def __call__(self, params: nnx.State) -> dict[str, float]:
        """`train/<metric>_at_<k>` and `valid/valid_loss`."""
        told = {f"train/{name}": value for name, value in self._train_metrics(params).items()}
        if self._n:
            steps = range(self._batches.steps_per_epoch)
            sums = [self._loss(params, self._compiler.catalog, *of) for of in prefetch(self._batch, steps)]
            told["valid/valid_loss"] = float(sum(float(value) for value in jax.device_get(sums))) / self._n
        return told
