"""TensorBoard's event files, written so that no file system can stop or stall a run.

tensorboardX's own SummaryWriter hands events to a thread, and waits for ever once that
has died of a full disk.
"""

import contextlib
import os
import pathlib
import sys
import time

import numpy as np

# Where torch is installed tensorboardX loads it, for the name of a type: four seconds
# of every start of a run.
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
    """Appends to a run's events.

    What cannot be written is left out, and another file begun FLUSH_SECONDS later: half
    a record would be the end of the one before.

    Args:
      run_dir: where the files are.
      start: TensorBoard is to forget what other files tell of later steps.
    """

    def __init__(self, run_dir: pathlib.Path, start: int):
        self._run_dir = run_dir
        self._file: EventsWriter | None = None
        self._act_at = 0.0
        begun = SessionLog(status=SessionLog.START)
        self._write(Event(session_log=begun, step=start + 1))

    def add_scalar(self, step: int, name: str, value: float) -> None:
        """A point of a curve."""
        self._add(step, summaries.scalar(name, value))

    def add_text(self, step: int, name: str, text: str) -> None:
        """A text."""
        self._add(step, summaries.text(name, text))

    def add_image(self, step: int, name: str, image: np.ndarray) -> None:
        """A picture, uint8 [H, W, 3]."""
        self._add(step, summaries.image(name, image, dataformats="HWC"))

    def flush(self) -> None:
        """Puts everything on disk."""
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
