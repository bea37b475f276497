"""Matrix products that a compiled program computes, read off its text.

XLA's own cost analysis counts the body of a loop once; here it counts as often as the
loop runs.
"""

import math
import re

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) .*\{$")
_INSTRUCTION = re.compile(
    r"^\s*(?:ROOT )?%([\w.-]+) = \w+\[([\d,]*)\]\S* ([\w-]+)\((.*)$"
)


def product_flops(program: str) -> float:
    """FLOPs of all dots of a compiled program.

    Args:
      program: `compiled.as_text()`.
    """
    computations: dict[str, list[str]] = {}
    entry = lines = None
    for line in program.splitlines():
        if found := _COMPUTATION.match(line):
            lines = computations.setdefault(found[1], [])
            entry = found[1] if line.startswith("ENTRY") else entry
        elif lines is not None:
            lines.append(line)
    return _flops(entry, computations)


def _flops(name: str, computations: dict[str, list[str]]) -> float:
    shapes: dict[str, list[int]] = {}
    total = 0.0
    for line in computations[name]:
        if found := _INSTRUCTION.match(line):
            instruction, shape, op, rest = found.groups()
            shapes[instruction] = [int(size) for size in shape.split(",") if size]
            if op == "dot":
                left = shapes[re.match(r"%([\w.-]+)", rest)[1]]
                axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", rest)[1]
                terms = math.prod(left[int(axis)] for axis in axes.split(",") if axis)
                total += 2 * math.prod(shapes[instruction]) * terms
        times = 1
        if " while(" in line:
            times = int(re.search(r'"known_trip_count":\{"n":"(\d+)"', line)[1])
        for called in re.findall(r"(?:calls|to_apply|body)=%([\w.-]+)", line):
            total += times * _flops(called, computations)
    return total
