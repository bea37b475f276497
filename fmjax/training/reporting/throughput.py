"""Model FLOPs utilization (MFU): a step's FLOP/s as a fraction of the chip's peak."""

import jax

# Dense bfloat16 peak in FLOP/s of one JAX device, from the vendors' data sheets
# (NVIDIA: without sparsity). Keys are substrings of `device_kind`, tried in order.
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
    """Peak FLOP/s of a device; None if unknown (CPUs, newer chips).

    Args:
      device: None for the first device.
    """
    kind = (device or jax.devices()[0]).device_kind
    for name, peak in PEAK_FLOPS:
        if name in kind:
            return peak
    return None


def mfu(flops_per_second: float, num_devices: int) -> float | None:
    """Model FLOPs utilization (PaLM, Chowdhery et al. 2022, appendix B), 0 … 1.

    Args:
      flops_per_second: of the model by formula, without recomputation.
      num_devices: number of devices that compute them.

    Returns:
      The utilization; None if the peak of the device is unknown.
    """
    peak = peak_flops()
    return None if peak is None else flops_per_second / (peak * num_devices)
