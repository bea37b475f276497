"""TensorBoard event files, written so that a full disk does not stop or stall a run.

tensorboardX's own SummaryWriter passes events to a thread; once a full disk has ended
that thread, the writer waits for it without end.
"""

import contextlib
import os
import pathlib
import sys
import time

import numpy as np

# tensorboardX imports torch if it is installed, to name one of its types. That takes
# four seconds at every start of a run, so torch is hidden from it.
_hidden = "torch" not in sys.modules
if _hidden:
    sys.modules["torch"] = None
try:
    from tensorboardX import summary as summaries
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.proto.summary_pb2 import Summary
finally:
    if _hidden:
        del sys.modules["torch"]

FLUSH_SECONDS = 30.0


class TensorBoard:
    """Writes a run's TensorBoard events.

    Events that cannot be written are dropped, and a new file is started FLUSH_SECONDS
    later, because TensorBoard reads a file only up to an incomplete record.

    Args:
      run_dir: where the files are.
      start: the step that the run resumes from; TensorBoard drops later steps of
        earlier files.
    """

    def __init__(self, run_dir: pathlib.Path, start: int):
        self._run_dir = run_dir
        self._file: EventsWriter | None = None
        self._act_at = 0.0
        begun = SessionLog(status=SessionLog.START)
        self._write(Event(session_log=begun, step=start + 1))

    def add_scalar(self, step: int, name: str, value: float) -> None:
        """Adds a scalar."""
        self._add(step, summaries.scalar(name, value))

    def add_text(self, step: int, name: str, text: str) -> None:
        """Adds a text."""
        self._add(step, summaries.text(name, text))

    def add_image(self, step: int, name: str, image: np.ndarray) -> None:
        """Adds an image, uint8 [H, W, 3]."""
        self._add(step, summaries.image(name, image, dataformats="HWC"))

    def flush(self) -> None:
        """Writes all events to disk."""
        if self._file is None:
            return
        try:
            self._file.flush()
        except OSError:
            self._give_up()

    def close(self) -> None:
        """Flushes, and closes the file."""
        self.flush()
        if self._file is not None:
            self._file.close()

    def _add(self, step: int, summary: Summary) -> None:
        self._write(Event(summary=summary, step=step))

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        due = time.monotonic() >= self._act_at
        try:
            if self._file is None:
                if not due:
                    return
                prefix = os.path.join(self._run_dir, "events")
                self._file = EventsWriter(prefix, f".{time.time_ns()}")
            self._file.write_event(event)
        except OSError:
            self._give_up()
        if due:
            self._act_at = time.monotonic() + FLUSH_SECONDS
            self.flush()

    def _give_up(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
        self._file = None
