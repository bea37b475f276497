"""Instructions and computations of compiled HLO.

See https://openxla.org/xla/operation_semantics for what the instructions do.
"""

import dataclasses
import functools
import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

# Names of instructions and computations, where they are referred to.
NAME = re.compile(r"%([\w.-]+)")
# Strings are skipped as a whole: kernels carry code and metadata with brackets in them.
BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"|[{}()\[\],]', re.DOTALL)
# They take no time: they name arrays, or tell which device this is.
FREE = (
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "opt-barrier",
    "partition-id",
    "replica-id",
)
_CALLS = (
    "calls",
    "to_apply",
    "body",
    "condition",
    "branch_computations",
    "true_computation",
    "false_computation",
    "called_computations",
    "select",
    "scatter",
)


@dataclasses.dataclass(frozen=True)
class Array:
    """Type of an array.

    Attributes:
      dtype: by XLA's name, such as "bf16".
      dims: its shape.
      space: where it is: 0 is the device's memory; on TPUs 1 is the chip's vector
        memory, 5 the host's, and others are on the chip.
    """

    dtype: str
    dims: tuple[int, ...]
    space: int = 0

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """Size in bytes, without the padding of tiled layouts."""
        if self.dtype == "pred":
            return self.size
        bits = re.match(r"(?:bf|f|s|u|c)(\d+)", self.dtype)  # none: a token
        return -(-self.size * int(bits[1]) // 8) if bits else 0


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction of a computation.

    Attributes:
      name: unique in its computation.
      opcode: such as "fusion", "dot" or "all-gather-start".
      results: the arrays of its result; several if that is a tuple.
      operands: names of the instructions whose results it takes.
      literal: what stands in its parentheses: a constant's value, a parameter's number.
      text: its attributes as printed.
      root: whether its result is that of the computation.
    """

    name: str
    opcode: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    literal: str
    text: str
    root: bool

    @functools.cached_property
    def attributes(self) -> Mapping[str, str]:
        """Attributes by name, each as printed."""
        pairs = (part.partition("=") for part in _split(self.text))
        return {name.strip(): value for name, _, value in pairs if value}

    @property
    def result_bytes(self) -> int:
        """Bytes of all arrays of the result."""
        return sum(array.bytes for array in self.results)

    @property
    def called(self) -> tuple[str, ...]:
        """Names of the computations that it calls."""
        values = (self.attributes.get(name, "") for name in _CALLS)
        return tuple(name for value in values for name in NAME.findall(value))

    @property
    def op_name(self) -> str:
        """JAX's path to the operation, such as "jit(step)/mlp/dot_general", or ""."""
        found = re.search(r'op_name="([^"]*)"', self.attributes.get("metadata", ""))
        return found[1] if found else ""

    @property
    def custom_call_target(self) -> str:
        """Name of the function that a custom-call calls, or ""."""
        return self.attributes.get("custom_call_target", "").strip('"')

    @property
    def backend_config(self) -> str:
        """What the compiler's backend noted, as printed: mostly JSON."""
        return self.attributes.get("backend_config", "")

    @functools.cached_property
    def _notes(self) -> Any:
        try:
            return json.loads(self.backend_config, strict=False)
        except ValueError:
            return None

    def noted(self, key: str) -> Any:
        """The value of a key anywhere in the backend's JSON; None if there is none."""
        pending = [self._notes]
        while pending:
            value = pending.pop()
            if isinstance(value, dict):
                if key in value:
                    return value[key]
                pending.extend(value.values())
            elif isinstance(value, list):
                pending.extend(value)
        return None

    @property
    def estimated_cycles(self) -> int | None:
        """Clock cycles by the TPU compiler's cost model; None if it gives none."""
        cycles = self.noted("estimated_cycles")
        return None if cycles is None else int(cycles)

    @property
    def replica_groups(self) -> str:
        """Which devices a collective joins, as printed; see `device_groups`."""
        groups = self.attributes.get("replica_groups", "")
        ids = self.attributes.get("device_ids")
        return f"{groups}, device_ids={ids}" if ids else groups


@dataclasses.dataclass(frozen=True)
class Computation:
    """A list of instructions in the order in which they run.

    Attributes:
      name: unique in its module.
      instructions: in order; one of them is the root.
      runs: how often it runs in one step.
      fused: whether it is part of a single instruction: the inside of a fusion or of
        an asynchronous operation, or the function of a reduction, a sort or a scatter.
        What is in it takes no time of its own.
    """

    name: str
    instructions: tuple[Instruction, ...]
    runs: float
    fused: bool

    @functools.cached_property
    def by_name(self) -> Mapping[str, Instruction]:
        """Its instructions by name."""
        return {i.name: i for i in self.instructions}

    @functools.cached_property
    def root(self) -> Instruction:
        """The instruction whose result is that of the computation."""
        marked = (i for i in self.instructions if i.root)
        return next(marked, self.instructions[-1])

    def operand_arrays(self, instruction: Instruction) -> list[Array]:
        """The arrays that an instruction of this computation takes."""
        return [
            array
            for name in instruction.operands
            if name in self.by_name
            for array in self.by_name[name].results
        ]


def _split(text: str) -> Iterator[str]:
    """The parts between commas outside of all brackets and strings."""
    depth = start = 0
    for found in BRACKETS.finditer(text):
        if found[0] in ("{", "(", "["):
            depth += 1
        elif found[0] in ("}", ")", "]"):
            depth -= 1
        elif found[0] == "," and depth == 0:
            yield text[start : found.start()]
            start = found.end()
    yield text[start:]
