"""Memory traffic: bytes that an instruction of a compiled step reads and writes."""

from fmjax.planning.hlo_instructions import FREE, Computation, Instruction
from fmjax.planning.hlo_module import Module

_CONTROL = ("while", "conditional", "call")
_SLICES = ("dynamic-slice", "slice", "gather")


def memory_bytes(
    module: Module, computation: Computation, instruction: Instruction
) -> int:
    """Bytes that one execution reads from and writes to the device's memory.

    Each operand is read and each result written once; what a fusion keeps inside costs
    nothing. Of an array that is only sliced, the slices count; of one that is updated
    in place, the update.

    Args:
      module: the compiled step.
      computation: that the instruction is in.
      instruction: one that is scheduled.
    """
    i = instruction
    if i.opcode in (*FREE, *_CONTROL) or i.opcode.endswith(("-done", "-update")):
        return 0
    if i.opcode == "fusion":
        inside = module.computations[i.called[0]]
        given = [p for p in inside.instructions if p.opcode == "parameter"]
        return sum(_read(p, inside) for p in given) + _written(inside.root, inside)
    return sum(_read_by(i, n, computation) for n in range(len(i.operands))) + _written(
        i, computation
    )


def _read(array: Instruction, inside: Computation) -> int:
    """Bytes that a fusion reads of one of its parameters."""
    uses = [
        (user, n)
        for user in inside.instructions
        for n, name in enumerate(user.operands)
        if name == array.name
    ]
    read = 0
    for user, n in uses:
        if user.opcode == "bitcast":
            read += _read(user, inside)
        else:
            read += _read_by(user, n, inside)
    return min(read, array.result_bytes)


def _read_by(i: Instruction, n: int, within: Computation) -> int:
    """Bytes that an instruction reads of its n-th operand."""
    if n == 0 and i.opcode in _SLICES:
        return i.result_bytes
    if n == 0 and i.opcode == "dynamic-update-slice":
        return 0
    if n == 0 and i.opcode == "scatter":
        return within.by_name[i.operands[-1]].result_bytes
    return within.by_name[i.operands[n]].result_bytes


def _written(i: Instruction, within: Computation) -> int:
    """Bytes that an instruction, or a fusion with this root, writes."""
    if i.opcode == "tuple":
        return sum(_written(within.by_name[name], within) for name in i.operands)
    if i.opcode == "bitcast" and within.fused:
        return _written(within.by_name[i.operands[0]], within)
    if i.opcode == "dynamic-update-slice":
        return within.by_name[i.operands[1]].result_bytes
    if i.opcode == "scatter":
        return within.by_name[i.operands[-1]].result_bytes
    if i.custom_call_target.startswith("__cu"):  # a library's workspace is bytes
        return sum(a.bytes for a in i.results if a.dtype not in ("s8", "u8"))
    return i.result_bytes
