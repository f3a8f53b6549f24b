"""Penalties that hold parameters near the pre-trained ones: L2-SP, and elastic weight consolidation."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh

from seqrec_jax.data.batches import Batch, prefetch, training_batches
from seqrec_jax.data.corpus import Corpus
from seqrec_jax.devices import local_shards, place, split_rows
from seqrec_jax.errors import InputError
from seqrec_jax.files import read_arrays, write_arrays
from seqrec_jax.hosts import is_first_host, raise_on_all_hosts
from seqrec_jax.model.parameters import Params
from seqrec_jax.model.recommender import ROWS, Recommender
from seqrec_jax.training.compile import make_catalog
from seqrec_jax.training.config import TrainConfig
from seqrec_jax.training.step import Catalog, make_loss_and_grads
from seqrec_jax.training.tuning import Anchor, Fixed


class Penalty(NamedTuple):
    """strength * sum of importance * (p - start)^2; see Tuning.penalty."""

    strength: float  # above 0
    fisher_batches: int = 0  # batches of pre-training that the importance is measured over; 0 weighs all alike


def l2_sp(strength: float = 0.01) -> Penalty:
    """L2 towards the start (L2-SP, Li et al., ICML 2018)."""
    if not strength > 0:
        raise InputError(f"l2_sp.strength = {strength} is not above 0; FinetuneConfig.penalty = None is for none")
    return Penalty(strength)


def ewc(strength: float = 100.0, n_batches: int = 3000) -> Penalty:
    """Elastic weight consolidation (Kirkpatrick et al., PNAS 2017), by the diagonal of the Fisher information.

    `strength` multiplies the sum, without the factor 1/2, as the reference has it; the squared gradient is averaged
    over `n_batches` of pre-training.
    """
    if not strength > 0:
        raise InputError(f"ewc.strength = {strength} is not above 0; FinetuneConfig.penalty = None is for none")
    if n_batches < 1:
        raise InputError(f"ewc.n_batches = {n_batches} is below 1")
    return Penalty(strength, n_batches)


def fisher(
    loss_and_grads: Callable[..., tuple[jax.Array, Params]], params: Params, catalog: Catalog, batches: Iterable[Batch],
    seed: int,
) -> Params:  # fmt: skip
    """Mean over batches of the squared gradient of the batch's loss, without dropout, as SRT has it: by name, float32.

    `loss_and_grads` is of make_loss_and_grads, for the whole model; `seed` is that of the negatives. There is at least
    one batch, and all are of pre-training, as the catalog is, and lie on the devices.
    """

    @jax.jit
    def add(total: Params, index: jax.Array, batch: Batch, params: Params, catalog: Catalog) -> Params:
        key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), index)
        _, grads = loss_and_grads(params, Fixed(), catalog, batch, key, None)
        return jax.tree.map(lambda old, grad: old + grad.astype(jnp.float32) ** 2, total, grads)

    total, n = jax.tree.map(lambda array: jnp.zeros_like(array, jnp.float32), params), 0
    for n, batch in enumerate(batches, 1):
        total = jax.block_until_ready(add(total, jnp.int32(n), batch, params, catalog))
    return {name: array / n for name, array in total.items()}


def _importance(model: Recommender, corpus: Corpus, config: TrainConfig, n_batches: int, mesh: Mesh) -> Params:
    """The Fisher information of a model's parameters on the corpus that it was pre-trained on."""
    logging.info("Fisher information over %d batches of %s", n_batches, corpus.name)
    batches = training_batches(
        corpus, batch_size=int(config.train_batch_size), loss_positions="all",
        max_length=model.architecture.max_length, shards=mesh.size, seed=config.seed,
    )  # fmt: skip
    local = local_shards(mesh, batches.shards)
    on_devices = prefetch(lambda index: split_rows(mesh, batches.batch(index, local)), range(n_batches))
    loss_and_grads = make_loss_and_grads(model.graph, config.loss(), mesh)
    params, catalog = place(mesh, model.params, model.graph.tables), make_catalog(model, corpus, config, mesh)
    return fisher(loss_and_grads, params, catalog, on_devices, config.seed)


def _is_kept(file: Path, start: Params) -> bool:
    """Whether an earlier attempt has kept the importance of each parameter of `start`, whole."""
    try:
        arrays = read_arrays(file)
    except FileNotFoundError:
        return False
    except (OSError, ValueError) as error:
        logging.warning("%s: is damaged (%s), and is measured again", file, error)
        return False
    return arrays.keys() == start.keys() and all(
        (of.shape, of.dtype) == (start[name].shape, np.float32) and np.isfinite(of).all() for name, of in arrays.items()
    )


def anchor_of(
    model: Recommender, penalty: Penalty | None, pretraining: Corpus | None, config: TrainConfig, mesh: Mesh, file: Path
) -> Anchor:
    """What a penalty holds the parameters near: those of the pre-trained model but for its items' rows.

    A penalty by importance needs `pretraining`, and takes the loss and the batches of `config`; what it measures is
    kept in `file`, and read from there when the run goes on.
    """
    if penalty is None:
        return Anchor()
    start = {name: array for name, array in model.params.items() if name != ROWS}
    importance: dict[str, Any] = {}
    if penalty.fisher_batches:
        assert pretraining is not None
        if not _is_kept(file, start):
            values = _importance(model, pretraining, config, penalty.fisher_batches, mesh)
            if is_first_host():
                write_arrays(file, {name: values[name] for name in start})
            raise_on_all_hosts(None)
        importance = read_arrays(file)
    return Anchor(*place(mesh, (start, importance), model.graph.tables))
