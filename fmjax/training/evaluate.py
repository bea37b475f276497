"""Evaluation: mean loss and metrics of a split, over all of its batches."""

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
    """Loss, terms and ratios over all batches, with equal weight for every target.

    Args:
      eval_step: from `fmjax.training.step.make_eval_step`.
      variables: {"params": …, other collections}.
      batches: this process's rows; every process must have the same number of batches.
      place: local rows → global arrays.
      unit: of the objective, such as "tokens".

    Returns:
      "loss"; each term's part of it, by the term's name; each ratio; and, under the
      name of the unit, the number of targets.
    """
    outputs: list = []
    for batch in batches:
        placed = place(batch)
        # One batch at a time: with several in flight, collectives of virtual devices
        # can deadlock, each waiting for threads that other batches hold.
        jax.block_until_ready(outputs[-1:])
        outputs.append(eval_step(variables, placed))
    # Batch sums are float32, added in float64 so that the order of the batches of a
    # long split makes no difference.
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
