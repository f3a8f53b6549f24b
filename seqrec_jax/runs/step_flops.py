"""Floating-point operations of a traced program, its loops taken as often as they run."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, JaxprEqn, jaxprs_in_params

MADE_AGAIN = "rematted_computation"  # the name scope that JAX gives to what jax.checkpoint computes a second time
# They move numbers, convert or choose among them, or make random ones.
FREE = {
    "broadcast_in_dim", "reshape", "transpose", "squeeze", "expand_dims", "slice", "dynamic_slice", "split", "pad",
    "dynamic_update_slice", "gather", "scatter", "concatenate", "rev", "iota", "select_n", "convert_element_type",
    "bitcast_convert_type", "copy", "stop_gradient", "optimization_barrier", "sharding_constraint", "name", "sort",
    "random_bits", "random_unwrap", "all_gather", "ppermute", "pvary", "device_put",
}  # fmt: skip


class Flops(NamedTuple):
    """Operations over all devices; NaN where a `while` computes, as nobody knows how often."""

    model: float  # those that the function and its gradient take
    again: float = 0.0  # those that repeat earlier ones, by jax.checkpoint or within the scope MADE_AGAIN

    @property
    def hardware(self) -> float:
        """All that the devices compute."""
        return self.model + self.again

    def times(self, n: float) -> "Flops":
        """Those of n calls; of what takes none, none."""
        return Flops(*(n * of if of else 0.0 for of in self))


def _size(var: Any) -> int:
    """Elements of an array of floating-point numbers; 0 of any other."""
    return var.aval.size if jnp.issubdtype(getattr(var.aval, "dtype", bool), jnp.floating) else 0


def _operations(eqn: JaxprEqn) -> int:
    """Of an equation without a body: exact for products of matrices and convolutions, else one an element."""
    name, sizes, out = eqn.primitive.name, [_size(var) for var in eqn.invars], sum(map(_size, eqn.outvars))
    shapes: list[Any] = [getattr(var.aval, "shape", ()) for var in eqn.invars]
    if name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        return 2 * out * math.prod(shapes[0][axis] for axis in contracted)
    if name == "conv_general_dilated":
        features = shapes[1][eqn.params["dimension_numbers"].rhs_spec[0]]
        return 2 * out * sizes[1] // features // math.prod(eqn.params["lhs_dilation"])
    if name in FREE or not out:
        return 0
    return sizes[2] if name.startswith("scatter") else max(out, *sizes, 0)


def _trips(eqn: JaxprEqn) -> float:
    """How often an equation's bodies run, over all devices."""
    if eqn.primitive.name == "scan":
        return eqn.params["length"]
    if eqn.primitive.name == "while":
        return math.nan
    if eqn.primitive.name == "shard_map":
        return eqn.params["mesh"].size
    return 1


def _count(jaxpr: Jaxpr, again: bool) -> Flops:
    total = Flops(0.0)
    for eqn in jaxpr.eqns:
        repeated = again or MADE_AGAIN in str(eqn.source_info.name_stack)
        name = eqn.primitive.name
        inner = () if name.startswith(("scatter", "reduce")) else jaxprs_in_params(eqn.params)  # theirs are of a number
        if bodies := [_count(body, repeated) for body in inner]:
            if name == "cond":
                bodies = [max(bodies, key=lambda body: body.hardware)]
            found = Flops(*map(sum, zip(*bodies, strict=True))).times(_trips(eqn))
        else:
            n = float(_operations(eqn))
            found = Flops(0.0, n) if repeated else Flops(n)
        total = Flops(total.model + found.model, total.again + found.again)
    return total


def traced_flops(traced: jax.stages.Traced) -> Flops:
    """Operations of one call of a traced function.

    A scan counts as often as it runs, a `cond` by its most expensive branch, the body of a shard_map once for each
    device. Products of matrices and convolutions are exact; other operations on floating-point numbers, sums among
    them, count one an element, and what moves numbers, or is of integers, nothing. What all devices do alike outside of
    shard_map, as an optimizer's update, counts once.
    """
    return _count(traced.jaxpr.jaxpr, False)
