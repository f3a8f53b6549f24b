"""Proposals that follow the item embeddings, brought up to date on the devices."""

from collections.abc import Callable
from typing import Any, cast

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from seqrec_jax.devices import REPLICATED
from seqrec_jax.evaluation.ranking import encode_catalog
from seqrec_jax.losses.proposals.mixed import needs_embeddings
from seqrec_jax.training.step import Catalog


def make_refresh(
    graph: nnx.GraphDef, catalog: Catalog, mesh: Mesh, seed: int
) -> Callable[[nnx.State, Catalog, int], Catalog] | None:
    """Makes f(params, catalog, epoch) -> the catalog with its proposal refreshed; None where that changes nothing.

    Args:
        graph: of the recommender.
        catalog: with the proposal of the run.
        mesh: of devices, which share the work.
        seed: of the candidates, with the epoch.
    """
    if not needs_embeddings(catalog.proposal):
        return None
    encode = encode_catalog(graph)

    def refreshed(proposal, embeddings, epoch):
        key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), epoch)
        return cast(Any, proposal).refreshed(key, embeddings, mesh)

    compiled = jax.jit(refreshed, out_shardings=NamedSharding(mesh, REPLICATED))

    def refresh(params: nnx.State, catalog: Catalog, epoch: int) -> Catalog:
        embeddings = encode(params, catalog.features)
        return catalog._replace(proposal=jax.block_until_ready(compiled(catalog.proposal, embeddings, epoch)))

    return refresh
