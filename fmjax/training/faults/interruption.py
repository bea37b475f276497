"""Preemption and interruption: SIGTERM from a scheduler, SIGINT from Ctrl-C."""

import signal

import jax
from jax.experimental import multihost_utils


class Interruption:
    """Handles SIGTERM and SIGINT; all processes of a run stop at the same step.

    In a run of several processes JAX's preemption service handles SIGTERM, and chooses
    a step that no process has reached yet. A second SIGINT raises KeyboardInterrupt.
    """

    def __init__(self):
        self._asked = False
        self._previous = {}

    def __enter__(self):
        signals = [signal.SIGTERM, signal.SIGINT] if jax.process_count() == 1 else []
        for number in signals:
            try:
                self._previous[number] = signal.signal(number, self._note)
            except ValueError:  # not the main thread, as in some notebooks
                break
        return self

    def __exit__(self, *exception):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def reached(self, step: int) -> bool:
        """Whether to stop after `step`; every process must ask at every step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked

    def _note(self, number, frame):
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = True
