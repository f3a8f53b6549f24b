"""Items from a trained row of their own, as in SASRec (Kang and McAuley, ICDM 2018)."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa

from seqrec_jax.data.store import Dataset
from seqrec_jax.dropout import dropout
from seqrec_jax.items.tables import look_up

ITEM_ID = "item_id"


@dataclasses.dataclass(frozen=True)
class ItemId:
    """A trained row for each item of one catalog, of which there are `rows` with that of padding; see ItemFeature."""

    kind: ClassVar[str] = "item_id"
    role: ClassVar[str] = "added"
    name: ClassVar[str] = ITEM_ID

    rows: int

    def width(self, architecture: Any) -> int:
        """See ItemFeature."""
        return architecture.hidden_size

    def table_rows(self) -> int:
        """See ItemFeature."""
        return self.rows

    def read(self, data: Dataset, read: Any, starts: Any) -> np.ndarray:
        """See ItemFeature: [n_items + 1] int32, each item's row."""
        return np.arange(data.n_items + 1, dtype=np.int32)

    def read_new(self, items: pa.Table, read: Any, tokenizer: Any, known: Any) -> np.ndarray:
        """See ItemFeature: new items have no row."""
        return np.zeros(items.num_rows, np.int32)

    def embed(self, table: jax.Array, values: jax.Array, architecture: Any, key: Any, axis: Any) -> jax.Array:
        """See ItemFeature; items without a row, which have row 0, get 0. In training, Architecture.id_dropout of the
        others get 0 as well, wherever they occur in the step, and those that are left are scaled up."""
        rows = look_up(lambda table, items: table[items], table, values, axis)
        rows = jnp.where(values[:, None] > 0, rows, 0)
        return dropout(rows, architecture.id_dropout, key, values.astype(jnp.uint32)[:, None])
