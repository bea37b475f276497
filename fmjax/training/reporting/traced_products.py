"""Matrix products of a training step, counted in the traced forward pass of its loss.

A product x · w costs as many FLOPs again for the gradient of each operand that depends
on what is trained; JAX computes none for the others. So a frozen layer has no gradient
of its own, and layers below the lowest that is trained have no backward pass at all.
What is computed twice to save memory is in no forward pass, and does not count.

Layers that are scanned are one traced layer: where the output of any of them depends on
what is trained, each has the gradient of its input, the lowest one too.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend import core

_PRODUCTS = ("dot_general", "conv_general_dilated", "ragged_dot", "ragged_dot_general")


def training_flops(jaxpr: core.ClosedJaxpr, trained: Sequence[bool]) -> float:
    """FLOPs of the products of a function and of its gradient.

    Args:
      jaxpr: of the function, from `jax.make_jaxpr`.
      trained: whether a gradient is taken of each of its inputs.
    """
    flops, _ = _walk(jaxpr.jaxpr, list(trained))
    return flops


def _walk(jaxpr: core.Jaxpr, inputs: Sequence[bool]) -> tuple[float, list[bool]]:
    """FLOPs of all equations, and whether each output depends on what is trained."""
    depends = dict(zip(jaxpr.invars, inputs, strict=True))

    def read(atom) -> bool:
        return not isinstance(atom, core.Literal) and depends.get(atom, False)

    total = 0.0
    for equation in jaxpr.eqns:
        flops, outputs = _equation(equation, [read(atom) for atom in equation.invars])
        total += flops
        for variable, found in zip(equation.outvars, outputs, strict=True):
            # Integers, such as the ids that a sample gives, have no gradient.
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
    """2 for each multiplication of a product; None for what is none."""
    name, params = equation.primitive.name, equation.params
    if name not in _PRODUCTS:
        return None
    left, right = (atom.aval for atom in equation.invars[:2])
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        terms = math.prod(left.shape[axis] for axis in contracted)
    elif name == "conv_general_dilated":
        terms = right.size / right.shape[params["dimension_numbers"].rhs_spec[0]]
    else:  # Rows are divided among groups, and each is multiplied once.
        terms = left.shape[-1]
    return 2.0 * equation.outvars[0].aval.size * terms


def _inner_jaxpr(params: dict[str, Any]) -> core.Jaxpr | None:
    """The function that an equation calls, such as one that is jitted."""
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        found = params.get(name)
        if isinstance(found, core.ClosedJaxpr):
            return found.jaxpr
        if isinstance(found, core.Jaxpr):
            return found
    return None
