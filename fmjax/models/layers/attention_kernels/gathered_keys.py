"""Attention to gathered keys: every device attends to the keys of the whole sequence.

For sequences whose length is sharded: queries stay on their devices, keys and values
are gathered before they are used (Dubey et al. 2024, section 3.3.2). Unlike a ring this
takes windows, position biases and dropout.
"""

import dataclasses
from types import ModuleType

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from fmjax.models.layers.attention_kernels import placement
from fmjax.models.layers.attention_kernels.call import AttentionCall
from fmjax.models.layers.attention_mask import AttentionMask
from fmjax.models.layers.logical_axes import constrain, mesh_axes
from fmjax.models.layers.zigzag import whole_from_zigzag, zigzag_order


def attention(call: AttentionCall, kernel: ModuleType) -> Float[Array, "B T H K"]:
    """The output of attention.

    Args:
      call: over sequences whose length is sharded. If they are in zig-zag order, its
        bias is in zig-zag order by query and in natural order by key.
      kernel: "blockwise" or "xla", which take queries at any position.
    """
    call = _with_keys_in_order(call)
    if call.drops or placement.refusal(call):
        # Weights are dropped by their place in the whole array, which XLA divides.
        return kernel.attention(call)
    length = mesh_axes("length")
    mask = call.mask

    def spec(x, placed: PartitionSpec):
        """`placed`, with its first axis whole if the array has one row for all."""
        if x is None or x.shape[0] > 1:
            return placed
        return PartitionSpec(None, *placed[1:])

    def local(q, k, v, mask, bias, sinks):
        arrays = {"q": q, "k": k, "v": v, "mask": mask, "bias": bias, "sinks": sinks}
        return kernel.attention(dataclasses.replace(call, keys=None, **arrays))

    masks = dataclasses.replace(
        mask,
        window_applies=PartitionSpec(),
        query_segment_ids=spec(mask.query_segment_ids, placement.of_rows(length)),
        key_segment_ids=spec(mask.key_segment_ids, placement.of_rows()),
        padding_mask=spec(mask.padding_mask, placement.of_rows()),
        query_positions=spec(mask.query_positions, placement.of_rows(length)),
    )
    biases = PartitionSpec(mesh_axes("batch"), mesh_axes("act_heads"), length)
    return jax.shard_map(
        local,
        in_specs=(
            placement.of_queries(length),
            placement.of_keys(),
            placement.of_keys(),
            masks,
            spec(call.bias, biases),
            PartitionSpec(mesh_axes("act_heads")),
        ),
        out_specs=placement.of_queries(length),
        check_vma=False,
    )(call.q, call.k, call.v, mask, call.bias, call.sinks)


def _with_keys_in_order(call: AttentionCall) -> AttentionCall:
    """The call with keys gathered and in natural order, and queries at positions."""
    mask, T = call.mask, call.q.shape[1]

    def gathered(x):
        return constrain(x, "batch", None, "act_kv_heads", None)

    k, v = gathered(call.k), gathered(call.v)
    positions = jnp.arange(T, dtype=jnp.int32)
    if mask.zigzag:
        positions = jnp.asarray(zigzag_order(T))
        k, v = gathered(whole_from_zigzag(k)), gathered(whole_from_zigzag(v))
        mask = AttentionMask(
            causal=mask.causal,
            window=mask.window,
            window_applies=mask.window_applies,
            query_segment_ids=mask.query_segment_ids,
            key_segment_ids=whole_from_zigzag(mask.key_segment_ids),
            padding_mask=whole_from_zigzag(mask.padding_mask),
        )
    mask = dataclasses.replace(mask, query_positions=positions[None])
    return dataclasses.replace(call, k=k, v=v, mask=mask)
