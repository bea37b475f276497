"""Matrix products of a training step, counted in the traced forward pass of its loss.

The backward pass of a product x · w costs the same FLOPs once more for each operand
that depends on trained parameters; JAX computes no gradients for the others. So a
frozen layer has no weight gradient, and layers below the lowest trained one have no
backward pass. Rematerialization is not in the forward pass and is not counted.

Scanned layers are traced as one layer: if the output of any of them depends on trained
parameters, all of them compute the gradient of their input, the lowest one included.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend import core

_PRODUCTS = ("dot_general", "conv_general_dilated", "ragged_dot", "ragged_dot_general")


def training_flops(jaxpr: core.ClosedJaxpr, trained: Sequence[bool]) -> float:
    """FLOPs of the matrix products of a function and of its gradient.

    Args:
      jaxpr: of the function, from `jax.make_jaxpr`.
      trained: for each input, whether its gradient is taken.
    """
    flops, _ = _walk(jaxpr.jaxpr, list(trained))
    return flops


def _walk(jaxpr: core.Jaxpr, inputs: Sequence[bool]) -> tuple[float, list[bool]]:
    """FLOPs of all equations, and whether each output depends on trained inputs."""
    depends = dict(zip(jaxpr.invars, inputs, strict=True))

    def read(atom) -> bool:
        return not isinstance(atom, core.Literal) and depends.get(atom, False)

    total = 0.0
    for equation in jaxpr.eqns:
        flops, outputs = _equation(equation, [read(atom) for atom in equation.invars])
        total += flops
        for variable, found in zip(equation.outvars, outputs, strict=True):
            # Integers, such as sampled ids, have no gradient.
            has_gradient = jnp.issubdtype(variable.aval.dtype, np.inexact)
            depends[variable] = found and has_gradient
    return total, [read(atom) for atom in jaxpr.outvars]


def _equation(
    equation: core.JaxprEqn, inputs: Sequence[bool]
) -> tuple[float, list[bool]]:
    name, params = equation.primitive.name, equation.params
    every = [any(inputs)] * len(equation.outvars)
    if name == "stop_gradient":
        return 0.0, [False] * len(every)
    if (forward := _product_flops(equation)) is not None:
        return forward * (1 + sum(inputs[:2])), every
    if name == "pallas_call":
        cost = params.get("cost_estimate")
        return (cost.flops * (3 if any(inputs) else 1) if cost else 0.0), every
    if name == "scan":
        return _scan(params, inputs)
    if name == "while":
        count = params["cond_nconsts"]
        flops, _ = _walk(params["body_jaxpr"].jaxpr, inputs[count:])
        return flops, every
    if name == "cond":
        branches = [_walk(b.jaxpr, inputs[1:]) for b in params["branches"]]
        outputs = [any(found) for found in zip(*(found for _, found in branches))]
        return max(flops for flops, _ in branches), outputs
    inner = _inner_jaxpr(params)
    if inner is None or len(inner.invars) != len(inputs):
        return 0.0, every
    flops, outputs = _walk(inner, inputs)
    if name == "shard_map":
        flops *= params["mesh"].size
    return flops, outputs


def _scan(params: dict[str, Any], inputs: Sequence[bool]) -> tuple[float, list[bool]]:
    consts, carries = params["num_consts"], params["num_carry"]
    inputs = list(inputs)
    while True:
        flops, outputs = _walk(params["jaxpr"].jaxpr, inputs)
        before = inputs[consts : consts + carries]
        after = [a or b for a, b in zip(before, outputs)]
        if after == before:
            return flops * params["length"], outputs
        inputs[consts : consts + carries] = after


def _product_flops(equation: core.JaxprEqn) -> float | None:
    """FLOPs of a product, 2 per multiplication; None for any other equation."""
    name, params = equation.primitive.name, equation.params
    if name not in _PRODUCTS:
        return None
    left, right = (atom.aval for atom in equation.invars[:2])
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        terms = math.prod(left.shape[axis] for axis in contracted)
    elif name == "conv_general_dilated":
        terms = right.size / right.shape[params["dimension_numbers"].rhs_spec[0]]
    else:  # ragged_dot: each row is multiplied with the matrix of its group alone.
        terms = left.shape[-1]
    return 2.0 * equation.outvars[0].aval.size * terms


def _inner_jaxpr(params: dict[str, Any]) -> core.Jaxpr | None:
    """The function that an equation calls, such as a jitted one; None if none."""
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        found = params.get(name)
        if isinstance(found, core.ClosedJaxpr):
            return found.jaxpr
        if isinstance(found, core.Jaxpr):
            return found
    return None
