"""The metrics of a step as numbers by name, with averages over the steps before it."""

from collections.abc import Mapping
from typing import Any

from fmjax.training.noise_scale import NoiseScale
from fmjax.training.norms import Norms


class StepFigures:
    """Turns the metrics of `make_train_step` into numbers.

    Args:
      unit: of the objective, such as "tokens".
      norms: as the step measures them; None if it does not.
      noise_scale: averages to keep; None for none.
    """

    def __init__(self, unit: str, norms: Norms | None, noise_scale: NoiseScale | None):
        self._unit, self._norms, self._noise_scale = unit, norms, noise_scale

    @property
    def saved(self) -> dict[str, Any]:
        """What a resumed run needs for the same averages, for a checkpoint: JSON."""
        if self._noise_scale is None:
            return {}
        return {"noise_scale": dict(self._noise_scale.state)}

    def add(self, metrics: Mapping[str, Any]) -> None:
        """Adds a step to the averages, unless it was a bad one; called for each."""
        if self._noise_scale is not None and not metrics.get("bad"):
            sums, weight = metrics["noise_scale"], float(metrics[self._unit])
            self._noise_scale.add(sums, float(metrics["grad_norm"]), weight)

    def numbers(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        """The metrics of the last step that was added, and the averages."""
        trees = ("norms", "noise_scale")
        found = {name: float(x) for name, x in metrics.items() if name not in trees}
        if self._norms is not None:
            found |= self._norms.figures(metrics["norms"])
        if self._noise_scale is not None:
            found |= self._noise_scale.figures()
        return found
