"""Layer-wise decay of learning rates (discriminative fine-tuning)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from flax import traverse_util

from fmjax.errors import UserError
from fmjax.models.parameter_paths import DENSE, SHARED, slots
from fmjax.optim.scaling import Scaling

# What lies below a stack, in the module that has it; all else there is a head.
_BELOW = (
    *("tokens", "inputs", "encoder_inputs", "decoder_inputs", "project_in"),
    *("patches", "input_norm", "words", "types"),
)
_PROJECTION = "project"  # of a stack's input


def decay_by_layer(scaling: Any, shapes: Any, decay: float, binding: str) -> Any:
    """A `Scaling` per parameter with the factor of its layer in its rate.

    In a stack of L layers, layer i from 0 has the factor decay^(L - i), so that the top
    one has `decay`; tables and what else is below the stack have decay^(L + 1), as in
    BEiT; heads, the final norm and what all layers read have 1.

    Args:
      scaling: a `Scaling` per parameter; None for no factors.
      shapes: the nested dict of shapes of the parameters.
      decay: factor from one layer to the one below.
      binding: of `decay`, for messages.

    Raises:
      UserError: the model has no stack of layers.
    """
    leaves = traverse_util.flatten_dict(shapes, sep="/")
    sizes = {path: leaf.shape for path, leaf in leaves.items()}
    found = dict.fromkeys(sizes, Scaling())
    if scaling is not None:
        found = traverse_util.flatten_dict(scaling, sep="/")
    powers = _powers(sizes)
    if not any(isinstance(power, tuple) or power for power in powers.values()):
        raise UserError(f"{binding} = {decay}: the model has no layers; expected 1.0.")
    for path, power in powers.items():
        rate = found[path].rate
        if isinstance(power, tuple):
            rates = tuple(rate * decay**p for p in power)
            found[path] = dataclasses.replace(found[path], rate=rates)
        elif power:
            found[path] = dataclasses.replace(found[path], rate=rate * decay**power)
    return traverse_util.unflatten_dict(found, sep="/")


def _powers(sizes: Mapping[str, tuple[int, ...]]) -> dict[str, int | tuple[int, ...]]:
    """How many layers below the heads each array is; of scanned ones each layer."""
    counts: dict[tuple[str, ...], dict[bool, int]] = {}
    blocks = {path: _block(path) for path in slots(sizes)}
    for block in blocks.values():
        if block is not None:
            stack, dense, index = block
            of_stack = counts.setdefault(stack, {True: 0, False: 0})
            of_stack[dense] = max(of_stack[dense], index + 1)
    powers: dict[str, Any] = {}
    for path, slot in slots(sizes).items():
        if (block := blocks[path]) is None:
            powers[path] = _outside(tuple(path.split("/")), counts)
            continue
        stack, dense, index = block
        number = index if dense else counts[stack][True] + index
        power = sum(counts[stack].values()) - number
        if slot.layer is None:
            powers[path] = power
        else:
            powers[slot.array] = (*powers.get(slot.array, ()), power)
    return powers


def _block(path: str) -> tuple[tuple[str, ...], bool, int] | None:
    """The stack of a path, whether of its first kind of layers, and the layer's index.

    None for what is in no layer.
    """
    levels = path.split("/")
    for at, level in enumerate(levels):
        if level == SHARED:
            return tuple(levels[:at]), False, 0
        if level.startswith("layer_") and level[len("layer_") :].isdigit():
            dense = at > 0 and levels[at - 1] == DENSE
            stack = tuple(levels[: at - dense])
            return stack, dense, int(level[len("layer_") :])
    return None


def _outside(levels: tuple[str, ...], counts: Mapping) -> int:
    """The layers from the heads to what is in no layer: 0, or all and one more."""
    own = [stack for stack in counts if levels[: len(stack)] == stack]
    if own:
        below = levels[len(own[0])] == _PROJECTION
        return sum(counts[own[0]].values()) + 1 if below else 0
    beside = [
        (stack, levels[len(stack) - 1])
        for stack in counts
        if levels[: len(stack) - 1] == stack[:-1]
    ]
    deepest = max((len(stack) for stack, _ in beside), default=0)
    depths = [
        sum(counts[stack].values()) + 1
        for stack, name in beside
        if len(stack) == deepest and name in _BELOW
    ]
    return max(depths, default=0)
