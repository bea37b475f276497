"""A trace of some steps of a run, for xprof, Perfetto and `fmjax profile`."""

import contextlib
import json
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax

FOLDER = "profile"
ABOUT = "about.json"
STEP = "train"  # the annotation of a step
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%([\w.\-]+) = (.*)$", re.MULTILINE)
_OP_NAME = re.compile(r'op_name="([^"]+)"')


class StepProfile:
    """Traces the steps from the first to the last, once.

    Each process writes its trace under profile/ in the run directory, as JAX does. The
    first also writes about.json: the steps, and the path of names in JAX to each
    instruction of the program, which traces of CPUs lack.

    Args:
      run_dir: the run directory, or the local folder of its reports.
      steps: the first and the last step, counting from 1; None for no trace.
      program: () → the compiled step as text.
    """

    def __init__(
        self,
        run_dir: pathlib.Path,
        steps: tuple[int, int] | None,
        program: Callable[[], str],
    ):
        self._folder, self._steps, self._program = run_dir / FOLDER, steps, program
        self._began: int | None = None

    @contextlib.contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Context manager around a step, which is traced if it is one of them."""
        if self._steps is None:
            yield
            return
        first, last = self._steps
        if self._began is None and first <= step <= last:
            self._began = step
            jax.profiler.start_trace(str(self._folder))
        with jax.profiler.StepTraceAnnotation(STEP, step_num=step):
            yield

    def is_over(self, step: int) -> bool:
        """Whether this step is the last of a trace, so that `stop` is due."""
        return self._began is not None and step >= self._steps[1]

    def stop(self, step: int, results: Any) -> str:
        """Ends the trace; returns a line that tells where it is.

        Args:
          step: the last one that was traced.
          results: arrays of that step, which are waited for.
        """
        jax.block_until_ready(results)
        jax.profiler.stop_trace()
        first, self._began, self._steps = self._began, None, None
        if jax.process_index() == 0:
            about = {"first": first, "last": step, "op_names": names(self._program())}
            (self._folder / ABOUT).write_text(json.dumps(about))
        return f"traced steps {first} to {step}; `fmjax profile` adds up the trace"

    def close(self) -> None:
        """Ends a trace that an end of the run cut short."""
        if self._began is not None:
            self._began = self._steps = None
            jax.profiler.stop_trace()


def names(program: str) -> dict[str, str]:
    """JAX's path to each instruction of a program, such as "jit(step)/mlp/tanh".

    An instruction without one, as the compiler makes of reductions, has that of the
    first of its operands that has one.
    """
    found: dict[str, str] = {}
    for name, rest in _INSTRUCTION.findall(program):
        if named := _OP_NAME.search(rest):
            found[name] = named[1]
        else:
            operands = re.findall(r"%([\w.\-]+)", rest)
            inherited = next((found[o] for o in operands if o in found), None)
            if inherited is not None:
                found[name] = inherited
    return found
