"""Lists of the images of folders, with the bytes of each."""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import Any

from fmjax.data.sources.captions_file import ImageEntry
from fmjax.data.sources.find_files import entries_below, files_below

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm")
# What was listed within the outermost `listed_once`; None outside of it.
_listed = contextvars.ContextVar("listed", default=None)


@contextlib.contextmanager
def listed_once() -> Iterator[None]:
    """Context manager: each folder of images is listed, and its files asked, once.

    On a network file system, to ask a million files takes minutes.
    """
    before = _listed.set({} if _listed.get() is None else _listed.get())
    try:
        yield
    finally:
        _listed.reset(before)


def once(make: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator of functions of hashable values: called once in `listed_once`."""

    @functools.wraps(make)
    def remembered(*values: Hashable):
        known = _listed.get()
        if known is None:
            return make(*values)
        key = (make, *values)
        if key not in known:
            known[key] = make(*values)
        return known[key]

    return remembered


@once
def list_images(root: Path, without: Path | None) -> tuple[ImageEntry, ...]:
    """The images below a folder, in the order of their names relative to it.

    Args:
      root: the folder.
      without: a folder to exclude, by any path; or None.
    """
    found = []
    for file, entry in entries_below(root, without):
        if is_image(file.name):
            size = None
            with contextlib.suppress(OSError):  # It counts as corrupt when it is read.
                size = entry.stat().st_size
            found.append(ImageEntry(file.relative_to(root).as_posix(), size=size))
    return tuple(sorted(found, key=lambda entry: entry.name))


def has_images(folder: Path, without: Path | None) -> bool:
    """Whether there is an image below a folder, but for those below `without`."""
    return any(is_image(file.name) for file in files_below(folder, without))


def is_image(name: str) -> bool:
    """Whether a file of this name is an image."""
    return name.lower().endswith(ENDINGS)
