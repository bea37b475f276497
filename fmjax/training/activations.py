"""Activation memory of a training step: a lower bound, read from its trace.

A scanned stack keeps the input of each block for the backward pass, [layers, B, T, D]
in the dtype of the computation, under every rematerialization policy. Which other
activations are kept (inside blocks without rematerialization, logits, inputs of
unrolled blocks) is decided by XLA; they are not counted.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from fmjax.models.layers.logical_axes import residual_length_axis
from fmjax.models.layers.transformer import Stack
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.models.parameter_paths import SCANNED, SHARED
from fmjax.sharding.mesh import on_mesh
from fmjax.sharding.rules import LogicalRules


@dataclasses.dataclass(frozen=True)
class StackInputs:
    """The inputs of all blocks of a scanned stack.

    Attributes:
      path: of the stack in the model's tree of modules and parameters.
      shape: [layers, B, T, D] of a microbatch, over all devices.
      itemsize: bytes per element.
      config: of the stack.
    """

    path: tuple[str, ...]
    shape: tuple[int, int, int, int]
    itemsize: int
    config: TransformerConfig


@contextlib.contextmanager
def traced_stacks() -> Iterator[dict[tuple[str, ...], StackInputs]]:
    """Context manager: collects the scanned stacks that are traced inside it, by path.

    For a stack that is applied more than once, only the smallest inputs are recorded.
    """
    found: dict[tuple[str, ...], StackInputs] = {}

    def note(call, args, kwargs, context):
        module = context.module
        if isinstance(module, Stack) and context.method_name == "__call__":
            c, (B, T, _) = module.config, args[0].shape
            if c.scan_layers:
                shape = (c.num_layers, B, T, c.embed_dim)
                size = jnp.dtype(c.compute_dtype).itemsize
                new = StackInputs(module.path, shape, size, c)
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
    """Lower bound of the bytes of block inputs that each device keeps.

    Args:
      stacks: from `traced_stacks`.
      trained: a tree like the parameters, True where a parameter is trained; stacks
        without trained parameters are not counted, since they may keep nothing.
      mesh: of the run.
      rules: logical to mesh axes.
    """

    def shards(stack: StackInputs) -> int:
        with on_mesh(mesh, rules):
            length = residual_length_axis(stack.shape[2])
        spec = nn.logical_to_mesh_axes(("batch", length, "act_embed"), rules)
        names = [axes for axes in spec or () if axes is not None]
        each = [(name,) if isinstance(name, str) else name for name in names]
        return math.prod(mesh.shape[axis] for axes in each for axis in axes)

    return sum(
        math.prod(stack.shape) * stack.itemsize / shards(stack)
        for stack in stacks.values()
        for name in (SCANNED, SHARED)
        if any(jax.tree.leaves(_at(trained, (*stack.path, name))))
    )


def _at(tree: Any, path: tuple[str, ...]) -> Any:
    """The subtree at a path; None where there is none."""
    for name in path:
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree
