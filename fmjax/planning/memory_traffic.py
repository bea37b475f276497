"""Memory traffic: bytes that an instruction of a compiled step reads and writes."""

import dataclasses

from fmjax.planning.hlo_instructions import FREE, Array, Computation, Instruction
from fmjax.planning.hlo_module import Module
from fmjax.sharding.collective_kinds import KINDS

_CONTROL = ("while", "conditional", "call")
_SLICES = ("dynamic-slice", "slice", "gather")
# They bring arrays from the device's memory to the chip's, beside the computation.
_PREFETCHES = ("copy-start", "slice-start")


def memory_bytes(
    module: Module,
    computation: Computation,
    instruction: Instruction,
    spaces: bool = False,
) -> int:
    """Bytes that one execution reads from and writes to the device's memory.

    Each operand is read and each result written once; what a fusion keeps inside costs
    nothing, and neither does what it only hands on, or a collective that runs beside
    it. Of an array that is only sliced, the slices count; of one that is updated in
    place, the update.

    Args:
      module: the compiled step.
      computation: that the instruction is in.
      instruction: one that is scheduled.
      spaces: whether only arrays of memory space 0 are in the device's memory, as in
        programs for TPUs; these fetch others beside the computation.
    """
    return _Traffic(module, spaces).of(computation, instruction)


@dataclasses.dataclass(frozen=True)
class _Traffic:
    module: Module
    spaces: bool

    def of(self, computation: Computation, i: Instruction) -> int:
        if i.opcode in (*FREE, *_CONTROL) or i.opcode.endswith(("-done", "-update")):
            return 0
        if self.spaces and i.opcode in _PREFETCHES:
            return 0
        if i.opcode == "fusion":
            inside = self.module.computations[i.called[0]]
            given = [p for p in inside.instructions if p.opcode == "parameter"]
            read = sum(self._read(p, inside) for p in given)
            return read + self._written(inside.root, inside)
        read = sum(self._read_by(i, n, computation) for n in range(len(i.operands)))
        return read + self._written(i, computation)

    def _bytes(self, arrays: tuple[Array, ...]) -> int:
        return sum(a.bytes for a in arrays if not (self.spaces and a.space))

    def _read(self, array: Instruction, inside: Computation) -> int:
        """Bytes that a fusion reads of one of its parameters."""
        read = 0
        for user in inside.instructions:
            for n, name in enumerate(user.operands):
                if name != array.name:
                    continue
                if user.opcode == "bitcast":
                    read += self._read(user, inside)
                elif not _hands_on(user):
                    read += self._read_by(user, n, inside)
        return min(read, self._bytes(array.results))

    def _read_by(self, i: Instruction, n: int, within: Computation) -> int:
        """Bytes that an instruction reads of its n-th operand."""
        given = within.by_name[i.operands[n]].results
        if i.opcode == "fusion":
            inside = self.module.computations[i.called[0]]
            parameters = (p for p in inside.instructions if p.opcode == "parameter")
            mine = next((p for p in parameters if p.literal == str(n)), None)
            if mine is not None:
                return min(self._read(mine, inside), self._bytes(given))
        if n == 0 and i.opcode in _SLICES:
            # A slice of an array on the chip is not in the device's memory either.
            return min(i.result_bytes, self._bytes(given))
        if n == 0 and i.opcode == "dynamic-update-slice":
            return 0
        if n == 0 and i.opcode == "scatter":
            given = within.by_name[i.operands[-1]].results
        return self._bytes(given)

    def _written(self, i: Instruction, within: Computation) -> int:
        """Bytes that an instruction, or a fusion with this root, writes."""
        if i.opcode == "tuple":
            return sum(
                self._written(within.by_name[name], within) for name in i.operands
            )
        if within.fused and (i.opcode == "parameter" or _hands_on(i)):
            return 0
        if i.opcode == "bitcast" and within.fused:
            return self._written(within.by_name[i.operands[0]], within)
        if i.opcode == "dynamic-update-slice":
            return self._bytes(within.by_name[i.operands[1]].results)
        if i.opcode == "scatter":
            return self._bytes(within.by_name[i.operands[-1]].results)
        if i.custom_call_target.startswith("__cu"):  # a library's workspace is bytes
            return sum(a.bytes for a in i.results if a.dtype not in ("s8", "u8"))
        return self._bytes(i.results)


def _hands_on(i: Instruction) -> bool:
    """Whether an instruction of a fusion moves nothing of its own through memory.

    On TPUs a fusion carries the arrays of a collective that runs beside it.
    """
    collective = i.opcode in KINDS or i.custom_call_target.startswith("AsyncCollective")
    return collective or i.opcode == "tuple"
