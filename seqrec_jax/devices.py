"""The mesh of devices, on one host or several, and where arrays live on it.

The mesh has two axes. Rows of a batch are divided over both. Parameters are replicated, but for the token and item
tables and their optimizer state, whose columns are divided over `model`.
"""

from collections.abc import Collection
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from seqrec_jax.errors import InputError

DATA_AXIS = "data"
MODEL_AXIS = "model"
AXES = (DATA_AXIS, MODEL_AXIS)
SPLIT = PartitionSpec(AXES)
REPLICATED = PartitionSpec()
TABLE_COLUMNS = PartitionSpec(None, MODEL_AXIS)

Tree = TypeVar("Tree")


def device_mesh(devices: list[jax.Device] | None = None, model_axis: int = 1) -> Mesh:
    """A mesh over the given devices, or over all of all hosts, model_axis of which share the columns of each table."""
    every = np.array(jax.devices() if devices is None else devices)
    if model_axis < 1 or len(every) % model_axis:
        raise InputError(f"RunSettings.model_axis = {model_axis} does not divide the {len(every)} devices")
    return Mesh(every.reshape(-1, model_axis), AXES)


def _is_table(path: tuple, leaf: Any, tables: Collection[str]) -> bool:
    return np.ndim(leaf) == 2 and any(getattr(key, "key", None) in tables for key in path)


def specs(mesh: Mesh, tree: Tree, tables: Collection[str] = ()) -> Tree:
    """The PartitionSpec of every array of a tree of parameters by name, or of an optimizer's state for one.

    `tables` names the parameters whose columns are divided over the mesh's model axis.
    """

    def of_leaf(path: tuple, leaf: Any) -> PartitionSpec:
        return TABLE_COLUMNS if mesh.shape[MODEL_AXIS] > 1 and _is_table(path, leaf, tables) else REPLICATED

    return jax.tree_util.tree_map_with_path(of_leaf, tree)


def shardings(mesh: Mesh, tree: Tree, tables: Collection[str] = ()) -> Tree:
    """The NamedSharding of every array of a tree; see specs."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs(mesh, tree, tables))


def add_over_devices(grads: Tree, tables: Collection[str] = ()) -> Tree:
    """Within shard_map: sums gradients over the devices that hold the same parameters; see specs."""

    def add(path: tuple, leaf: jax.Array) -> jax.Array:
        return jax.lax.psum(leaf, DATA_AXIS if _is_table(path, leaf, tables) else AXES)

    return jax.tree_util.tree_map_with_path(add, grads)


def _put(array: Any, sharding: NamedSharding) -> jax.Array:
    if jax.process_count() == 1:
        return jax.device_put(array, sharding)
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return jax.jit(lambda x: x, out_shardings=sharding)(array)
    host = np.asarray(array)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def replicate(mesh: Mesh, tree: Tree) -> Tree:
    """Puts a copy of every array on each device; every host gives the same arrays."""
    return jax.tree.map(lambda array: _put(array, NamedSharding(mesh, REPLICATED)), tree)


def place(mesh: Mesh, tree: Tree, tables: Collection[str] = ()) -> Tree:
    """Puts parameters or an optimizer's state on the devices: tables by columns, the rest on each; see specs."""
    return jax.tree.map(_put, tree, shardings(mesh, tree, tables))


def local_shards(mesh: Mesh, shards: int) -> range:
    """Which of a batch's shards, of which each device has as many, this host makes."""
    mine = [at for at, device in enumerate(mesh.devices.flat) if device.process_index == jax.process_index()]
    of_device = shards // mesh.size
    return range(mine[0] * of_device, (mine[-1] + 1) * of_device)


def split_rows(mesh: Mesh, tree: Tree) -> Tree:
    """Splits every array's first axis over the devices; each host gives the rows of its own devices."""
    sharding = NamedSharding(mesh, SPLIT)
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    return jax.tree.map(lambda array: jax.make_array_from_process_local_data(sharding, array), tree)


def local_rows(array: jax.Array) -> np.ndarray:
    """The rows of an array split by split_rows that lie on this host's devices, in order."""
    if jax.process_count() == 1:
        return np.asarray(array)
    pieces = sorted(array.addressable_shards, key=lambda piece: piece.index[0].start or 0)
    return np.concatenate([np.asarray(piece.data) for piece in pieces])


def greatest_of_hosts(values: np.ndarray) -> np.ndarray:
    """The greatest value, element by element, over the hosts; every host gets it."""
    if jax.process_count() == 1:
        return values
    return np.asarray(multihost_utils.process_allgather(values)).max(0)
