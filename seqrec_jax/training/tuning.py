"""What training changes of a model, what it leaves as it was, and what its parameters are anchored to."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from seqrec_jax.model.parameters import Params

DOWN, UP = "/low_rank_down", "/low_rank_up"


class Anchor(NamedTuple):
    """What a penalty holds parameters near, by name."""

    start: Mapping[str, jax.Array] = {}  # parameters that are not there are free
    importance: Mapping[str, jax.Array] = {}  # weight of each element of `start`; empty where all weigh 1


class Fixed(NamedTuple):
    """What a step reads and does not change."""

    params: Mapping[str, jax.Array] = {}  # not trained, with the matrices that adapters are added to
    anchor: Anchor = Anchor()  # what the penalty holds the trained ones near; empty without a penalty


def everything(name: str) -> bool:
    """Every parameter."""
    return True


def nothing(name: str) -> bool:
    """No parameter."""
    return False


@dataclasses.dataclass(frozen=True)
class Tuning:
    """Which parameters are trained, by name, and how; only those have a gradient and a state of the optimizer.

    A matrix that it adapts gets a low-rank addition, trained in its place (LoRA, Hu et al., ICLR 2022).
    """

    trains: Callable[[str], bool] = everything
    adapts: Callable[[str], bool] = nothing
    rank: int = 0  # of the additions
    strength: float = 0.0  # of the penalty; 0 for none

    def split(self, params: Params, seed: int = 0, anchor: Anchor = Anchor()) -> tuple[Params, Fixed]:
        """Divides a whole model into what is trained and what is fixed; the adapters are drawn by the seed."""
        adapted = {name for name, array in params.items() if self.adapts(name) and array.ndim == 2}
        trained = {name: array for name, array in params.items() if self.trains(name) and name not in adapted}
        fixed = {name: array for name, array in params.items() if name not in trained}
        for ordinal, name in enumerate(sorted(adapted)):
            size_in, size_out = params[name].shape
            rank = min(self.rank, size_in, size_out)
            key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), ordinal)
            trained[name + DOWN] = jax.random.normal(key, (size_in, rank)) / jnp.sqrt(size_in)
            trained[name + UP] = jnp.zeros((rank, size_out))
        if not self.strength:
            return trained, Fixed(fixed)
        return trained, Fixed(fixed, Anchor(*({name: of[name] for name in of if name in trained} for of in anchor)))

    def whole(self, trained: Params, fixed: Fixed) -> Params:
        """The model: the inverse of split, with what was trained."""
        params = dict(fixed.params) | {name: of for name, of in trained.items() if not name.endswith((DOWN, UP))}
        for adapted in (name.removesuffix(DOWN) for name in trained if name.endswith(DOWN)):
            params[adapted] = params[adapted] + trained[adapted + DOWN] @ trained[adapted + UP]
        return params

    def penalty(self, trained: Params, fixed: Fixed) -> jax.Array:
        """strength * sum of importance * (p - start)^2, [] float32: L2-SP (Li et al., ICML 2018) where all weigh 1,
        elastic weight consolidation (Kirkpatrick et al., PNAS 2017) with the Fisher information."""
        start, importance = fixed.anchor
        squares = {name: (trained[name] - start[name]) ** 2 for name in start}
        weighed = (importance[name] * square if importance else square for name, square in squares.items())
        return self.strength * sum((each.sum() for each in weighed), jnp.float32(0))
