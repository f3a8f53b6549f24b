"""Item embeddings from the features of items."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from seqrec_jax.items.features import ADDED, APPENDED, PROJECTED, ItemFeature
from seqrec_jax.model import initializers


class ItemEncoder(nnx.Module):
    """Makes embeddings of items from features, in their order: items.features says what becomes of each.

    `table_axis` is that of the mesh over which the tables' columns are divided; see look_up.
    """

    def __init__(
        self, architecture: Any, features: Sequence[ItemFeature], table_axis: str | None = None, *, rngs: nnx.Rngs
    ):
        self.architecture, self.table_axis = architecture, table_axis
        self.projected, self.added, self.appended = (
            tuple(feature for feature in features if feature.role == role) for role in (PROJECTED, ADDED, APPENDED)
        )
        tables = self._tables(self.projected, rngs)
        width = sum(feature.width(architecture) for feature in self.projected)
        self.projection = initializers.linear(width, architecture.hidden_size, rngs) if width else None
        self.tables = nnx.Dict(tables | self._tables(self.added, rngs))

    def _tables(self, features: Sequence[ItemFeature], rngs: nnx.Rngs) -> dict[str, Any]:
        return {
            feature.name: initializers.table(feature.table_rows(), feature.width(self.architecture), rngs)
            for feature in features
            if feature.table_rows()
        }

    def _embed(self, feature: ItemFeature, values: Mapping[str, Any], key: jax.Array | None) -> jax.Array:
        table = self.tables[feature.name][...] if feature.table_rows() else None
        return feature.embed(table, jnp.asarray(values[feature.name]), self.architecture, key, self.table_axis)

    def __call__(self, features: Mapping[str, jax.Array | np.ndarray], key: jax.Array | None = None) -> jax.Array:
        """Embeds items: per feature [items, ...] -> [items, hidden_size and the appended columns]; a key drops out."""
        learnt = None
        if self.projection is not None:
            parts = jnp.concatenate([self._embed(feature, features, key) for feature in self.projected], -1)
            learnt = self.projection(parts.astype(self.projection.kernel[...].dtype))
        for feature in self.added:
            more = self._embed(feature, features, key)
            learnt = more if learnt is None else learnt + more.astype(learnt.dtype)
        assert learnt is not None
        fixed = [self._embed(feature, features, key).astype(learnt.dtype) for feature in self.appended]
        return jnp.concatenate([learnt, *fixed], -1) if fixed else learnt
