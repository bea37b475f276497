"""Dropless mixture of experts, on a mesh."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import AbstractMesh, PartitionSpec
from jaxtyping import Array, Float, Int

from fmjax.models.layers.grouped_dot import grouped_dot

Kernels = dict[str, Array]
FeedForward = Callable[[Array, Kernels, Callable], Array]


def dropless(
    x: Float[Array, "B T D"],
    chosen: Int[Array, "B T k"],
    weights: Float[Array, "B T k"],
    kernels: Kernels,
    feed_forward: FeedForward,
) -> Float[Array, "B T D"]:
    """Applies its experts to every token, with groups of any size (MegaBlocks).

    Gale et al. 2023. On a mesh each device sorts the tokens of its own part of the
    batch by the experts that it holds. This is written with `shard_map`, because XLA
    would have all devices sort and multiply all tokens. Devices that share the experts
    of one replica gather each other's rows and scatter the sums.

    Args:
      x: tokens.
      chosen: indices of the k experts of each token.
      weights: factors of the experts' outputs.
      kernels: [E, …] by name, with the logical axes "expert", "embed" and "mlp".
      feed_forward: (rows [N, D], kernels, product of rows and a kernel) → [N, D].

    Returns:
      Σ_k weights_k · expert_k(x).
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return _own_experts(x, chosen, weights, kernels, feed_forward, 0)
    batch, expert, hidden = (
        _mesh_axes(mesh, name) for name in ("batch", "expert", "mlp")
    )
    if x.shape[0] % math.prod(mesh.shape[axis] for axis in batch):
        batch = ()  # few rows, as of a prompt or of `init`, are replicated
    shared = tuple(axis for axis in expert if axis in batch)

    def on_device(x, chosen, weights, kernels):
        if shared:
            gather = functools.partial(jax.lax.all_gather, axis_name=shared, tiled=True)
            x, chosen, weights = map(gather, (x, chosen, weights))
        first = jax.lax.axis_index(expert) * len(kernels["in"]) if expert else 0
        y = _own_experts(x, chosen, weights, kernels, feed_forward, first)
        if whole := tuple(a for a in (*expert, *hidden) if a not in shared):
            y = jax.lax.psum(y, whole)
        if shared:
            y = jax.lax.psum_scatter(y, shared, scatter_dimension=0, tiled=True)
        return y

    rows = PartitionSpec(batch)
    placed = {
        name: PartitionSpec(
            expert, *((hidden, None) if name == "out" else (None, hidden))
        )
        for name in kernels
    }
    return jax.shard_map(
        on_device, in_specs=(rows, rows, rows, placed), out_specs=rows
    )(x, chosen, weights, kernels)


def _mesh_axes(mesh: AbstractMesh, name: str) -> tuple[str, ...]:
    """The mesh axes of size > 1 that shard a logical axis."""
    (axes,) = nn.logical_to_mesh_axes((name,))
    axes = (axes,) if isinstance(axes, str) else axes or ()
    return tuple(axis for axis in axes if mesh.shape[axis] > 1)


def _own_experts(x, chosen, weights, kernels, feed_forward, first):
    """The contribution to `dropless` of this device's experts, from `first` on."""
    (B, T, D), k = x.shape, chosen.shape[-1]
    own = len(kernels["in"])
    # This device's experts come first; all others form one last group.
    choices = chosen.reshape(-1) - first
    choices = jnp.where((choices >= 0) & (choices < own), choices, own)
    order = jnp.argsort(choices)
    sizes = jnp.bincount(choices, length=own).astype(jnp.int32)
    here = (jnp.arange(choices.size) < sizes.sum())[:, None]

    def multiply(rows, kernel):
        # Rows after the last group are undefined.
        return jnp.where(here, grouped_dot(rows, kernel, sizes), 0)

    rows = jnp.where(here, x.reshape(-1, D)[order // k], 0)
    y = feed_forward(rows, kernels, multiply)[jnp.argsort(order)].reshape(B, T, k, D)
    return jnp.einsum("btkd,btk->btd", y, weights.astype(y.dtype))
