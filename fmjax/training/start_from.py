"""Reading the parameters that a run starts from into its state."""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from fmjax.models.layers.image_positions import resize_positions
from fmjax.models.parameter_paths import is_scanned
from fmjax.optim.parametrization import start_average
from fmjax.training.copy_plan import Copy, Piece
from fmjax.training.state import State, StatePlan

# Bytes of parameters that are read at once.
_READ_BYTES = 256 << 20


def start_from(
    copies: Sequence[Copy], state: State, plan: StatePlan | None = None
) -> State:
    """The state with the copied parameters, also in the moving average.

    Arrays are read in groups, each directly into the sharding of its counterpart, so
    that little more than the state is held at any time.

    Args:
      copies: from `plan_copies`.
      state: the initial state of this run; arrays that are copied to are given away.
      plan: of this run's state, for parameter-efficient fine-tuning; None without.
    """
    for copy in copies:
        name = copy.wanted.collection
        leaves = traverse_util.flatten_dict(state.variables[name], sep="/")
        for pieces in _groups(copy):
            leaves |= _copied(copy, pieces, leaves, plan)
        put = traverse_util.unflatten_dict(leaves, sep="/")
        if name == "params":
            state = dataclasses.replace(state, params=put)
        else:
            state = dataclasses.replace(state, extra=state.extra | {name: put})
    peft = None if plan is None else plan.peft
    if peft is not None and copies:
        shardings = jax.tree.map(lambda leaf: leaf.sharding, state.params)
        arrays = {
            piece.target.array for copy in copies for piece in copy.pieces.values()
        }
        fit = jax.jit(
            functools.partial(peft.fit, without=arrays),
            donate_argnums=0,
            out_shardings=shardings,
        )
        state = dataclasses.replace(state, params=fit(state.params))
    if copies and state.ema is not None:
        average = start_average(state.ema, state.params)
        state = dataclasses.replace(state, ema=average)
    return state


def _groups(copy: Copy) -> Iterator[list[Piece]]:
    """The pieces to copy, in groups of about `_READ_BYTES` with the same arrays.

    No array of either run has pieces in two groups.
    """
    together: dict[str, list[Piece]] = {}
    for piece in copy.pieces.values():
        source, target = f"<{piece.source.array}", f">{piece.target.array}"
        own = together.setdefault(source, [])
        other = together.setdefault(target, own)
        if other is not own:
            own += other
            for name in [name for name, list_ in together.items() if list_ is other]:
                together[name] = own
        own.append(piece)
    group: list[Piece] = []
    size = 0
    for pieces in {id(pieces): pieces for pieces in together.values()}.values():
        arrays = {piece.source.array for piece in pieces}
        more = 4 * sum(math.prod(copy.shapes[name]) for name in arrays)
        if group and size + more > _READ_BYTES:
            yield group
            group, size = [], 0
        group, size = group + pieces, size + more
    if group:
        yield group


def _copied(
    copy: Copy,
    pieces: Sequence[Piece],
    leaves: dict[str, jax.Array],
    plan: StatePlan | None,
) -> dict[str, jax.Array]:
    """The arrays of this run that pieces are copied to, by path."""
    targets: dict[str, list[Piece]] = {}
    for piece in pieces:
        targets.setdefault(piece.target.array, []).append(piece)
    places = {
        name: leaves[name] if name in leaves else _decoded_place(name, plan)
        for name in targets
    }
    read = copy.saved.read_params(_placed(copy, pieces, places))
    found = {}
    for name, own in targets.items():
        sources = sorted({piece.source.array for piece in own})
        old = places[name]
        # By number, not name, so that layers with an array each share a program.
        spec = tuple(
            (sources.index(p.source.array), p.source.layer, p.target.layer, *p[2:])
            for p in own
        )
        if name in leaves:
            fill = jax.jit(
                _filled,
                static_argnums=0,
                donate_argnums=1,
                out_shardings=old.sharding,
            )
            found[name] = fill(spec, old, [read[source] for source in sources])
            continue

        def coded(sources, name=name, spec=spec, old=old):
            whole = jnp.zeros(old.shape, old.dtype)
            whole = jax.lax.with_sharding_constraint(whole, old.sharding)
            return plan.peft.encode(name, _filled(spec, whole, sources))

        parts = {path: leaves[path].sharding for path in plan.peft.parts[name]}
        encode = jax.jit(coded, out_shardings=parts)
        found |= encode([read[source] for source in sources])
        for part in parts:
            leaves[part].delete()
    return jax.block_until_ready(found)


def _decoded_place(name: str, plan: StatePlan) -> jax.ShapeDtypeStruct:
    """Where a weight would be that is kept as codes."""
    shape = plan.peft.base_shapes[name]
    return shape.update(sharding=plan.coded[name])


def _filled(spec: tuple, old: Array, sources: Sequence[Array]) -> Array:
    """The array `old`, with parts replaced by those of arrays that were read.

    Args:
      spec: of each part the number of its array, its layer there and here, and the
        fields of `Piece`.
      old: an array of this run.
      sources: the arrays.
    """
    for number, layer_there, layer, rows, resized in spec:
        value = sources[number]
        if layer_there is not None:
            value = value[layer_there]
        if resized:
            there, here = resized
            value = resize_positions(
                value, there.grid, here.grid, here.prefix, here.interpolation
            )
        where: list[Any] = [slice(None)] * value.ndim
        if rows and old.shape[layer is not None :] != value.shape:
            # The padding of the vocabulary differs.
            axis, count = rows
            where[axis] = slice(count)
        value = value[tuple(where)]
        if layer is not None:
            where.insert(0, layer)
        old = old.at[tuple(where)].set(value.astype(old.dtype))
    return old


def _placed(copy: Copy, pieces: Sequence[Piece], places: Mapping[str, Any]) -> dict:
    """ShapeDtypeStructs of the arrays to read, with the shardings of their targets."""
    structs = {}
    for piece in pieces:
        name, place = piece.source.array, places[piece.target.array]
        axes = list(place.sharding.spec) + [None] * place.ndim
        axes = axes[is_scanned(piece.target.array) : place.ndim]
        if piece.resized:
            # The rows of the other table need not be divisible by the shards of this.
            axes[0] = None
        spec = PartitionSpec(*[None] * is_scanned(name), *axes)
        sharding = NamedSharding(place.sharding.mesh, spec)
        structs[name] = jax.ShapeDtypeStruct(
            copy.shapes[name], place.dtype, sharding=sharding
        )
    return structs
