"""The mesh of devices, and where arrays live on it."""

from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

DATA_AXIS = "data"
SPLIT = PartitionSpec(DATA_AXIS)
REPLICATED = PartitionSpec()

Tree = TypeVar("Tree")


def data_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh with one axis, `data`, over the given devices or all of them."""
    return Mesh(np.array(jax.devices() if devices is None else devices), (DATA_AXIS,))


def replicate(mesh: Mesh, tree: Tree) -> Tree:
    """Puts a copy of every array on each device."""
    return jax.device_put(tree, NamedSharding(mesh, REPLICATED))


def split_rows(mesh: Mesh, tree: Tree) -> Tree:
    """Splits every array's first axis over the devices."""
    return jax.device_put(tree, NamedSharding(mesh, SPLIT))
