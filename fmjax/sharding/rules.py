"""Sharding rules: the mesh axes of each logical axis. Models only name logical axes."""

import math

import jax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fmjax.errors import UserError

LogicalRules = tuple[tuple[str, str | tuple[str, ...] | None], ...]

# Parameters: FSDP shards the width, which every matrix has (ZeRO-3), and so do devices
# that share the length of sequences, which would else hold the same parameters; tensor
# parallelism shards the other side (Megatron-LM, Shoeybi et al. 2019), a pipeline the
# layers. Activations: the batch is sharded over data, fsdp, expert and stage, length
# over context, heads and hidden units over tensor, the width not at all; between
# layers, where there are neither heads nor hidden units, tensor shards length too.
# Inside a mixture of experts, and only there, the expert axis shards experts instead of
# rows (GShard, Lepikhin et al. 2021).
DEFAULT_RULES: LogicalRules = (
    ("batch", ("data", "fsdp", "expert", "stage")),
    ("length", "context"),
    ("embed", ("fsdp", "context")),
    ("mlp", "tensor"),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("vocab", "tensor"),
    ("expert", "expert"),
    ("layers", "stage"),
    ("kv", None),
    ("norm", None),
    ("position", None),
    ("token_type", None),
    ("bucket", None),
    ("patch_y", None),
    ("patch_x", None),
    ("channel", None),
    ("act_length", ("context", "tensor")),
    ("act_embed", None),
    ("act_heads", "tensor"),
    ("act_kv_heads", "tensor"),
    ("act_mlp", "tensor"),
    ("act_vocab", "tensor"),
    ("act_expert", "expert"),
    ("act_expert_batch", ("data", "fsdp", "stage")),
)


def logical_axes(boxed):
    """Logical axes of a tree of boxed abstract arrays: a tuple of names per leaf."""
    return jax.tree.map(
        lambda leaf: (
            tuple(leaf.names)
            if isinstance(leaf, nn.Partitioned)
            else (None,) * leaf.ndim
        ),
        boxed,
        is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned),
    )


def param_specs(axes, shapes, mesh: Mesh, rules: LogicalRules):
    """A tree of PartitionSpecs for parameters with these logical axes.

    Args:
      axes: tree of tuples of logical names, as `logical_axes` gives it.
      shapes: tree of arrays or ShapeDtypeStructs of the same structure.
      mesh: the mesh that the specs are for.
      rules: logical to mesh axes.

    Raises:
      UserError: a name has no rule, or mesh axes do not divide the size of an axis.
    """
    known = dict(rules)

    def spec(path, names, leaf):
        where = jax.tree_util.keystr(path, simple=True, separator="/")
        for name in names:
            if name is not None and name not in known:
                raise UserError(
                    f"{where}: no rule for logical axis {name!r}; add it to mesh.rules."
                )
        placed = nn.logical_to_mesh_axes(names, rules)
        for name, size, target in zip(names, leaf.shape, placed):
            axes = (target,) if isinstance(target, str) else target or ()
            shards = math.prod(mesh.shape[axis] for axis in axes)
            if size % shards:
                sizes = " × ".join(f"mesh.{axis}" for axis in axes)
                raise UserError(
                    f"{sizes} = {shards} does not divide axis {name!r} of {where}, "
                    f"which has size {size}. Choose another size, or leave it whole: "
                    f"mesh.rules = (('{name}', None),)."
                )
        return PartitionSpec(*placed)

    specs = jax.tree_util.tree_map_with_path(
        spec, axes, shapes, is_leaf=lambda x: isinstance(x, tuple)
    )
    _check_used(specs, mesh)
    return specs


# Mesh axes of what not every model has, what that is, and how a model gets it.
_NEEDED = {
    "expert": ("no experts", "transformer.experts = @experts()"),
    "stage": (
        "no stack of layers in one scan",
        "transformer.scan_layers = True without transformer.share_layers",
    ),
}


def _check_used(specs, mesh: Mesh) -> None:
    """Raises a UserError for a mesh axis that shards no parameter of the model."""
    leaves = jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, PartitionSpec))
    used = {axis for spec in leaves for axis in jax.tree.leaves(tuple(spec))}
    for axis, (missing, expected) in _NEEDED.items():
        if mesh.shape.get(axis, 1) > 1 and axis not in used:
            raise UserError(
                f"mesh.{axis} = {mesh.shape[axis]}: the model has {missing}, so these "
                f"devices would repeat each other's work. Expected 1, or {expected}."
            )


def named_shardings(specs, mesh: Mesh):
    """A tree of NamedShardings on `mesh` from a tree of PartitionSpecs."""
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, spec),
        specs,
        is_leaf=lambda x: isinstance(x, PartitionSpec),
    )
