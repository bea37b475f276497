"""Compiled HLO: the text of a compiled step as computations and instructions.

`compiled.as_text()` of XLA's TPU, GPU and CPU compilers prints one computation after
another, each as a list of instructions in the order in which they run. See
https://openxla.org/xla/operation_semantics for the instructions.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator, Mapping

from fmjax.planning.hlo_instructions import (
    BRACKETS,
    NAME,
    Array,
    Computation,
    Instruction,
)
from fmjax.planning.trip_counts import trip_count

_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,<=]*)\](?:\{[^{}]*S\((\d+)\)[^{}]*\})?")
_COMPUTATION = re.compile(r"^(ENTRY )?%([\w.-]+).*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%([\w.-]+) = ", re.ASCII)


@dataclasses.dataclass(frozen=True)
class Module:
    """A compiled program.

    Attributes:
      computations: by name.
      entry: name of the computation that runs once.
      partitions: number of devices that it runs on.
      unknown_loops: names of the while instructions whose number of iterations the
        text does not tell; their bodies count once.
    """

    computations: Mapping[str, Computation]
    entry: str
    partitions: int = 1
    unknown_loops: tuple[str, ...] = ()

    def scheduled(self) -> Iterator[tuple[Computation, Instruction]]:
        """Every instruction that runs by itself, with its computation."""
        for computation in self.computations.values():
            if computation.runs and not computation.fused:
                for instruction in computation.instructions:
                    yield computation, instruction

    def within(
        self, instruction: Instruction
    ) -> Iterator[tuple[Computation, Instruction]]:
        """Every instruction that a fusion, or the like, is made of."""
        for name in instruction.called:
            computation = self.computations[name]
            if computation.fused:
                for inner in computation.instructions:
                    yield computation, inner
                    yield from self.within(inner)


def parse_module(text: str) -> Module:
    """Parses the text of a compiled program.

    A computation runs as often as the instructions that call it, the body of a loop as
    often as the loop iterates, see `trip_count`. The text does not tell which branch a
    conditional takes: all are counted equally often, one of two every other time.

    Args:
      text: `compiled.as_text()`.

    Raises:
      ValueError: the text has no entry computation.
    """
    bodies, entry = _computations(text)
    if entry is None:
        raise ValueError("Expected the text of a compiled program, found no ENTRY.")
    once = {
        name: Computation(name, tuple(body), 1, False) for name, body in bodies.items()
    }
    runs, fused, unknown = _count_runs(once, entry)
    partitions = re.search(r"\bnum_partitions=(\d+)", text.partition("\n")[0])
    return Module(
        {
            name: dataclasses.replace(c, runs=runs[name], fused=name in fused)
            for name, c in once.items()
        },
        entry,
        int(partitions[1]) if partitions else 1,
        tuple(unknown),
    )


def _computations(text: str) -> tuple[dict[str, list[Instruction]], str | None]:
    """(instructions of each computation, name of the entry)."""
    bodies: dict[str, list[Instruction]] = {}
    entry, current, lines = None, None, []

    def finish():
        if lines:
            bodies[current].append(_instruction("\n".join(lines)))
            lines.clear()

    for line in text.splitlines():
        if current is None:
            if found := _COMPUTATION.match(line):
                current = found[2]
                bodies[current] = []
                entry = current if found[1] else entry
        elif _INSTRUCTION.match(line):
            finish()
            lines.append(line)
        # Attributes of kernels hold line breaks, also before a closing brace.
        elif line.startswith("}") and _depth("\n".join(lines)) == 0:
            finish()
            current = None
        else:
            lines.append(line)
    return bodies, entry


def _instruction(text: str) -> Instruction:
    head = _INSTRUCTION.match(text)
    rest = text[head.end() :]
    end = _closing(rest) if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    end = _closing(rest)
    inside = rest[len(opcode) + 1 : end - 1]
    named = opcode != "constant"
    return Instruction(
        name=head[2],
        opcode=opcode,
        results=_arrays(shape),
        operands=tuple(NAME.findall(inside)) if named else (),
        literal=inside,
        text=rest[end:].lstrip(", "),
        root=bool(head[1]),
    )


def _arrays(shape: str) -> tuple[Array, ...]:
    return tuple(
        Array(
            dtype, tuple(int(n.strip("<=")) for n in dims.split(",") if n), int(s or 0)
        )
        for dtype, dims, s in _ARRAY.findall(shape)
    )


def _closing(text: str) -> int:
    """The index after the bracket that closes the first one."""
    depth = 0
    for found in BRACKETS.finditer(text):
        if found[0] in ("{", "(", "["):
            depth += 1
        elif found[0] in ("}", ")", "]"):
            depth -= 1
            if depth == 0:
                return found.end()
    raise ValueError(f"Unclosed bracket in {text[:200]!r}.")


def _depth(text: str) -> int:
    """How many braces are left open."""
    counts = Counter(found[0] for found in BRACKETS.finditer(text))
    return counts["{"] - counts["}"]


def _count_runs(
    computations: Mapping[str, Computation], entry: str
) -> tuple[Mapping[str, float], set[str], list[str]]:
    """(runs of each computation, those that are fused, loops of unknown length)."""
    runs = Counter({entry: 1})
    fused: set[str] = set()
    unknown: list[str] = []
    for name in _callers_first(computations, entry):
        for i in computations[name].instructions:
            if i.opcode.endswith(("-update", "-done")):  # counted at their start
                continue
            share = 1 / len(i.called) if i.opcode == "conditional" else 1
            times = {called: share * n for called, n in Counter(i.called).items()}
            if i.opcode == "while":
                count = trip_count(i, computations[name], computations)
                if count is None:
                    unknown.append(i.name)
                    count = 1
                body, condition = i.attributes["body"], i.attributes["condition"]
                times = {body.strip("%"): count, condition.strip("%"): count + 1}
            inside = name in fused or _is_one(i)
            for called, n in times.items():
                runs[called] += runs[name] * n
                if inside:
                    fused.add(called)
    return runs, fused, unknown


def _is_one(i: Instruction) -> bool:
    """Whether what an instruction calls is part of the instruction."""
    return i.opcode not in ("call", "while", "conditional")


def _callers_first(computations: Mapping[str, Computation], entry: str) -> list[str]:
    """Computations that the entry reaches, each after all that call it."""
    done: dict[str, None] = {}

    def visit(name):
        if name not in done:
            for i in computations[name].instructions:
                for called in i.called:
                    visit(called)
            done[name] = None

    visit(entry)
    return list(reversed(done))
