"""A network's structure without its parameters, which are one flat dict."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from seqrec_jax.errors import InputError
from seqrec_jax.model.network import Network
from seqrec_jax.model.parameters import Knob, Norm, Params, Table


def _flat(state: nnx.State) -> dict[str, Any]:
    """The variables under names such as `blocks/0/attention/query/kernel`, sorted."""
    return dict(sorted(("/".join(map(str, path)), variable) for path, variable in nnx.to_flat_state(state)))


class Graph:
    """The structure of a Network of these arguments; one for equal specs, so that functions of it are compiled once.

    Attributes:
        shapes: By name the shape and dtype of each parameter.
        kinds: By name what each parameter is: Table, Norm, Knob, or nnx.Param for the rest.
        tables: Names of the tables.
    """

    def __init__(self, architecture: Any, features: tuple, rematerialize: bool = False, table_axis: str | None = None):
        self.architecture = architecture
        self._init = lambda seed: nnx.state(Network(architecture, features, rngs=nnx.Rngs(seed)), nnx.Param)
        self._graph, state = nnx.split(
            nnx.eval_shape(lambda: Network(architecture, features, rematerialize, table_axis, rngs=nnx.Rngs(0)))
        )
        self._paths = nnx.to_flat_state(state)
        variables = _flat(state)
        self.kinds = {name: type(variable) for name, variable in variables.items()}
        self.shapes = {name: variable.get_value() for name, variable in variables.items()}
        self.tables = frozenset(name for name, kind in self.kinds.items() if kind is Table)

    def init(self, seed: int, shardings: Callable[[Mapping[str, Any]], Any] | None = None) -> Params:
        """Fresh parameters; `shardings` gives where each lies, from their shapes, None the default device."""
        placed = None if shardings is None else shardings(self.shapes)

        def init() -> Params:
            return {name: variable.get_value() for name, variable in _flat(self._init(seed)).items()}

        return jax.jit(init, out_shardings=placed)()

    def merge(self, params: Params) -> Network:
        """The network with these parameters, to be called within a jitted function."""
        flat = [(path, variable.replace(params["/".join(map(str, path))])) for path, variable in self._paths]
        return nnx.merge(self._graph, nnx.from_flat_state(flat))

    def cast(self, params: Params, dtype: str) -> Params:
        """Matrices and biases in the given type; tables, norms and knobs as they are."""
        return {
            name: array if self.kinds[name] in (Table, Norm, Knob) else array.astype(dtype)
            for name, array in params.items()
        }

    def check(self, params: Mapping[str, Any]) -> None:
        """Refuses, by an InputError, arrays that are not this network's, by name and shape, or no floats."""
        for name in sorted(self.shapes.keys() ^ params.keys()):
            raise InputError(f"parameter {name} is {'missing' if name in self.shapes else 'not one of this model'}")
        for name, expected in self.shapes.items():
            shape = tuple(params[name].shape)
            if shape != expected.shape:
                raise InputError(f"parameter {name} has shape {shape}, but this model's is {expected.shape}")
            if not jnp.issubdtype(params[name].dtype, jnp.floating):
                raise InputError(f"parameter {name} is of {params[name].dtype}, which are no floats")
