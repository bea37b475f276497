"""Objects of buckets as files: reads are ranges, and are tried again if they fail."""

import io
import os

from fmjax.storage import objects

# Bytes of the first read of an object from some place; of those that follow it, each
# is twice as large, up to the second number.
FIRST_BYTES, MOST_BYTES = 1 << 16, 1 << 22


class ObjectReader(io.RawIOBase):
    """An object of a bucket to read, from anywhere.

    Ranges are fetched as they are asked for, without a cache. Errors are those of
    `objects.with_retries`.
    """

    def __init__(self, path: os.PathLike):
        """Opens the object.

        Args:
          path: its address.
        """
        super().__init__()
        self._path = path
        self._object = objects.with_retries(path, lambda: objects.open_object(path))
        self._size = self._object.seek(0, os.SEEK_END)
        self._at = 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Moves to another place, without a request."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}
        self._at = max(0, base[whence] + offset)
        return self._at

    def tell(self) -> int:
        """Where the next read begins."""
        return self._at

    def readinto(self, buffer) -> int:
        """Fills a buffer, by one request, as far as the object goes."""
        size = min(len(buffer), max(self._size - self._at, 0))
        if not size:
            return 0

        def fetch() -> bytes:
            self._object.seek(self._at)
            return self._object.read(size)

        found = objects.with_retries(self._path, fetch)
        buffer[: len(found)] = found
        self._at += len(found)
        return len(found)

    def close(self) -> None:
        """Closes the object."""
        if not self.closed:
            self._object.close()
        super().close()


class ReadAhead(ObjectReader):
    """An object that is read from some place onwards, under an `io.BufferedReader`.

    How far is not known, so little is fetched at first, and more as reads follow each
    other.
    """

    def __init__(
        self, path: os.PathLike, stop: int | None = None, first: int = FIRST_BYTES
    ):
        """Opens the object.

        Args:
          path: its address.
          stop: where the part ends that is read, as if it were the end of the object;
            it is fetched as a whole, up to `MOST_BYTES` at a time. None if that is not
            known.
          first: bytes of the first read from some place.
        """
        super().__init__(path)
        self._stop, self._first, self._step, self._end = stop, first, first, -1

    def readinto(self, buffer) -> int:
        """Fills the beginning of a buffer."""
        follows = self._at == self._end
        self._step = min(2 * self._step, MOST_BYTES) if follows else self._first
        step = self._step
        if self._stop is not None:
            step = min(max(self._stop - self._at, 0), MOST_BYTES)
        found = super().readinto(memoryview(buffer)[:step])
        self._end = self._at
        return found
