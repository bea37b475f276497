"""Trip counts: how often the while loops of a compiled program iterate."""

import dataclasses
import re
from collections.abc import Mapping

from fmjax.models.layers.expert_blocks import EXPECTED_TRIPS
from fmjax.planning.hlo_instructions import Computation, Instruction

_COPIES = ("copy", "bitcast", "convert", "reshape")
_MIRRORED = {"LT": "GT", "GT": "LT", "LE": "GE", "GE": "LE", "NE": "NE"}


@dataclasses.dataclass(frozen=True)
class _Counter:
    """An element of a loop's tuple, plus a constant."""

    index: int
    plus: int = 0


@dataclasses.dataclass(frozen=True)
class _Comparison:
    direction: str
    left: "_Value"
    right: "_Value"


_Value = int | _Counter | _Comparison | None


def trip_count(
    loop: Instruction, around: Computation, computations: Mapping[str, Computation]
) -> int | None:
    """How often the body of a while loop runs; None if the text does not tell.

    It is what the compiler noted (`known_trip_count`), else, as on TPUs, what follows
    from the constant that the condition compares a counter with, the counter's start
    and its step. A step that the body hides is taken to be 1, as that of all loops
    that JAX and XLA's partitioner make. Where only the data decides, it is what the
    model notes in the program (`fmjax.models.layers.expert_blocks.expected_trips`).

    Args:
      loop: the while instruction.
      around: the computation that it is in.
      computations: of the module, by name.
    """
    known = loop.noted("known_trip_count")
    if known:
        return int(known["n"])
    found = _counted(loop, around, computations)
    expected = re.search(rf"{EXPECTED_TRIPS}(\d+)\)*/while$", loop.op_name)
    return int(expected[1]) if found is None and expected else found


def _counted(
    loop: Instruction, around: Computation, computations: Mapping[str, Computation]
) -> int | None:
    """The trip count by the constants that the loop counts from and to."""
    condition = computations[loop.attributes["condition"].strip("%")]
    test = _value(condition.root, condition, computations)
    if not isinstance(test, _Comparison):
        return None
    direction, counter, bound = test.direction, test.left, test.right
    if isinstance(counter, int):
        direction, counter, bound = _MIRRORED.get(direction), bound, counter
    if not isinstance(counter, _Counter) or not isinstance(bound, int):
        return None
    start = _element(
        around.by_name[loop.operands[0]], counter.index, around, computations
    )
    if not isinstance(start, int):
        return None
    body = computations[loop.attributes["body"].strip("%")]
    after = _element(body.root, counter.index, body, computations)
    step = after.plus if isinstance(after, _Counter) else 1
    return _iterations(direction, start + counter.plus, bound, step)


def _iterations(direction: str | None, start: int, bound: int, step: int) -> int | None:
    """Iterations of a counter that starts at `start` until it fails the comparison."""
    if direction in ("LE", "GE"):
        bound += 1 if direction == "LE" else -1
    rising, falling = direction in ("LT", "LE"), direction in ("GT", "GE")
    if (rising and step > 0) or (falling and step < 0):
        return max(0, -(-(bound - start) // step))
    if direction == "NE" and step and (bound - start) % step == 0:
        return max(0, (bound - start) // step)
    return None


def _element(
    instruction: Instruction,
    index: int,
    within: Computation,
    computations: Mapping[str, Computation],
) -> _Value:
    """Value of an element of a tuple."""
    if instruction.opcode != "tuple":
        return None
    element = within.by_name[instruction.operands[index]]
    return _value(element, within, computations)


def _value(
    i: Instruction,
    within: Computation,
    computations: Mapping[str, Computation],
    arguments: tuple[_Value, ...] | None = None,
) -> _Value:
    """Value of a scalar instruction as far as constants and a loop's tuple give it.

    Args:
      i: the instruction.
      within: its computation.
      computations: of the module, by name.
      arguments: values of the parameters, inside of a fusion.
    """

    def operand(n: int) -> _Value:
        return _value(within.by_name[i.operands[n]], within, computations, arguments)

    if i.opcode == "constant":
        return int(i.literal) if re.fullmatch(r"-?\d+", i.literal) else None
    if i.opcode in _COPIES:
        return operand(0)
    if i.opcode == "parameter" and arguments is not None:
        return arguments[int(i.literal)]
    if i.opcode == "get-tuple-element":
        index, source = int(i.attributes["index"]), within.by_name[i.operands[0]]
        if source.opcode == "parameter" and arguments is None:
            return _Counter(index)
        return _element(source, index, within, computations)
    if i.opcode == "add":
        left, right = operand(0), operand(1)
        if isinstance(left, int):
            left, right = right, left
        if isinstance(left, _Counter) and isinstance(right, int):
            return _Counter(left.index, left.plus + right)
    if i.opcode == "compare":
        return _Comparison(i.attributes["direction"], operand(0), operand(1))
    if i.opcode in ("fusion", "call") and len(i.called) == 1:
        called = computations[i.called[0]]
        values = tuple(operand(n) for n in range(len(i.operands)))
        return _value(called.root, called, computations, values)
    return None
