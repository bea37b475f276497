"""What a job runs on: slices of TPUs, nodes of GPUs, or processes on CPUs."""

import dataclasses
import re

from fmjax.errors import UserError
from fmjax.sharding.chips import Chip
from fmjax.sharding.slices import find_chip, slice_shape


@dataclasses.dataclass(frozen=True)
class Hardware:
    """The hosts of a job and their devices.

    Attributes:
      hosts: of all slices; each runs one process.
      devices_per_host: of JAX; None for those that JAX finds.
      chips_per_host: accelerators of a host; 0 for none, or an unknown number.
      chip: of the hosts; None if it is not known.
      slices: of TPUs; 1 for all else.
      shape: of a slice, in chips, as Google Cloud writes it; empty for all else.
    """

    hosts: int
    devices_per_host: int | None
    chips_per_host: int = 0
    chip: Chip | None = None
    slices: int = 1
    shape: tuple[int, ...] = ()

    @property
    def devices(self) -> int | None:
        """Devices of the job; None if it is not known."""
        each = self.devices_per_host
        return None if each is None else self.hosts * each

    @property
    def hosts_per_slice(self) -> int:
        """Hosts of one slice."""
        return self.hosts // self.slices

    def __str__(self):
        chips = self.hosts * self.chips_per_host
        kind = f" {self.chip.name}" if self.chip else ""
        what = f"{chips}{kind} chips, " if self.chip else ""
        each = f" × {self.devices_per_host} devices" if self.devices_per_host else ""
        slices = f", {self.slices} slices" if self.slices > 1 else ""
        return f"{what}{self.hosts} hosts{each}{slices}"


def of_chips(text: str, slices: int = 1) -> Hardware:
    """The hardware of "v5e-256" or "h100-64": a kind and a number of chips.

    Args:
      text: the number is of chips, in all slices, also where Google Cloud counts cores.
      slices: of TPUs.

    Raises:
      UserError: there is no such chip, or are no such slices or hosts.
    """
    parsed = re.fullmatch(r"(\w+)-(\d+)", text)
    if not parsed:
        raise UserError(f"--chips {text}: expected KIND-NUMBER, as in v5e-256.")
    chip, chips = find_chip(parsed[1], "--chips"), int(parsed[2])
    if slices < 1 or chips % slices or (slices > 1 and not chip.torus_dimensions):
        raise UserError(
            f"--slices {slices}: expected slices of TPUs with the same number of "
            f"--chips {text} each."
        )
    shape = slice_shape(chip, chips // slices)
    if shape and shape[0] == 1:  # Google Cloud writes 2x2x1.
        shape = tuple(reversed(shape))
    each = min(chip.chips_per_host, chips)
    devices = each * chip.devices_per_chip
    return Hardware(chips // each, devices, each, chip, slices, shape)


def of_nodes(nodes: int, gpus: int | None) -> Hardware:
    """The hardware of a number of nodes with so many GPUs each.

    Args:
      nodes: at least 1.
      gpus: of a node; 0 for none, None for those that JAX finds.

    Raises:
      UserError: a number is not positive.
    """
    if nodes < 1:
        raise UserError(f"--nodes {nodes}: expected 1 or more.")
    if gpus is not None and gpus < 0:
        raise UserError(f"--gpus {gpus}: expected the number of GPUs of a node.")
    return Hardware(nodes, 1 if gpus == 0 else gpus, gpus or 0)


def of_processes(processes: int, devices: int | None) -> Hardware:
    """Processes on CPUs of this machine.

    Args:
      processes: at least 1.
      devices: virtual devices of each; None for those that JAX finds.

    Raises:
      UserError: a number is not positive.
    """
    if processes < 1:
        raise UserError(f"--nodes {processes}: expected 1 or more.")
    if devices is not None and devices < 1:
        raise UserError(f"--devices {devices}: expected 1 or more virtual devices.")
    return Hardware(processes, devices)
