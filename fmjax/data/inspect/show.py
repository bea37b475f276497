"""The output of `fmjax data`: the folders of caches, or a report on the data."""

import pathlib

from rich.console import Console

from fmjax.data.images.image_data import ImageData
from fmjax.data.inspect.contact_sheet import write_contact_sheet
from fmjax.data.inspect.conversations import inspect_conversations
from fmjax.data.inspect.images import inspect_images
from fmjax.data.inspect.labelled import inspect_labelled
from fmjax.data.inspect.text import inspect
from fmjax.data.inspect.text_groups import inspect_text_groups
from fmjax.data.text.text_data import Data
from fmjax.errors import UserError


def cache_folders(data: Data | ImageData) -> list[str]:
    """The folders of the caches of both splits, without duplicates."""
    splits = () if data.streaming else ("train", "validation")
    return list(dict.fromkeys(str(c.folder) for s in splits for c in data.caches(s)))


def check_picture(data: Data | ImageData) -> None:
    """Raises a UserError if no sheet of images can be drawn of the data."""
    if not isinstance(data, ImageData):
        raise UserError("--picture needs a config of images; this data is text.")
    if data.streaming:
        raise UserError(
            "--picture reads chosen images from a cache, but images.streaming = True; "
            "expected images.streaming=False."
        )


def show(data: Data | ImageData, examples: int, picture: pathlib.Path | None) -> None:
    """Prints statistics and examples.

    Args:
      data: the data, prepared.
      examples: number of examples to print.
      picture: file to which a sheet of augmented images is written, or None; see
        `check_picture`.
    """
    if not isinstance(data, ImageData):
        report = inspect_labelled if data.label_kind() is not None else inspect
        if data.train.is_chat():
            report = inspect_conversations
        if data.rows == "texts":
            report = inspect_text_groups
        report(data, examples=examples).render(Console())
        return
    inspect_images(data, examples=examples).render(Console())
    if picture is not None:
        write_contact_sheet(data, picture)
        print(f"wrote {picture}")
