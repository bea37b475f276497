"""Contact sheet: a picture of augmented examples, to check before a run."""

import pathlib

import numpy as np
from PIL import Image, ImageDraw

from fmjax.data.images.image_data import ImageData
from fmjax.data.inspect.images import describe
from fmjax.errors import UserError

# All in pixels.
_MIN_TILE = 64
_GAP = 4
_TEXT_HEIGHT, _FONT_SIZE = 16, 12


def write_contact_sheet(
    data: ImageData, file: pathlib.Path, *, images: int = 8, readings: int = 7
) -> None:
    """Writes a picture with a line for each image: first plain, then augmented.

    Args:
      data: the data, prepared.
      file: the file to write; its suffix selects the format.
      images: number of images, evenly spaced in the training split.
      readings: number of augmented versions of each image.

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
        raise UserError(f"--picture {file} cannot be written: {error}.") from error


def draw_sheet(lines: list[tuple[str, list[np.ndarray]]]) -> Image.Image:
    """Draws lines of tiles with a text above each line; small tiles are enlarged.

    Args:
      lines: (text, tiles) pairs; tiles are uint8 [S, S, 3].
    """
    size = len(lines[0][1][0])
    scale = -(-_MIN_TILE // size)
    side = size * scale
    height = side + _TEXT_HEIGHT + _GAP
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    width = max(
        max(len(tiles) * (side + _GAP), measure.textlength(text, font_size=_FONT_SIZE))
        for text, tiles in lines
    )
    sheet = Image.new("RGB", (int(width) + 2 * _GAP, len(lines) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (text, tiles) in enumerate(lines):
        top = number * height
        draw.text((_GAP, top), text, fill="black", font_size=_FONT_SIZE)
        for column, tile in enumerate(tiles):
            large = Image.fromarray(tile.repeat(scale, 0).repeat(scale, 1))
            sheet.paste(large, (column * (side + _GAP) + _GAP, top + _TEXT_HEIGHT))
    return sheet
