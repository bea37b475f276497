"""Encoded images to upright RGB pictures of one size, whatever their file holds.

Sixteen bits become eight, palettes and CMYK become RGB, what is transparent is laid on
white, EXIF's rotation is carried out, and of an animation the first picture is taken.
"""

import io
from collections.abc import Callable

import numpy as np
import simplejpeg
from PIL import Image, ImageOps

from fmjax.data.text.packing import BadRecord

# left, top, right, bottom in pixels, as Pillow counts them; fractions are fine.
Box = tuple[float, float, float, float]

# Pillow reads some forty more that are rare and little tested; for EPS it runs
# Ghostscript on the file, which is a program.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
# A picture of this many pixels takes 200 MB while it is decoded.
_MOST_PIXELS = 1 << 26
_ORIENTATION = 0x0112  # EXIF's tag.
# A JPEG is decoded at a half, quarter or eighth where that leaves this many pixels for
# each one that is asked for: the result differs by less than 1/255 on average.
_SPARE = 1.5


def read_picture(
    content: bytes,
    region: Callable[[int, int], Box],
    size: int,
    resampling: Image.Resampling,
) -> Image.Image:
    """A region of an encoded image, resized.

    Args:
      content: of a file, in one of FORMATS.
      region: (width, height) of the upright image → the box to take out of it.
      size: S of the S × S result.
      resampling: one of Pillow's filters, which average over what they shrink.

    Raises:
      BadRecord: the image is broken, too large or of a kind that has no colours.
    """
    box = None
    try:
        if found := _plain_jpeg_size(content):
            box = region(*found)
            pixels = _plain_jpeg(content, min(box[2] - box[0], box[3] - box[1]) / size)
            if pixels is not None:
                return Image.fromarray(pixels).resize((size, size), resampling, box=box)
        with _open(content) as image:
            width, height = _upright_size(image)
            if box is None:
                box = region(width, height)
            shrink = _reduce(image, min(box[2] - box[0], box[3] - box[1]) / size)
            turned = _orientation(image)
            picture = _upright_rgb(image)
        if shrink > 1:
            # The last of the file's columns or rows may stand for fewer than `shrink`
            # pixels; turned about, it comes first.
            left = picture.width - width / shrink if turned in (2, 3, 6, 7) else 0
            top = picture.height - height / shrink if turned in (3, 4, 7, 8) else 0
            box = tuple(
                edge / shrink + start
                for edge, start in zip(box, (left, top) * 2, strict=True)
            )
        return picture.resize((size, size), resampling, box=box)
    except BadRecord:
        raise
    except Exception as error:
        # Pillow's decoders raise a dozen kinds of errors on broken files.
        raise BadRecord(f"cannot be decoded: {error}") from error


def take_region(
    image: Image.Image,
    region: Callable[[int, int], Box],
    size: int,
    resampling: Image.Resampling,
) -> Image.Image:
    """The same of an image that was opened already; arguments as of `read_picture`."""
    picture = _upright_rgb(image)
    box = region(picture.width, picture.height)
    return picture.resize((size, size), resampling, box=box)


def check_picture(content: bytes) -> None:
    """Raises BadRecord where `read_picture` would, by decoding the image whole."""
    read_picture(content, lambda w, h: (0, 0, w, h), 1, Image.Resampling.NEAREST)


def _plain_jpeg_size(content: bytes) -> tuple[int, int] | None:
    """(width, height) of a JPEG that is nothing but its pixels; None of all else."""
    if content[:3] != b"\xff\xd8\xff" or b"Exif\0" in content:
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
    except ValueError:
        return None
    plain = colours == "YCbCr" and width * height <= _MOST_PIXELS
    return (width, height) if plain else None


def _plain_jpeg(content: bytes, ratio: float) -> np.ndarray | None:
    """Its pixels, the same as Pillow's; None where Pillow has to judge what is wrong.

    Pillow reads a file's head in Python, which takes longer than a small image's
    pixels. What is shrunk so far that some of it need not be decoded is left to it.
    """
    if ratio >= 2 * _SPARE:
        return None
    try:
        return simplejpeg.decode_jpeg(content, "RGB", strict=True)
    except ValueError:
        return None


def _open(content: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(content), formats=FORMATS)
    if image.width * image.height > _MOST_PIXELS:
        raise BadRecord(
            f"has {image.width} × {image.height} pixels; expected at most "
            f"{_MOST_PIXELS:,} in all"
        )
    return image


def _orientation(image: Image.Image) -> int:
    # Most JPEGs have no EXIF, and looking for it takes as long as decoding a small one;
    # of TIFF, Pillow carries it out itself.
    if image.format == "TIFF" or (image.format == "JPEG" and "exif" not in image.info):
        return 1
    return image.getexif().get(_ORIENTATION, 1)


def _upright_size(image: Image.Image) -> tuple[int, int]:
    turned = _orientation(image) in (5, 6, 7, 8)
    return image.size[::-1] if turned else image.size


def _reduce(image: Image.Image, ratio: float) -> int:
    """Has a JPEG decoded at 1/2, 1/4 or 1/8 where `ratio` of sizes allows it."""
    if image.format != "JPEG" or ratio < 2 * _SPARE:
        return 1
    shrink = next(n for n in (8, 4, 2) if ratio >= n * _SPARE)
    # Pillow takes the strongest reduction that leaves, rounded down, at least this.
    image.draft(None, tuple(edge // shrink for edge in image.size))
    return shrink


def _upright_rgb(image: Image.Image) -> Image.Image:
    if _orientation(image) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        image.load()
        return image
    if image.mode == "F":
        raise BadRecord("holds floating-point numbers, of no known range")
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise BadRecord("holds integers of more than 16 bits")
        image = Image.fromarray((values / 257).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
