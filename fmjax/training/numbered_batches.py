"""Numbered batches, of which a run can skip some by number, and their state."""

import json
from collections.abc import Collection

import jax
import numpy as np
from jax.experimental import multihost_utils

from fmjax.data.runtime.batch_source import DividedBatches


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


def whole_state(batches) -> dict:
    """The state of training batches, of all processes; every process must call it.

    Args:
      batches: an iterator with `get_state`, maybe of `DividedBatches`.
    """
    state = batches.get_state()
    if jax.process_count() == 1 or not isinstance(batches, DividedBatches):
        return state
    content = np.frombuffer(json.dumps(state).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(content.size, np.int32))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: content.size] = content
    rows = multihost_utils.process_allgather(padded)
    states = [json.loads(bytes(row[:size])) for row, size in zip(rows, sizes.tolist())]
    return batches.merge_states(states)
