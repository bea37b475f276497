"""Model FLOPs utilization (MFU): a step's FLOP/s as a fraction of the chips' peak."""

import jax

from fmjax.objectives.objective import Objective
from fmjax.objectives.terms import Batch, RowShapes
from fmjax.sharding.chips import peak_and_source, peak_flops
from fmjax.training.reporting.step_flops import StepFlops
from fmjax.training.state import StatePlan


class Utilization:
    """MFU of a run's steps by their time, in both conventions.

    Args:
      objective: of the run.
      plan: of its state.
      rows: the shape of each array of a row.
      batch: shapes of a global batch.
      mesh: of the run.
    """

    def __init__(
        self,
        objective: Objective,
        plan: StatePlan,
        rows: RowShapes,
        batch: Batch,
        mesh: jax.sharding.Mesh,
    ):
        self._freezing, self._batch, self._mesh = plan.freezing, batch, mesh
        size = next(iter(batch.values())).shape[0]
        self._flops = {
            name: StepFlops(objective, plan, rows, size, causal=causal)
            for name, causal in (("mfu", False), ("causal_mfu", True))
        }

    def __call__(self, seconds: float, step: int) -> dict[str, float | None]:
        """ "mfu", "causal_mfu" by visible keys alone, and "flops" of a step.

        MFU is None where the devices' peak is unknown.

        Args:
          seconds: of a step.
          step: which one, counting from 1.
        """
        device, phase = self._mesh.devices.flat[0], self._freezing.phase(step - 1)
        flops = {name: of(phase, self._batch) for name, of in self._flops.items()}
        size = self._mesh.size
        shares = {name: mfu(n / seconds, device, size) for name, n in flops.items()}
        return shares | {"flops": flops["mfu"]}


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
    known = peak_and_source(device)
    if known is None:
        return f"MFU is not known: no peak of a {device.device_kind!r} is"
    peak, source = known
    return f"MFU is of {peak / 1e12:,.0f} TFLOP/s a device ({source})"
