"""The gradient noise scale: the batch size beyond which more rows help less.

McCandlish et al. 2018, "An Empirical Model of Large-Batch Training"
(arXiv:1812.06162), equation 2.9 and appendix A.1: B_simple = tr(Σ) / |G|², where G is
the gradient of the expected loss and Σ the covariance of the gradient of one target. Of
a mean over b targets, the expected squared norm is |G|² + tr(Σ) / b; a microbatch and
the whole batch are two sizes, which give both unknowns. Each is averaged over steps
before they are divided, because the mean of ratios is biased.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from fmjax.errors import UserError
from fmjax.objectives.objective import EmbeddingObjective, Objective
from fmjax.training.train_config import TrainConfig

Sums = dict[str, Float[Array, ""]]


def check_noise_scale(run: TrainConfig, objective: Objective) -> None:
    """Raises a UserError if train.noise_scale cannot be estimated in a run."""
    if run.noise_scale is None:
        return
    if run.microbatches < 2:
        raise UserError(
            f"train.noise_scale = {run.noise_scale} compares the gradients of "
            f"microbatches, found train.microbatches = {run.microbatches}; expected 2 "
            "or more, or train.noise_scale = None."
        )
    if isinstance(objective, EmbeddingObjective):
        raise UserError(
            f"train.noise_scale = {run.noise_scale}: the loss of "
            f"@{objective.gin_name}() compares the rows of a batch with each other, so "
            "that it is no mean over them; expected None."
        )


def sums_of_microbatch(grads: Any, weight: Float[Array, ""]) -> Sums:
    """What is added up over microbatches.

    Args:
      grads: the microbatch's part of the gradient of the whole batch.
      weight: of its targets; a microbatch of padding counts for nothing.
    """
    counts = weight > 0
    square = jnp.square(optax.global_norm(grads))
    return {
        "squares": jnp.where(counts, square / jnp.where(counts, weight, 1.0), 0.0),
        "microbatches": counts.astype(jnp.float32),
    }


def above_critical_batch(
    run: TrainConfig, values: Mapping[str, float], unit: str
) -> str | None:
    """What to warn of where train.lr_scaling follows a batch above the critical one.

    Args:
      run: of which the learning rate may follow the batch.
      values: metrics of a step, with the noise scale if it is known.
      unit: of the objective's targets, which both are counted in.
    """
    critical, batch = values.get("noise_scale", math.nan), values[unit]
    if run.lr_scaling is None or not batch > critical:
        return None
    return (
        f"train.lr_scaling = {run.lr_scaling!r}: the batch of {batch:,.0f} {unit} is "
        f"above the critical one, measured as {critical:,.0f}; there a larger batch "
        "does not allow a larger learning rate"
    )


class NoiseScale:
    """Averages of a run's estimates of tr(Σ) and |G|².

    A microbatch of w of all W targets, whose part of the gradient is g, has the mean
    gradient g W / w. Weighted by w / W, its squared norm |g|² W / w has the expectation
    (w |G|² + tr(Σ)) / W, and the sum of M microbatches |G|² + M tr(Σ) / W, however
    targets are distributed among them. That of the whole gradient is |G|² + tr(Σ) / W.

    Args:
      steps: that the exponential averages run over: they decay by 1 - 1 / steps.
      saved: `state` of an earlier start; None to begin.

    Attributes:
      state: of the averages, for a checkpoint: JSON.
    """

    def __init__(self, steps: int, saved: Mapping[str, float] | None = None):
        self._decay = 1 - 1 / steps
        self.state = dict(saved or {"variance": 0.0, "square": 0.0, "weight": 0.0})

    def add(
        self, sums: Mapping[str, np.ndarray], grad_norm: float, weight: float
    ) -> None:
        """Adds a step; not one without two microbatches that have targets.

        Nor one that is not finite.

        Args:
          sums: those of `sums_of_microbatch` over the microbatches.
          grad_norm: of the whole gradient.
          weight: W, of the targets of the whole batch.
        """
        count = float(sums["microbatches"])
        small, whole = float(sums["squares"]) * weight, float(grad_norm) ** 2
        if count < 2 or not math.isfinite(small + whole):
            return
        found = {
            "variance": (small - whole) * weight / (count - 1),
            "square": (count * whole - small) / (count - 1),
            "weight": 1.0,
        }
        for name, value in found.items():
            before = self.state[name]
            self.state[name] = self._decay * before + (1 - self._decay) * value

    def figures(self) -> dict[str, float]:
        """Metrics by name; NaN where there is no estimate.

        Returns:
          "noise_scale", in targets, with its "gradient_variance", tr(Σ), and
          "gradient_square", |G|². Either may be negative, being an estimate: then there
          is no noise scale.
        """
        weight = self.state["weight"] or math.nan
        variance, square = (self.state[n] / weight for n in ("variance", "square"))
        scale = variance / square if variance > 0 and square > 0 else math.nan
        return {
            "noise_scale": scale,
            "gradient_variance": variance,
            "gradient_square": square,
        }
