"""A picture of augmented examples, to look at before a run."""

import pathlib

import numpy as np
from PIL import Image, ImageDraw

from fmjax.data.images.image_data import ImageData
from fmjax.data.inspect.images import describe
from fmjax.errors import UserError

_LEAST = 64  # Pixels of a tile's side.
_GAP = 4
_TEXT, _FONT = 16, 12  # The height of a line of text, and of its letters.


def write_contact_sheet(
    data: ImageData, file: pathlib.Path, *, images: int = 8, readings: int = 7
) -> None:
    """Writes a picture: a line an image, left without and then with augmentation.

    Args:
      data: prepared.
      file: to write; its ending says the format.
      images: how many, spread over the training split.
      readings: of each image.

    Raises:
      UserError: the file cannot be written.
    """
    plain = data.plain()
    as_is, augmented = plain.records("train"), data.records("train")
    lines = []
    for number in np.linspace(0, len(as_is) - 1, images).astype(int).tolist():
        first = as_is.reading(number, seed=0)
        tiles = [first["images"]]
        for seed in range(readings if data.augment else 0):
            row = augmented.reading(number, seed)
            tiles += [row["images"]] if "images" in row else list(row["views"])
        shown = [data.preprocessing.shown(tile) for tile in tiles]
        lines.append((describe(plain, first), shown))
    try:
        draw_sheet(lines).save(file)
    except (OSError, ValueError) as error:
        raise UserError(f"Cannot write the picture {file}: {error}.") from error


def draw_sheet(lines: list[tuple[str, list[np.ndarray]]]) -> Image.Image:
    """Each line's text above its tiles, uint8 [S, S, 3], small ones enlarged."""
    size = len(lines[0][1][0])
    scale = -(-_LEAST // size)
    side = size * scale
    height = side + _TEXT + _GAP
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    width = max(
        max(len(tiles) * (side + _GAP), measure.textlength(text, font_size=_FONT))
        for text, tiles in lines
    )
    sheet = Image.new("RGB", (int(width) + 2 * _GAP, len(lines) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (text, tiles) in enumerate(lines):
        top = number * height
        draw.text((_GAP, top), text, fill="black", font_size=_FONT)
        for column, tile in enumerate(tiles):
            large = Image.fromarray(tile.repeat(scale, 0).repeat(scale, 1))
            sheet.paste(large, (column * (side + _GAP) + _GAP, top + _TEXT))
    return sheet
