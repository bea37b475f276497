"""Attention kernels of a compiled step: FLOPs of the blocks that they visit.

No compiler estimates how long these take: to it they are calls of foreign code. All
of them go through the scores in blocks and leave out blocks that the mask hides whole.
"""

import collections as counting
import re

from fmjax.models.layers.attention_kernels.splash import FIRST_KEY
from fmjax.models.layers.attention_kernels.triton_kernels import (
    FORWARD,
    INTO_KEYS,
    INTO_QUERIES,
)
from fmjax.planning.hlo_instructions import Array, Computation, Instruction
from fmjax.planning.hlo_module import Module

_FLOATS = ("bf16", "f16", "f32", "f8")
_CUDNN_BLOCK = 128
_TRITON = "__gpu$xla.gpu.triton"
# Widths of queries and of values in the products of each program of `triton_kernels`.
_TRITON_PRODUCTS = {FORWARD: (1, 1), INTO_QUERIES: (2, 1), INTO_KEYS: (2, 2)}
_TRITON_BLOCK = 64
# Other code that is called by name: its time is not known.
_FOREIGN = ("tpu_custom_call", "mosaic_gpu", _TRITON)


def is_kernel(instruction: Instruction) -> bool:
    """Whether an instruction calls a kernel that the compiler knows nothing of."""
    target = instruction.custom_call_target
    return target.startswith((*_FOREIGN, "__cudnn$fmha"))


def kernel_calls(module: Module) -> dict[str, float]:
    """Calls of each kernel in one step, by its name without a number."""
    calls = counting.Counter()
    for computation, instruction in module.scheduled():
        if is_kernel(instruction):
            calls[_name(instruction)] += computation.runs
    return dict(calls)


def _name(instruction: Instruction) -> str:
    """A kernel's name without a number."""
    if instruction.custom_call_target == _TRITON:
        # The compiler calls all of them pallas_call.
        *_, name, _ = ("", "", *instruction.op_name.split("/"))
        return name or instruction.name
    return re.sub(r"\.\d+$", "", instruction.name)


def attention_flops(computation: Computation, instruction: Instruction) -> float | None:
    """Matrix FLOPs of one execution of an attention kernel; None of any other.

    Splash attention (JAX's Pallas kernel for TPUs) and fmjax's for Triton are known by
    their names, cuDNN's by its target. With queries [T, K] and values [S, V] a head,
    the scores take 2 T S K FLOPs and the output 2 T S V; instead of T S, the elements
    of visited blocks count. The gradient takes five such products where one kernel
    makes all of it, and seven where two do, as both compute the scores and their
    gradients.

    Args:
      computation: that the instruction is in.
      instruction: a custom-call.
    """
    if instruction.custom_call_target.startswith("__cudnn$fmha"):
        return _cudnn_flops(computation, instruction)
    if instruction.custom_call_target == _TRITON:
        return _triton_flops(computation, instruction)
    named = f"{instruction.name} {instruction.op_name}"
    phase = re.search(r"splash_m[hq]a_(fwd|dkv|dq)", named)
    if instruction.custom_call_target != "tpu_custom_call" or phase is None:
        return None
    noted = re.search(rf"{FIRST_KEY}(\d+)", named)
    return _splash_flops(
        computation,
        instruction,
        phase[1],
        "_segmented" in named,
        int(noted[1]) if noted else 0,
    )


