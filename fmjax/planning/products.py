"""Matrix FLOPs: of products and convolutions in a compiled step.

Two a multiplication, as in the papers' counts; elementwise operations count nothing.
What the step computes again for rematerialization is in them.
"""

import math
import re

import numpy as np

from fmjax.planning.hlo_instructions import Array, Computation, Instruction
from fmjax.planning.hlo_module import Module

_CONVOLUTIONS = {
    # (input, filter, output): positions among the operands, then the results.
    "__cudnn$convForward": (0, 1, 2),
    "__cudnn$convBackwardInput": (2, 1, 0),
    "__cudnn$convBackwardFilter": (0, 2, 1),
}


def product_flops(
    module: Module, computation: Computation, instruction: Instruction
) -> float:
    """FLOPs of the products of one execution of an instruction, and those fused in it.

    Args:
      module: the compiled step.
      computation: that the instruction is in.
      instruction: one that is scheduled.
    """
    inner = sum(_flops(c, i) for c, i in module.within(instruction))
    return inner + _flops(computation, instruction)


def _flops(computation: Computation, i: Instruction) -> float:
    if i.opcode in ("dot", "ragged-dot"):
        return _dot_flops(computation, i)
    if i.opcode == "convolution":
        *arrays, output = *computation.operand_arrays(i), i.results[0]
        return _convolution_flops(i, *arrays, output)
    if i.custom_call_target.startswith("__cublas$"):
        dims = i.noted("lhs_contracting_dimensions") or []
        left = computation.operand_arrays(i)[0]
        return 2.0 * i.results[0].size * math.prod(left.dims[int(d)] for d in dims)
    if i.custom_call_target in _CONVOLUTIONS:
        arrays = *computation.operand_arrays(i)[:2], i.results[0]
        return _convolution_flops(
            i, *(arrays[n] for n in _CONVOLUTIONS[i.custom_call_target])
        )
    return 0.0


def _dot_flops(computation: Computation, i: Instruction) -> float:
    """2 × elements of the result × length of the sums."""
    left = computation.operand_arrays(i)[0]
    contracted = _dims(i, "lhs_contracting_dims")
    flops = 2.0 * i.results[0].size * math.prod(left.dims[d] for d in contracted)
    if set(_dims(i, "lhs_ragged_dims")) & set(contracted):
        flops /= i.results[0].dims[0]  # each group sums over its own part
    return flops


def _dims(i: Instruction, name: str) -> list[int]:
    return [int(d) for d in re.findall(r"\d+", i.attributes.get(name, ""))]


def _convolution_flops(
    i: Instruction, given: Array, kernel: Array, out: Array
) -> float:
    """2 × batch × features × features summed over × pairs of output and window places.

    A place in the padding, or between dilated elements, multiplies nothing. The TPUs'
    compiler writes most products as convolutions whose windows are mostly padding.
    """
    labels = re.split("_|->", i.attributes["dim_labels"])
    sizes = [dict(zip(names, a.dims)) for names, a in zip(labels, (given, kernel, out))]
    spatial = sorted(label for label in sizes[2] if label.isdigit())
    window = dict(
        part.split("=") for part in i.attributes.get("window", "{}")[1:-1].split()
    )
    pairs = 1
    for n, label in enumerate(spatial):

        def of(name, default, n=n):
            return window[name].split("x")[n] if name in window else default

        pairs *= _valid_pairs(
            sizes[0][label],
            sizes[2][label],
            int(of("size", "1")),
            stride=int(of("stride", "1")),
            padding=int(of("pad", "0_0").split("_")[0]),
            input_dilation=int(of("lhs_dilate", "1")),
            window_dilation=int(of("rhs_dilate", "1")),
        )
    return 2.0 * sizes[2]["b"] * sizes[2]["f"] * sizes[1]["i"] * pairs


def _valid_pairs(
    given: int,
    out: int,
    window: int,
    *,
    stride: int,
    padding: int,
    input_dilation: int,
    window_dilation: int,
) -> int:
    """Pairs of an output place and a window place that meet an element of the input.

    The pair (o, w) meets place stride · o + window_dilation · w - padding, which must
    lie in the dilated input and be a multiple of its dilation.
    """
    offset = window_dilation * np.arange(window) - padding
    first = np.maximum(0, -(offset // stride))
    last = np.minimum(out - 1, ((given - 1) * input_dilation - offset) // stride)
    # Multiples of the dilation are met by every `period`-th o, from `phase` on.
    common = math.gcd(stride, input_dilation)
    period = input_dilation // common
    phase = -(offset // common) * pow(stride // common, -1, period) % period
    met = (last - phase) // period - (first - 1 - phase) // period
    return int(np.where(offset % common == 0, np.maximum(met, 0), 0).sum())
