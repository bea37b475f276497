"""Devices to compile for: of a TPU slice, of GPUs, or virtual CPU devices instead."""

import dataclasses
import importlib.util
import os
import pathlib

import jax
from jax.experimental import topologies

from fmjax.errors import UserError
from fmjax.sharding.chips import Chip
from fmjax.sharding.slices import slice_shape
from fmjax.sharding.torus import wrapped

# Names of slices in libtpu, where they are not those of the chips.
_LIBTPU_NAMES = {"v5p": "v5", "v7x": "tpu7x"}
# A chip of these has two cores, which work as one device.
_MEGACORE = ("v4", "v5p")
GPU_TARGETS = pathlib.Path(__file__).parent / "gpu_targets"
_CUDA_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices that a step is compiled for.

    Attributes:
      chip: that the plan is for.
      chips: their number.
      shape: of a slice, in chips; empty for GPUs.
      devices: of JAX, in its order.
      compiler: "tpu" or "gpu", the chips' own; "cpu" where that is not installed, and
        the devices are virtual ones of the CPU.
      slices: of TPUs, which a slower network connects.
    """

    chip: Chip
    chips: int
    shape: tuple[int, ...]
    devices: tuple[jax.Device, ...]
    compiler: str
    slices: int = 1


def compiler_of(chip: Chip) -> str:
    """The platform whose compiler is installed here for a chip; "cpu" for none."""
    modules = ("libtpu",) if chip.platform == "tpu" else _CUDA_PLUGINS
    here = any(importlib.util.find_spec(module) for module in modules)
    return chip.platform if here else "cpu"


def make_topology(chip: Chip, chips: int, slices: int = 1) -> Topology:
    """The devices of slices of TPUs, or of hosts of GPUs.

    Args:
      chip: from `fmjax.sharding.slices.find_chip`.
      chips: how many, in all slices.
      slices: of TPUs.

    Raises:
      UserError: there are no such slices; or too few virtual CPU devices were made, see
        `fmjax.sharding.processes.use_virtual_devices`.
    """
    compiler = compiler_of(chip)
    if slices < 1 or chips % slices or (slices > 1 and not chip.torus_dimensions):
        raise UserError(
            f"--slices {slices}: expected slices of TPUs with the same number of "
            f"--chips {chips} each."
        )
    shape = slice_shape(chip, chips // slices)
    if compiler == "tpu":
        devices = _tpu_devices(chip, shape, slices)
    elif compiler == "gpu":
        devices = _gpu_devices(chip, chips)
    else:
        devices = jax.devices("cpu")
        needed = chips * chip.devices_per_chip
        if len(devices) < needed:
            raise UserError(
                f"--chips {chips}: {needed} virtual devices are needed, found "
                f"{len(devices)}."
            )
        devices = devices[:needed]
    return Topology(chip, chips, shape, tuple(devices), compiler, slices)


def _tpu_devices(chip: Chip, shape: tuple[int, ...], slices: int) -> list[jax.Device]:
    """Devices of slices; libtpu then neither looks for chips nor for a network."""
    for name, value in (
        ("TPU_SKIP_MDS_QUERY", "1"),
        ("TPU_ACCELERATOR_TYPE", "v5litepod-4"),
        ("TPU_WORKER_HOSTNAMES", "localhost"),
        ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
    ):
        os.environ.setdefault(name, value)
    wraps = (*wrapped(shape), False)[:3]
    sides = sorted(shape, reverse=True) if shape[0] == 1 else shape
    name = _LIBTPU_NAMES.get(chip.name, chip.name)
    found = topologies.get_topology_desc(
        f"{name}:{'x'.join(map(str, sides))}",
        platform="tpu",
        chip_config_name="megacore" if chip.name in _MEGACORE else "default",
        chips_per_host_bounds=(2, 2, 1),
        num_slices=slices,
        wrap=wraps,
    )
    return found.devices


def _gpu_devices(chip: Chip, chips: int) -> list[jax.Device]:
    """Devices of hosts of GPUs, by the target that XLA describes the GPU with."""
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    hosts = max(1, chips // chip.chips_per_host)
    target = (GPU_TARGETS / f"{chip.name}.textproto").read_text(encoding="utf-8")
    found = topologies.get_topology_desc(
        chip.name,
        platform="cuda",
        topology=f"1x{hosts}x{chips // hosts}",
        target_config=target,
    )
    return found.devices
