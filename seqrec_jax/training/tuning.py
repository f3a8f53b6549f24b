"""What a stage of fine-tuning trains, what it leaves as it was, and what holds it near its start.

A stage's trained parameters are a dict by name, such as `blocks/0/attention/query/kernel`; only they have a gradient
and a state of the optimizer. The others lie in Fixed.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from seqrec_jax.model import parameters

Arrays = dict[str, jax.Array]
DOWN, UP = "/low_rank_down", "/low_rank_up"


class Held(NamedTuple):
    """What a penalty holds parameters to.

    Attributes:
        start: values by name; parameters that are not there are free.
        importance: of each element of `start`; empty where all weigh 1.
    """

    start: Mapping[str, jax.Array]
    importance: Mapping[str, jax.Array]


class Fixed(NamedTuple):
    """What a step reads and does not change.

    Attributes:
        params: parameters that are not trained, and the matrices that adapters are added to, by name.
        held: what the penalty holds the trained ones to; empty without a penalty.
    """

    params: Arrays
    held: Held


def nothing(name: str) -> bool:
    """No parameter."""
    del name
    return False


@dataclasses.dataclass(frozen=True)
class Tuning:
    """Which parameters are trained, and how.

    Attributes:
        like: a parameter tree of the model; only its structure is used.
        trains: whether a parameter is trained, by its name.
        adapts: whether a matrix gets a low-rank addition, which is then trained in its place (LoRA, Hu et al., ICLR
            2022).
        rank: of the additions.
        strength: of the penalty, strength * sum of importance * (p - start)^2; 0 for none.
    """

    like: nnx.State
    trains: Callable[[str], bool]
    adapts: Callable[[str], bool] = nothing
    rank: int = 0
    strength: float = 0.0

    def split(self, params: nnx.State, seed: int = 0, held: Held | None = None) -> tuple[Arrays, Fixed]:
        """Divides a model into what is trained and what is fixed.

        Args:
            params: of the whole model.
            seed: of the adapters.
            held: what the penalty holds the parameters to.
        """
        arrays = parameters.named(params)
        adapted = {name for name, array in arrays.items() if self.adapts(name) and array.ndim == 2}
        trained = {name: array for name, array in arrays.items() if self.trains(name) and name not in adapted}
        fixed = {name: array for name, array in arrays.items() if name not in trained}
        for ordinal, name in enumerate(sorted(adapted)):
            size_in, size_out = arrays[name].shape
            rank = min(self.rank, size_in, size_out)
            key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), ordinal)
            trained[name + DOWN] = jax.random.normal(key, (size_in, rank)) / jnp.sqrt(size_in)
            trained[name + UP] = jnp.zeros((rank, size_out))
        if held is None or not self.strength:
            return trained, Fixed(fixed, Held({}, {}))
        start, importance = (
            {name: array for name, array in of.items() if name in trained} for of in (held.start, held.importance)
        )
        return trained, Fixed(fixed, Held(start, importance))

    def whole(self, trained: Arrays, fixed: Fixed) -> nnx.State:
        """The model: the inverse of split, with what was trained."""
        arrays = fixed.params | {name: array for name, array in trained.items() if not name.endswith((DOWN, UP))}
        for name in trained:
            if name.endswith(DOWN):
                adapted = name.removesuffix(DOWN)
                arrays[adapted] = arrays[adapted] + trained[name] @ trained[adapted + UP]
        return parameters.filled(self.like, arrays)

    def penalty(self, trained: Arrays, fixed: Fixed) -> jax.Array:
        """strength * sum of importance * (p - start)^2, [] float32: L2-SP (Li et al., ICML 2018) where all weigh 1,
        elastic weight consolidation (Kirkpatrick et al., PNAS 2017) with the Fisher information."""
        total = jnp.float32(0)
        for name, start in fixed.held.start.items():
            square = (trained[name] - start) ** 2
            total += (fixed.held.importance[name] * square if fixed.held.importance else square).sum()
        return self.strength * total
