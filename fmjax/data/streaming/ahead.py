"""Running a generator ahead in a thread."""

import queue
import threading
from collections.abc import Generator


class Ahead:
    """Runs a generator in a thread, up to `size` items ahead."""

    def __init__(self, items: Generator, size: int):
        """Starts the thread.

        Args:
          items: the generator, which the thread closes at its end.
          size: number of items that wait to be taken.
        """
        self._items = items
        self._queue: queue.Queue = queue.Queue(max(size, 1))
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="stream")
        self._thread.start()

    def get(self):
        """The next item; raises what the generator raised."""
        item, error = self._queue.get()
        if error is not None:
            raise error
        return item

    def close(self) -> None:
        """Ends the thread."""
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            for item in self._items:
                if not self._put((item, None)):
                    return
        except BaseException as error:
            self._put((None, error))
        finally:
            self._items.close()

    def _put(self, item) -> bool:
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False
