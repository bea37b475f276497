"""The mean loss and metrics of a split, summed exactly over all of its batches."""

import collections
from collections.abc import Callable, Iterable

import jax
import numpy as np

from fmjax.objectives.terms import Batch


def evaluate(
    eval_step: Callable,
    variables: dict,
    batches: Iterable[dict[str, np.ndarray]],
    place: Callable[[dict[str, np.ndarray]], Batch],
    unit: str,
) -> dict[str, float]:
    """Loss, terms and ratios over all batches; every target counts the same.

    Args:
      eval_step: from `fmjax.training.step.make_eval_step`.
      variables: {"params": …, other collections}.
      batches: this process's rows, as many batches in every process.
      place: local rows → global arrays.
      unit: of what the objective counts.

    Returns:
      "loss", each term's share of it, each ratio, and how many "tokens", or whatever
      the unit is.
    """
    outputs: list = []
    for batch in batches:
        placed = place(batch)
        # One batch at a time: with many in flight, the collectives of virtual devices
        # wait for threads that other batches hold, for ever.
        jax.block_until_ready(outputs[-1:])
        outputs.append(eval_step(variables, placed))
    # Sums of float32 batches in float64: the order of a long split must not matter.
    totals: list[dict] = [collections.defaultdict(lambda: np.zeros(2)) for _ in "tr"]
    targets = 0.0
    for *output, count in jax.device_get(outputs):
        targets += float(count)
        for total, sums in zip(totals, output):
            for name, pair in sums.items():
                total[name] += np.asarray(pair, np.float64)
    terms, ratios = totals
    result = {"loss": 0.0}
    for name, (value, weight) in [*terms.items(), *ratios.items()]:
        result[name] = float(value / weight) if weight else float("nan")
    result["loss"] = sum(result[name] for name in terms)
    result[unit] = targets
    return result