def visited_blocks(
    length: int,
    block: int,
    across: int,
    across_block: int,
    *,
    widest: int,
    causal: bool,
    first_key: int | None = None,
) -> int:
    """Blocks of the scores that attention visits.

    Args:
      length: of the sequence that the kernel takes block by block.
      block: size of these.
      across: length of the sequence that it goes through for each of them.
      across_block: size of its blocks.
      widest: blocks across that it visits at most: fewer than there are in a window.
      causal: whether blocks that the diagonal does not reach are left out.
      first_key: if it goes through the queries of each block of keys, the place of the
        first of these keys in its row; None if it goes through the keys of queries.
    """
    rows, columns = -(-length // block), -(-across // across_block)

    def reached(row: int) -> int:
        if not causal:
            return columns
        if first_key is None:
            return -(-(row + 1) * block // across_block)
        return max(0, columns - (first_key + row * block) // across_block)

    return sum(min(widest, columns, reached(row)) for row in range(rows))


def _splash_flops(
    computation: Computation,
    i: Instruction,
    phase: str,
    segmented: bool,
    first_key: int,
) -> float:
    arrays = computation.operand_arrays(i)
    first = next(n for n, a in enumerate(arrays) if a.dtype.startswith(_FLOATS))
    query, _, value = arrays[first : first + 3]
    (T, K), (S, V) = (_length_and_width(i, *a) for a in (("q", query), ("v", value)))
    # Before the queries: which block comes next and whether it is visited. After the
    # values: ids of segments, and the positions of queries if the mask is a function
    # of positions, as causal ones are.
    grid = next((a.dims[-2:] for a in arrays[:first] if len(a.dims) == 3), None)
    positions = [a for a in arrays[first + 3 :] if a.dtype == "s32" and len(a.dims) > 1]
    causal = len(positions) > 2 * segmented
    if grid is None:
        visited = float(T * S)
    else:
        rows, columns = grid
        block_q = _block(i, "q") or T // rows
        block_kv = _block(i, "kv") or S // columns
        sides = [(T, block_q), (S, block_kv)]
        widest = columns
        if phase == "dkv":  # goes through the queries of each block of keys
            sides, widest = sides[::-1], rows
        blocks = visited_blocks(
            *sides[0],
            *sides[1],
            widest=widest,
            causal=causal,
            first_key=first_key if phase == "dkv" else None,
        )
        visited = float(blocks * block_q * block_kv)
    if phase == "fwd":
        widths = K + V
    elif phase == "dq":
        widths = 2 * K + V
    else:  # the queries' gradients, if any, come apart for each block of keys
        fused = any(len(a.dims) > len(query.dims) for a in i.results)
        widths = (3 if fused else 2) * K + 2 * V
    return 2 * (query.size // (T * K)) * visited * widths


def _length_and_width(i: Instruction, name: str, array: Array) -> tuple[int, int]:
    """Sequence length and head width of an array, in the order the kernel notes."""
    length, width = array.dims[-2:]
    noted = re.search(rf'{name}_layout\\*": (\d)', i.text)
    return (width, length) if noted and noted[1] == "2" else (length, width)


def _block(i: Instruction, name: str) -> int | None:
    found = re.search(rf'block_{name}(?:_dq|_dkv)?\\*": (\d+)', i.text)
    return int(found[1]) if found else None


def _triton_flops(computation: Computation, i: Instruction) -> float | None:
    name = _name(i)
    program = next((p for p in _TRITON_PRODUCTS if name.startswith(p)), None)
    if program is None:
        return None
    # Two ranges of blocks come first.
    query, key = computation.operand_arrays(i)[2:4]
    (B, T, H, K), S = query.dims, key.dims[1]
    window = re.search(r"_window_(\d+)", name)
    share = _visited_share(
        T, S, _TRITON_BLOCK, "_causal" in name, int(window[1]) if window else 0
    )
    return 2.0 * B * H * T * S * share * K * sum(_TRITON_PRODUCTS[program])


def _visited_share(T: int, S: int, block: int, causal: bool, window: int) -> float:
    """Of T × S scores in square blocks; a window of 0 sets no limit."""
    blocks = visited_blocks(
        T,
        block,
        S,
        block,
        widest=-(-window // block) * (1 if causal else 2) + 1 if window else S,
        causal=causal,
    )
    return blocks / (-(-T // block) * -(-S // block))


def _cudnn_flops(computation: Computation, i: Instruction) -> float | None:
    query, _, value = computation.operand_arrays(i)[:3]
    scores = i.noted("intermediate_tensor_shape")
    if scores is None:
        return None
    B, H, T, S = (int(n) for n in scores["dimensions"])
    window = int(i.noted("sliding_window_length") or 0)
    causal = "CAUSAL" in (i.noted("mask_type") or "")
    share = _visited_share(T, S, _CUDNN_BLOCK, causal, window)
    K, V = query.dims[-1], value.dims[-1]
    widths = 3 * K + 2 * V if "Backward" in i.custom_call_target else K + V
    return 2.0 * B * H * T * S * share * widths
