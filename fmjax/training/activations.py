"""The least that a step keeps of its forward pass, known once it is traced.

A scanned stack keeps the input of each block for the backward pass, [layers, B, T, D]
in the dtype of the computation, whatever is rematerialized. What else is kept (insides
of blocks without rematerialization, logits, inputs of unrolled blocks) is decided by
XLA, and is not counted: this is a lower bound.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from fmjax.models.layers.transformer import Stack
from fmjax.sharding.rules import LogicalRules


@dataclasses.dataclass(frozen=True)
class StackInputs:
    """The inputs of all blocks of a scanned stack.

    Attributes:
      path: of the stack among the model's modules and parameters.
      shape: [layers, B, T, D] of a microbatch on all devices.
      itemsize: bytes of a number.
    """

    path: tuple[str, ...]
    shape: tuple[int, int, int, int]
    itemsize: int


@contextlib.contextmanager
def traced_stacks() -> Iterator[dict[tuple[str, ...], StackInputs]]:
    """Collects the scanned stacks that are traced inside, by their paths.

    Of a stack that is applied more than once, only the smallest inputs are noted.
    """
    found: dict[tuple[str, ...], StackInputs] = {}

    def note(call, args, kwargs, context):
        module = context.module
        if isinstance(module, Stack) and context.method_name == "__call__":
            c, (B, T, _) = module.config, args[0].shape
            if c.scan_layers:
                shape = (c.num_layers, B, T, c.embed_dim)
                size = jnp.dtype(c.compute_dtype).itemsize
                new = StackInputs(module.path, shape, size)
                old = found.get(module.path, new)
                found[module.path] = min(old, new, key=lambda s: math.prod(s.shape))
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        yield found


def kept_bytes(
    stacks: dict[tuple[str, ...], StackInputs],
    trained: Any,
    mesh: jax.sharding.Mesh,
    rules: LogicalRules,
) -> float:
    """Bytes that each device keeps of the inputs of blocks at least.

    Args:
      stacks: from `traced_stacks`.
      trained: a boolean for each parameter; a stack of which none is trained may keep
        nothing.
      mesh: of the run.
      rules: logical to mesh axes.
    """
    spec = nn.logical_to_mesh_axes(("batch", "length", "act_embed"), rules)
    names = [axes for axes in spec or () if axes is not None]
    axes = [a for each in names for a in ((each,) if isinstance(each, str) else each)]
    shards = math.prod(mesh.shape[axis] for axis in axes)
    return sum(
        math.prod(stack.shape) * stack.itemsize / shards
        for stack in stacks.values()
        if any(jax.tree.leaves(_at(trained, (*stack.path, "layers"))))
    )


def _at(tree: Any, path: tuple[str, ...]) -> Any:
    """The subtree at a path; None where there is none."""
    for name in path:
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree
