"""Preemption: SIGTERM from a scheduler, Ctrl-C from a person."""

import signal

import jax
from jax.experimental import multihost_utils


class Interruption:
    """Notices SIGTERM and SIGINT; all processes of a run agree on the step to stop at.

    In a run of several processes JAX's preemption service listens for SIGTERM, and
    names a step that every process has yet to reach. A second SIGINT ends at once.
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
