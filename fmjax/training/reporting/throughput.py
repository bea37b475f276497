"""Model FLOPs utilization (MFU): a step's FLOP/s as a fraction of the chips' peak."""

import jax

from fmjax.sharding.chips import chip_of, peak_flops


def mfu(
    flops_per_second: float, device: jax.Device, num_devices: int = 1
) -> float | None:
    """Model FLOPs utilization (PaLM, Chowdhery et al. 2022, appendix B), 0 … 1.

    Args:
      flops_per_second: of the model by formula, without recomputation.
      device: one of those that compute them.
      num_devices: number of devices that compute them.

    Returns:
      The utilization; None if the peak of the device is unknown.
    """
    peak = peak_flops(device)
    return None if peak is None else flops_per_second / (peak * num_devices)


def describe_peak(device: jax.Device) -> str:
    """What the MFU of a device is relative to, in a line."""
    peak, chip = peak_flops(device), chip_of(device)
    if peak is None or chip is None:
        return f"MFU is not known: no peak of a {device.device_kind!r} is"
    return f"MFU is of {peak / 1e12:,.0f} TFLOP/s a device ({chip.source})"
