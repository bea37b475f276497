"""A compiled step as `fmjax plan` reads it: its text and its bytes."""

import dataclasses
import pathlib
import re
import tempfile
import threading
import time
from typing import Any

import jax

# What libtpu calls the dumps of a program whose arrays have their places in memory.
_ASSIGNED = "after_optimizations_after_buffer_assignment.txt"
_OPTIMIZED = "after_optimizations.txt"
_ALLOCATIONS = "after_optimizations-buffer-assignment.txt"
_POLL_SECONDS = 0.2


@dataclasses.dataclass(frozen=True)
class Program:
    """One compiled step.

    Attributes:
      text: HLO.
      arguments: bytes of a device's state and batch, and of results that do not take
        the place of an argument.
      temporaries: bytes of all else that it keeps in the device's memory.
      code: bytes of the machine code; 0 if there is none.
      quick: whether machine code was not generated. The text then has no estimates of
        cycles, and `temporaries` lacks the scratch memory of collectives.
    """

    text: str
    arguments: int
    temporaries: int
    code: int
    quick: bool = False


def whole_program(lowered: jax.stages.Lowered) -> Program:
    """The program as it would run.

    Raises:
      jax.errors.JaxRuntimeError: the compiler refuses it.
    """
    return _whole(lowered.compile())


def quick_program(lowered: jax.stages.Lowered) -> Program:
    """The program for TPUs before machine code, which takes minutes, is generated.

    libtpu cannot be told to stop there. It goes on in the background until this process
    ends, so this is for a process of its own.

    Raises:
      jax.errors.JaxRuntimeError: the compiler refuses it, as for lack of memory.
    """
    found: list[Program | BaseException] = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        options: dict[str, Any] = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}

        def compile_all() -> None:
            try:
                found.append(_whole(lowered.compile(compiler_options=options)))
            except BaseException as error:
                found.append(error)

        threading.Thread(target=compile_all, daemon=True).start()
        while not found:
            if program := _dumped(pathlib.Path(folder)):
                return program
            time.sleep(_POLL_SECONDS)
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]


def _whole(compiled: jax.stages.Compiled) -> Program:
    memory = compiled.memory_analysis()
    arguments = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
    )
    return Program(
        compiled.as_text() or "",
        arguments,
        memory.temp_size_in_bytes,
        memory.generated_code_size_in_bytes,
    )


def _dumped(folder: pathlib.Path) -> Program | None:
    """What the compiler has written down; None if it has not come so far."""
    assigned = list(folder.glob(f"*.{_ASSIGNED}"))
    if not assigned:
        return None
    name = assigned[0].name.removesuffix(_ASSIGNED)
    optimized, allocations = (
        folder / (name + _OPTIMIZED),
        folder / (name + _ALLOCATIONS),
    )
    # The same text is written before, so this one is whole if it is as long.
    if assigned[0].stat().st_size < optimized.stat().st_size:
        return None
    arguments, temporaries = _allocated(allocations.read_text(encoding="utf-8"))
    text = assigned[0].read_text(encoding="utf-8")
    return Program(text, arguments, temporaries, 0, quick=True)


def _allocated(text: str) -> tuple[int, int]:
    """Bytes of arguments and results, and of temporaries, in the device's memory."""
    arguments = temporaries = 0
    for size, kind in re.findall(r"^allocation \d+: size (\d+), (.*)$", text, re.M):
        # Color 0, which is not named, is the device's memory; others are on the chip.
        if "color" in kind or "thread-local" in kind:
            continue
        if "temp" in kind:
            temporaries += int(size)
        else:
            arguments += int(size)
    return arguments, temporaries
