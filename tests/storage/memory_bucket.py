"""An object store in memory at s3://, in the place of s3fs."""

import contextlib
import threading

from etils.epath import backend, gpath
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry
from fsspec.spec import AbstractBufferedFile

from fmjax.storage import paths


class Object(AbstractBufferedFile):
    """An object that is read by ranges, with fsspec's caches, as those of s3fs are.

    Each reader has its own: several threads read an object at a time.
    """

    def __init__(self, fs, path, content, **options):
        self._content = content
        super().__init__(fs, path, "rb", size=len(content), **options)

    def _fetch_range(self, start, end):
        found = self._content[start:end]
        type(self.fs).fetched(self.path, len(found))
        return found


class MemoryBuckets(MemoryFileSystem):
    """Objects of s3:// in this process: no folders, and conditional writes."""

    protocol = "s3"
    cachable = False
    store: dict = {}  # noqa: RUF012
    pseudo_dirs: list = [""]  # noqa: RUF012
    lock = threading.Lock()
    # Called with an operation ("write", "delete", "read") and a path, before it.
    before = staticmethod(lambda operation, path: None)
    # Called with a path and a number of bytes, before each request for a range returns.
    fetched = staticmethod(lambda path, size: None)

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("s3://").strip("/")

    def mkdir(self, path, create_parents=True, **kwargs):
        """Nothing: a folder is there once it has an object."""

    def makedirs(self, path, exist_ok=False):
        """Nothing, as `mkdir`."""

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        """Writes an object; with the mode "create" only if there is none."""
        type(self).before("write", path)
        with self.lock:
            if mode == "create" and self._strip_protocol(path) in self.store:
                raise FileExistsError(path)
            super().pipe_file(path, value, **kwargs)

    def cp_file(self, path1, path2, **kwargs):
        """Copies an object."""
        type(self).before("write", path2)
        content = self.store[self._strip_protocol(path1)].getvalue()
        super().pipe_file(path2, content)

    def put_file(self, lpath, rpath, **kwargs):
        """Uploads a file."""
        with open(lpath, "rb") as file:
            self.pipe_file(rpath, file.read())

    def rm(self, path, recursive=False, maxdepth=None):
        """Deletes an object, or all below it."""
        root = self._strip_protocol(path)
        below = [name for name in self.store if name.startswith(f"{root}/")]
        found = ([root] if root in self.store else []) + below * recursive
        if not found:
            raise FileNotFoundError(path)
        for name in sorted(found):
            type(self).before("delete", name)
            del self.store[name]

    def _open(self, path, mode="rb", **kwargs):
        if mode != "rb":
            return super()._open(path, mode=mode, **kwargs)
        type(self).before("read", path)
        with self.lock:
            found = self.store.get(self._strip_protocol(path))
        if found is None:
            raise FileNotFoundError(path)
        names = ("block_size", "cache_type", "cache_options")
        options = {name: kwargs[name] for name in names if name in kwargs}
        return Object(self, path, found.getvalue(), **options)


@contextlib.contextmanager
def memory_buckets(monkeypatch):
    """Yields the store's class, empty, while s3:// leads to it."""

    def forget():
        backend.fsspec_backend._get_filesystem.cache_clear()
        gpath._is_tf_installed.cache_clear()

    monkeypatch.setenv("EPATH_USE_TF", "")  # restored afterwards
    monkeypatch.setattr(paths, "_is_installed", lambda package: True)
    monkeypatch.setattr(MemoryBuckets, "store", {})
    monkeypatch.setattr(MemoryBuckets, "pseudo_dirs", [""])
    monkeypatch.setattr(MemoryBuckets, "before", staticmethod(lambda *operation: None))
    monkeypatch.setattr(MemoryBuckets, "fetched", staticmethod(lambda path, size: None))
    monkeypatch.setitem(_registry, "s3", MemoryBuckets)
    forget()
    try:
        yield MemoryBuckets
    finally:
        monkeypatch.undo()
        forget()
