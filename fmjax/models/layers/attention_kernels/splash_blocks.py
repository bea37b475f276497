"""Block sizes of splash attention, by TPU chip and sequence length."""

from jax.experimental.pallas.ops.tpu.splash_attention import BlockSizes, QKVLayout

from fmjax.sharding.xla_options import SCOPED_VMEM, option_of_trace

# The largest block of queries and of keys that libtpu 0.0.42 compiles, with segments, a
# window, a soft-cap and heads of 256. Scores of a block are float32 [block, block] in
# VMEM, several times over in the backward pass: 2048 on v5e, and 1024 on v5p, exceed
# the default VMEM limit of XLA for a kernel. With larger blocks keys are read fewer
# times and the grid has fewer steps.
LARGEST = {"TPU v5 lite": 1024, "TPU v5": 512, "TPU v6 lite": 1024}
DEFAULT = 512  # for other chips
# The same where a program is compiled with at least so much VMEM for a kernel, in KiB.
WITH_MUCH_VMEM = {
    "TPU v5 lite": (98304, 2048),
    "TPU v5": (49152, 1024),
    "TPU v6 lite": (98304, 2048),
}
# Under a causal mask, n blocks per row compute (n + 1) / 2n of the scores where 1/2 is
# needed: from four blocks per row on at most 1/8 is wasted. Blocks smaller than this
# cost more.
_FOR_CAUSALITY = 512
# The fused backward kernel computes scores once for all gradients, instead of once in
# each of two kernels, but writes a partial gradient of the queries for each block of
# keys. Writing these takes a fourth of the time saved (at v5e's 819 GB/s and half of
# its 197 TFLOP/s). Their memory, this many times that of the queries, sets the limit.
MOST_PARTS = 8
# One block of keys leaves no partial gradients to be added up, but computes all scores
# under a causal mask. For 1024 keys in place of two blocks this is the shorter way
# (GPT-2 on 2 × 4 v5e: sums of 5 ms a step against 2 ms of the kernel, predicted).
_CAUSAL_IN_ONE = 1024


def reads_positions_last(head_dim: int) -> bool:
    """Whether queries, keys and values come as [H, K, T] instead of [H, T, K].

    The last axis is padded to 128 in a TPU's memory: heads of 64 would take twice as
    much as they need.
    """
    return head_dim < 128


def block_sizes(
    queries: int,
    keys: int,
    head_dim: int,
    device_kind: str,
    masked: bool,
    block: int | None = None,
) -> BlockSizes:
    """Block sizes for attention of `queries` to `keys`, both multiples of 128.

    Args:
      queries: T.
      keys: S.
      head_dim: width of a head.
      device_kind: of JAX.
      masked: whether the mask is causal or a window, so that blocks may be left out.
      block: the most queries and keys of a block; None for as many as suit the chip.
    """
    largest = LARGEST.get(device_kind, DEFAULT)
    vmem, larger = WITH_MUCH_VMEM.get(device_kind, (0, largest))
    if (option_of_trace(SCOPED_VMEM) or 0) >= vmem:
        largest = larger
    q, kv = (
        _block(length, block or min(largest, max(_FOR_CAUSALITY, length // 4)))
        for length in (queries, keys)
    )
    in_one = block or (min(largest, _CAUSAL_IN_ONE) if masked else largest)
    kv_dkv = keys if keys <= in_one else kv
    fused = keys // kv_dkv <= MOST_PARTS
    layout = QKVLayout.HEAD_DIM_MINOR
    if reads_positions_last(head_dim):
        layout = QKVLayout.SEQ_MINOR
    return BlockSizes(
        block_q=q,
        block_kv=kv,
        block_kv_compute=kv,
        block_q_dkv=q,
        block_kv_dkv=kv_dkv,
        block_kv_dkv_compute=kv_dkv,
        block_q_dq=None if fused else q,
        block_kv_dq=None if fused else kv,
        use_fused_bwd_kernel=fused,
        q_layout=layout,
        k_layout=layout,
        v_layout=layout,
    )


def _block(length: int, largest: int) -> int:
    """The largest multiple of 128 up to `largest` that divides the length."""
    return next(b for b in range(min(largest, length), 0, -128) if length % b == 0)
