"""Runs of several lengths that share a trunk: where the shorter ones branch off.

With a schedule that is constant before its decay, a run of S steps and a longer one are
the same until the shorter one's decay begins. So a size is trained once to its greatest
length, and each shorter run is a fork of it that adds its own decay (Hägele et al.
2024, arXiv:2405.18392).
"""

from collections.abc import Sequence

import numpy as np

from fmjax.errors import UserError
from fmjax.optim.schedules import Schedule

# Checkpoints of a trunk; with more, saving would take longer than what is saved.
_MOST_CHECKPOINTS = 64


def branch_steps(schedule: Schedule, lengths: Sequence[int]) -> tuple[int, list[int]]:
    """Where shorter runs leave the longest one.

    Args:
      schedule: of the learning rate, which reads the number of steps.
      lengths: of runs, increasing.

    Returns:
      The steps between the trunk's checkpoints, and for each length but the last the
      step of the checkpoint that it continues from.

    Raises:
      UserError: the rates of the shortest run differ from the first steps on, or the
        checkpoints would be too many.
    """
    *shorter, longest = lengths
    if not shorter:
        return longest, []
    trunk = np.asarray(schedule.build(longest)(np.arange(longest)))
    shared = []
    for length in shorter:
        own = np.asarray(schedule.build(length)(np.arange(length)))
        differs = np.flatnonzero(own != trunk[:length])
        shared.append(int(differs[0]) if differs.size else length)
    if shared[0] < 0.25 * shorter[0]:
        raise UserError(
            f"ladder.steps: with @{schedule.gin_name}(), the rates of {shorter[0]} "
            f"steps and of {longest} differ from step {shared[0]} on; expected "
            "@warmup_stable_decay() with warmup_steps as a number of steps, so that "
            "runs share a trunk."
        )
    # That of the checkpoints with which the least is trained again.
    every = max(
        range(shared[0], shared[0] // 2, -1),
        key=lambda every: sum(step - step % every for step in shared),
    )
    if longest > every * _MOST_CHECKPOINTS:
        raise UserError(
            f"ladder.steps: {shorter[0]} and {longest}; expected lengths of which the "
            f"longest is at most {_MOST_CHECKPOINTS} times the shortest."
        )
    return every, [step - step % every for step in shared]
