"""Numbered batches, of which a run can skip some by number."""

from collections.abc import Collection

import numpy as np


def next_batch(
    batches, passed_over: Collection[int]
) -> tuple[int, dict[str, np.ndarray]]:
    """(number, batch) of the next batch that is not skipped.

    A batch's number is its position in the order given by the seed, from 0; a run that
    skips no batches trains on batch n at step n + 1.

    Args:
      batches: an iterator with `get_state`, whose state has a position.
      passed_over: numbers of the batches to skip.
    """
    while True:
        number = batches.get_state()["position"]
        batch = next(batches)
        if number not in passed_over:
            return number, batch
