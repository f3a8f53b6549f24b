"""Shares of several proposals."""

import dataclasses
from collections.abc import Callable, Sequence

import gin
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from seqrec_jax.data.split import TrainingLog
from seqrec_jax.errors import InputError
from seqrec_jax.losses.proposals.by_count import LEAST_Q
from seqrec_jax.losses.proposals.draws import split_keys
from seqrec_jax.losses.proposals.interface import Observed, Proposal


def split_draws(n: int, shares: Sequence[float]) -> list[int]:
    """n draws divided by shares, exactly n in all."""
    ends = np.round(np.cumsum(shares) * n).astype(int)
    return np.diff(ends, prepend=0).tolist()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mixed:
    """Each part gives its share of every set, and q is that of the mixture.

    The balance heuristic of multiple importance sampling (Veach and Guibas, SIGGRAPH 1995). Shares of a set are rounded
    to whole draws, which q does not know: with few draws and uneven shares it is off by that rounding.

    Attributes:
        parts: the proposals.
        shares: of each; together 1.
        per_target: whether any part is.
    """

    parts: tuple
    shares: tuple[float, ...] = dataclasses.field(metadata={"static": True})
    per_target: bool = dataclasses.field(metadata={"static": True})

    def draw(self, keys: jax.Array, observed: Observed, n: int) -> jax.Array:
        """See Proposal."""
        sizes = split_draws(n, self.shares)
        of_parts = split_keys(keys, len(self.parts))
        drawn = [part.draw(own, observed, size) for part, own, size in zip(self.parts, of_parts, sizes, strict=True)]
        return jnp.concatenate(drawn, 1)

    def log_q(self, observed: Observed, items: jax.Array) -> jax.Array:
        """See Proposal."""
        q = sum(
            share * jnp.exp(part.log_q(observed, items)) for part, share in zip(self.parts, self.shares, strict=True)
        )
        return jnp.log(q + LEAST_Q)

    def refreshed(self, key: jax.Array, embeddings: jax.Array, mesh: Mesh) -> "Mixed":
        """With the parts refreshed that have something to refresh."""
        parts = tuple(part.refreshed(key, embeddings, mesh) if needs_embeddings(part) else part for part in self.parts)
        return dataclasses.replace(self, parts=parts)


def needs_embeddings(proposal) -> bool:
    """Whether a proposal depends on the catalog's embeddings and is to be refreshed."""
    if isinstance(proposal, Mixed):
        return any(needs_embeddings(part) for part in proposal.parts)
    return hasattr(proposal, "refreshed")


@gin.configurable
def mixed(
    log: TrainingLog, proposals: Sequence[Callable[[TrainingLog], Proposal]] = (), shares: Sequence[float] = ()
) -> Mixed:
    """Shares of several proposals.

    Args:
        log: of training.
        proposals: such as (@popularity, @knn).
        shares: of each, together 1.

    Raises:
        InputError: the shares do not sum to 1, or a part is not a distribution over the catalog.
    """
    if not proposals or len(proposals) != len(shares):
        raise InputError(f"mixed.proposals names {len(proposals)} proposals, but mixed.shares has {len(shares)} shares")
    if min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise InputError(f"mixed.shares = {tuple(shares)} sum to {sum(shares):g}; shares are at least 0 and sum to 1")
    parts = tuple(make(log) for make in proposals)
    for make, part in zip(proposals, parts, strict=True):
        if not isinstance(part, Proposal):
            name = getattr(make, "__name__", str(make))
            raise InputError(f"mixed.proposals: {name} draws from the batch and not from the catalog; bind it alone")
    return Mixed(parts, tuple(shares), any(part.per_target for part in parts))
