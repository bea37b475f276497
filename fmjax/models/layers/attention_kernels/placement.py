"""Placement of the arrays of attention on the mesh, for kernels within `shard_map`."""

from jax.sharding import PartitionSpec

from fmjax.models.layers.attention_kernels.call import AttentionCall
from fmjax.models.layers.logical_axes import mesh_axes, shards


def refusal(call: AttentionCall) -> str | None:
    """Why the devices of the mesh cannot divide rows and heads; None if they can."""
    for name, size, devices in (
        ("rows", call.q.shape[0], shards("batch")),
        ("query heads", call.q.shape[2], shards("act_heads")),
        ("key heads", call.k.shape[2], shards("act_kv_heads")),
    ):
        if size % devices:
            return f"{size} {name} cannot be divided among {devices} devices"
    if shards("act_heads") != shards("act_kv_heads"):
        return (
            f"query heads lie on {shards('act_heads')} devices, key heads on "
            f"{shards('act_kv_heads')}"
        )
    return None


def of_queries(length: tuple[str, ...] = ()) -> PartitionSpec:
    """Of queries and outputs [B, T, H, K], with these mesh axes for T."""
    return PartitionSpec(mesh_axes("batch"), length, mesh_axes("act_heads"))


def of_keys(length: tuple[str, ...] = ()) -> PartitionSpec:
    """Of keys and values [B, S, G, K], with these mesh axes for S."""
    return PartitionSpec(mesh_axes("batch"), length, mesh_axes("act_kv_heads"))


def of_rows(length: tuple[str, ...] = ()) -> PartitionSpec:
    """Of arrays [B, T], such as segment ids, with these mesh axes for T."""
    return PartitionSpec(mesh_axes("batch"), length)
