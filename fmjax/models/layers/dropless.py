"""Dropless mixture of experts, on a mesh."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from fmjax.models.layers.expert_blocks import FeedForward, Kernels, is_hidden
from fmjax.models.layers.expert_exchange import exchange
from fmjax.models.layers.grouped_dot import grouped_dot
from fmjax.models.layers.logical_axes import mesh_axes, shards


def dropless(
    x: Float[Array, "B T D"],
    chosen: Int[Array, "B T k"],
    weights: Float[Array, "B T k"],
    kernels: Kernels,
    feed_forward: FeedForward,
) -> Float[Array, "B T D"]:
    """Applies its experts to every token, with groups of any size (MegaBlocks).

    Gale et al. 2023. On a mesh each device sorts the tokens of its own part of the
    batch by their experts, and those that share the experts of one replica send each
    other the tokens for theirs, see `fmjax.models.layers.expert_exchange`. This is
    written with `shard_map`, because XLA would have all devices sort and multiply all
    tokens.

    Args:
      x: tokens.
      chosen: indices of the k experts of each token.
      weights: factors of the experts' outputs.
      kernels: of the experts, as they are applied by `feed_forward`.
      feed_forward: (rows [N, D], kernels, product of rows and a kernel) → [N, D].

    Returns:
      Σ_k weights_k · expert_k(x).
    """
    apply = functools.partial(_grouped, feed_forward=feed_forward)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return _of_own_rows(x, chosen, weights, kernels, apply)
    batch, length, expert, hidden = map(mesh_axes, ("batch", "length", "expert", "mlp"))
    if x.shape[0] % shards("batch"):
        batch = ()  # few rows, as of a prompt or of `init`, are replicated
    if x.shape[1] % shards("length"):
        length = ()
    travel = {*expert} <= {*batch}
    if not travel:
        batch = tuple(axis for axis in batch if axis not in expert)

    def on_device(x, chosen, weights, kernels):
        whole = hidden
        if not travel:
            # Every device has all rows: each adds up its own experts.
            own = len(kernels["in"])
            chosen = chosen - jax.lax.axis_index(expert) * own
            run, whole = apply, (*expert, *hidden)
        elif expert:
            run = functools.partial(exchange, feed_forward=feed_forward, axes=expert)
        else:
            run = apply
        y = _of_own_rows(x, chosen, weights, kernels, run)
        return jax.lax.psum(y, whole) if whole else y

    rows = PartitionSpec(batch, length)
    placed = {
        name: PartitionSpec(
            expert, *(hidden if each else None for each in is_hidden(name))
        )
        for name in kernels
    }
    return jax.shard_map(
        on_device,
        in_specs=(rows, rows, rows, placed),
        out_specs=rows,
        # The stages of a pipeline are one more axis, which the check does not know.
        check_vma=False,
    )(x, chosen, weights, kernels)


def _of_own_rows(x, chosen, weights, kernels, run: Callable) -> Float[Array, "B T D"]:
    """`dropless` of the rows of this device.

    Args:
      x: as in `dropless`, likewise the next three.
      chosen: those that are no index of an expert add nothing.
      weights: of the experts.
      kernels: of this device's experts.
      run: (x [B T, D], indices of rows of x [N], their experts [N], kernels) → outputs
        [N, D].
    """
    (B, T, D), k = x.shape, chosen.shape[-1]
    choices = chosen.reshape(-1)
    y = run(x.reshape(-1, D), jnp.arange(choices.size) // k, choices, kernels)
    y = y.reshape(B, T, k, D)
    return jnp.einsum("btkd,btk->btd", y, weights.astype(y.dtype))


def _grouped(x, rows, experts, kernels, feed_forward) -> Float[Array, "N D"]:
    """Applies experts to rows of x; zero where no index of `kernels` is given."""
    own = len(kernels["in"])
    # All others form one last group.
    experts = jnp.where((experts >= 0) & (experts < own), experts, own)
    order = jnp.argsort(experts)
    sizes = jnp.bincount(experts, length=own).astype(jnp.int32)
    here = (jnp.arange(experts.size) < sizes.sum())[:, None]

    def multiply(rows, kernel):
        # Rows after the last group are undefined.
        return jnp.where(here, grouped_dot(rows, kernel, sizes), 0)

    groups = jnp.where(here, x[rows[order]], 0)
    return feed_forward(groups, kernels, multiply)[jnp.argsort(order)]
