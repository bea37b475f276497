"""Slices of TPUs and hosts of GPUs that there are."""

from fmjax.errors import UserError
from fmjax.sharding.chips import CHIPS, Chip


def find_chip(name: str, option: str = "--chip") -> Chip:
    """The chip of that name.

    Args:
      name: of the chip.
      option: that it was given with, for errors.

    Raises:
      UserError: there is none.
    """
    if name not in CHIPS:
        raise UserError(f"{option} {name}: expected one of {', '.join(CHIPS)}.")
    return CHIPS[name]


def slice_shape(chip: Chip, chips: int) -> tuple[int, ...]:
    """Sides of a slice of that many chips, the smallest first; () for GPUs.

    Slices are as near to a square or a cube as powers of two allow, as Cloud TPU offers
    them.

    Raises:
      UserError: there is no such slice, or part of a host is asked for.
    """
    sides = chip.torus_dimensions
    if not sides:
        host = chip.chips_per_host
        if chips < 1 or (chips > host and chips % host):
            raise UserError(
                f"--chips {chips}: expected whole hosts of {host} {chip.name}, or up "
                f"to {host} in one."
            )
        return ()
    largest = 256 if sides == 2 else 4096
    if chips < 4 or chips & (chips - 1) or chips > largest:
        raise UserError(
            f"--chips {chips}: a slice of {chip.name} has 4, 8, 16, … or {largest} "
            "chips."
        )
    exponent = chips.bit_length() - 1
    shape = [2 ** (exponent // sides)] * sides
    for place in range(exponent % sides):
        shape[-1 - place] *= 2
    return tuple(shape)
