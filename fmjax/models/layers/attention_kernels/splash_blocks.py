"""Block sizes of TPUs' splash attention, by chip and length."""

from jax.experimental.pallas.ops.tpu.splash_attention import BlockSizes

# The largest block of queries and of keys. A larger block reads keys fewer times from
# HBM and has fewer steps of the grid; scores of a block are float32 [block, block] in
# VMEM, several times over in the backward pass, of which XLA grants a kernel 16 MiB on
# chips up to v5 and 32 MiB on v6e by default.
LARGEST = {"TPU v4": 512, "TPU v5 lite": 512, "TPU v5": 512, "TPU v6 lite": 1024}
DEFAULT = 512  # of chips that are not listed
# The fused backward kernel computes scores once for all gradients, where two kernels do
# so twice, but writes a part of the queries' gradient for each block of keys, which are
# added up after it: it wins while these are few.
MOST_PARTS = 4


def block_sizes(queries: int, keys: int, device_kind: str) -> BlockSizes:
    """Block sizes for attention of `queries` to `keys`, both multiples of 128."""
    largest = LARGEST.get(device_kind, DEFAULT)
    q, kv = _block(queries, largest), _block(keys, largest)
    fused = keys // kv <= MOST_PARTS
    return BlockSizes(
        block_q=q,
        block_kv=kv,
        block_kv_compute=kv,
        block_q_dkv=q,
        block_kv_dkv=kv,
        block_kv_dkv_compute=kv,
        block_q_dq=None if fused else q,
        block_kv_dq=None if fused else kv,
        use_fused_bwd_kernel=fused,
    )


def _block(length: int, largest: int) -> int:
    """The largest multiple of 128 up to `largest` that divides the length."""
    return next(b for b in range(largest, 0, -128) if length % b == 0)
