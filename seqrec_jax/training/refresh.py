"""Proposals that follow the item embeddings, brought up to date on the devices."""

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import jax
from jax.sharding import NamedSharding

from seqrec_jax.devices import REPLICATED
from seqrec_jax.inference.encoding import encode_catalog
from seqrec_jax.model.parameters import Params
from seqrec_jax.training.compile import StepCompiler
from seqrec_jax.training.step import Catalog


def make_refresh(compiler: StepCompiler) -> Callable[[Params, Catalog, int], Catalog] | None:
    """Makes f(params, catalog, epoch) -> the catalog with its proposal refreshed; None where that changes nothing.

    The candidates depend on the seed and the epoch alone; the devices share the work.
    """
    if not hasattr(compiler.catalog.proposal, "refreshed"):
        return None
    encode, mesh, seed = encode_catalog(compiler.spec.graph()), compiler.mesh, compiler.config.seed

    def refreshed(proposal, embeddings, epoch):
        key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), epoch)
        return cast(Any, proposal).refreshed(key, embeddings, mesh)

    compiled = jax.jit(refreshed, out_shardings=NamedSharding(mesh, REPLICATED))

    def refresh(params: Params, catalog: Catalog, epoch: int) -> Catalog:
        proposal = compiled(catalog.proposal, encode(params, catalog.features), epoch)
        return dataclasses.replace(catalog, proposal=jax.block_until_ready(proposal))

    return refresh
