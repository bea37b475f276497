"""Lanes of a TPU: kernels in Pallas take axes that are a multiple of them."""

LANES = 128


def whole_lanes(size: int) -> int:
    """The next multiple of `LANES`."""
    return -(-size // LANES) * LANES
