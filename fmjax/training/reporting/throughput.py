"""Model FLOPs utilization: the share of a chip's peak that a step makes use of."""

import jax

# Dense bfloat16 peak of one device as JAX counts devices, FLOP/s, from the makers' data
# sheets (NVIDIA: without sparsity). Substrings of `device_kind`, tried in order.
PEAK_FLOPS = (
    ("TPU v4", 275e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5e", 197e12),
    ("TPU v5p", 459e12),
    ("TPU v5", 459e12),
    ("TPU v6 lite", 918e12),
    ("TPU v6e", 918e12),
    ("TPU7x", 2307e12 / 2),
    ("A100", 312e12),
    ("H100 PCIe", 756e12),
    ("H100", 989e12),
    ("H200", 989e12),
    ("B200", 2250e12),
)


def peak_flops(device: jax.Device | None = None) -> float | None:
    """The device's peak in FLOP/s, None where it is unknown (CPUs, newer chips)."""
    kind = (device or jax.devices()[0]).device_kind
    for name, peak in PEAK_FLOPS:
        if name in kind:
            return peak
    return None


def mfu(flops_per_second: float, num_devices: int) -> float | None:
    """Model FLOPs utilization (PaLM, Chowdhery et al. 2022, appendix B), 0 … 1.

    Args:
      flops_per_second: of the model by formula; what is recomputed does not count.
      num_devices: that share the work.
    """
    peak = peak_flops()
    return None if peak is None else flops_per_second / (peak * num_devices)
