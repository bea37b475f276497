"""Grouped products of a compiled step: FLOPs of MegaBlocks' kernels."""

import re

from fmjax.models.layers.grouped_dot import EXPECTED_ROWS
from fmjax.planning.hlo_instructions import Computation, Instruction


def grouped_flops(computation: Computation, instruction: Instruction) -> float | None:
    """Matrix FLOPs of one execution of a grouped product; None of anything else.

    2 M K N for rows [M, K] and kernels [E, K, N], and for the gradient [E, K, N] of the
    kernels, made of two arrays of rows. The kernels go through the rows that there are;
    where the program notes how many are expected, see
    `fmjax.models.layers.grouped_dot`, these count instead of M.

    Args:
      computation: that the instruction is in.
      instruction: a custom-call.
    """
    if instruction.custom_call_target != "tpu_custom_call":
        return None
    named = f"{instruction.name} {instruction.op_name}"
    kind = re.search(r"\b(t?gmm)\b", named)
    if kind is None:
        return None
    matrix = next(a for a in computation.operand_arrays(instruction) if len(a.dims) > 1)
    (result,) = instruction.results
    *_, one, other = result.dims
    # Rows [M, K] become [M, N], or with rows [M, N] the gradient [E, K, N].
    rows = matrix.size // one if kind[1] == "tgmm" else one
    inner = one if kind[1] == "tgmm" else matrix.size // one
    expected = re.search(rf"{EXPECTED_ROWS}(\d+)", named)
    if expected:
        rows = min(rows, int(expected[1]))
    return 2.0 * rows * inner * other
