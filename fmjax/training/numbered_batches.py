"""Batches by their numbers, which a run can be told to leave out."""

from collections.abc import Collection

import numpy as np


def next_batch(
    batches, passed_over: Collection[int]
) -> tuple[int, dict[str, np.ndarray]]:
    """(number, batch): the next one that is not passed over.

    A batch's number is its position in the order that the seed gives; a run that passes
    none over takes batch n at step n + 1.

    Args:
      batches: an iterator with `get_state`, whose state has a position.
      passed_over: numbers of the batches to leave out.
    """
    while True:
        number = batches.get_state()["position"]
        batch = next(batches)
        if number not in passed_over:
            return number, batch
