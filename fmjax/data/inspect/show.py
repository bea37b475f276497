"""What `fmjax data` prints: the caches of data, or a report of what is in it."""

import pathlib

from rich.console import Console

from fmjax.data.images.contact_sheet import write_contact_sheet
from fmjax.data.images.image_data import ImageData
from fmjax.data.inspect.images import inspect_images
from fmjax.data.inspect.text import inspect
from fmjax.data.text.text_data import Data
from fmjax.errors import UserError


def cache_folders(data: Data | ImageData) -> list[str]:
    """The folders of the caches of both splits, each once."""
    splits = ("train", "validation")
    return list(dict.fromkeys(str(c.folder) for s in splits for c in data.caches(s)))


def show(data: Data | ImageData, examples: int, picture: pathlib.Path | None) -> None:
    """Prints statistics and examples.

    Args:
      data: prepared.
      examples: how many to print.
      picture: where to write a sheet of augmented images; None for nowhere.

    Raises:
      UserError: a picture is asked for, and the data is text.
    """
    if not isinstance(data, ImageData):
        if picture is not None:
            raise UserError("--picture is for images; this data is text.")
        inspect(data, examples=examples).render(Console())
        return
    inspect_images(data, examples=examples).render(Console())
    if picture is not None:
        write_contact_sheet(data, picture)
        print(f"wrote {picture}")
