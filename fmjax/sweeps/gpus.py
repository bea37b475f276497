"""Which GPUs each of the runs at work has."""

import os

from fmjax.errors import UserError
from fmjax.sweeps.config import SweepConfig


def environment_of(slot: int, config: SweepConfig) -> dict[str, str]:
    """Variables of the run in a slot, of `sweep.at_once`: its GPUs."""
    count = config.gpus_per_run
    if count is None:
        return {}
    devices = visible_gpus(count * config.at_once)
    own = devices[slot * count : (slot + 1) * count]
    return {"CUDA_VISIBLE_DEVICES": ",".join(own)}


def visible_gpus(wanted: int) -> list[str]:
    """Names of the CUDA devices that this process sees, at least so many.

    Raises:
      UserError: it sees fewer.
    """
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return [str(device) for device in range(wanted)]
    devices = [device for device in listed.split(",") if device]
    if len(devices) < wanted:
        raise UserError(
            f"sweep.gpus_per_run: all runs at once take {wanted} GPUs, and "
            f"CUDA_VISIBLE_DEVICES = {listed!r}; expected at least as many."
        )
    return devices
