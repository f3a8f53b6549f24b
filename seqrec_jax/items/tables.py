"""Looking rows up in tables whose columns may be divided over devices."""

from collections.abc import Callable

import jax

LookUp = Callable[[jax.Array, jax.Array], jax.Array]


def look_up(lookup: LookUp, table: jax.Array, ids: jax.Array, axis: str | None) -> jax.Array:
    """Rows of a table, or what is pooled of them, where devices hold columns of it: [n, columns of all devices].

    Each device looks up what all of its axis ask for, ids [n, ...] int32, in its own columns, and they exchange the
    results: neither the table nor the ids' embeddings are ever whole on one device. (Column-wise sharding, as in
    TorchRec.) The lookup f(table, ids) -> [n, columns] treats each column alike. Without an axis of the mesh the table
    is whole, or left to the compiler.
    """
    if axis is None:
        return lookup(table, ids)
    of_all = lookup(table, jax.lax.all_gather(ids, axis, tiled=True))
    return jax.lax.all_to_all(of_all, axis, split_axis=0, concat_axis=1, tiled=True)
