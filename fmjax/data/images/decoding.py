"""Decoding image files to upright 8-bit RGB pictures of one size.

Sixteen bits become eight, palettes and CMYK become RGB, transparent pixels are drawn on
white, the EXIF orientation is applied, and of an animation the first frame is taken.
"""

import io
from collections.abc import Callable

import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

from fmjax.data.records import BadRecord

# (left, top, right, bottom) in pixels, as in Pillow; fractions are allowed.
Box = tuple[float, float, float, float]

# Pillow reads some forty more formats, which are rare and little tested; for EPS it
# would run Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
# A picture of this many pixels takes 200 MB while it is decoded.
_MAX_PIXELS = 1 << 26
_ORIENTATION = 0x0112  # the EXIF tag
# A JPEG is decoded at a half, quarter or eighth of its size if that leaves at least
# this many pixels (along a side) for each pixel of the result, which then differs by
# less than 1/255 on average.
_MIN_OVERSAMPLING = 1.5


def read_picture(
    content: bytes,
    region: Callable[[int, int], Box],
    size: int,
    resampling: Image.Resampling,
) -> Image.Image:
    """Decodes a region of an image and resizes it.

    Args:
      content: the bytes of a file in one of FORMATS.
      region: maps (width, height) of the upright image to the box to read.
      size: S, side of the result in pixels.
      resampling: one of Pillow's filters; they average when they shrink.

    Returns:
      An S × S RGB picture.

    Raises:
      BadRecord: the image is broken, too large or of an unsupported pixel type.
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
            # The last column or row of the reduced file may cover fewer than `shrink`
            # pixels; in a rotated image it comes first.
            left = picture.width - width / shrink if turned in (2, 3, 6, 7) else 0
            top = picture.height - height / shrink if turned in (3, 4, 7, 8) else 0
            box = tuple(
                edge / shrink + start
                for edge, start in zip(box, (left, top) * 2, strict=True)
            )
        return picture.resize((size, size), resampling, box=box)
    except BadRecord:
        raise
    except UnidentifiedImageError as error:
        # Its message has the address of an object, which differs between processes.
        kinds = ", ".join(FORMATS)
        raise BadRecord(f"cannot be decoded: it is none of {kinds}") from error
    except Exception as error:
        # Pillow's decoders raise a dozen kinds of errors on broken files.
        raise BadRecord(f"cannot be decoded: {error}") from error


def take_region(
    image: Image.Image,
    region: Callable[[int, int], Box],
    size: int,
    resampling: Image.Resampling,
) -> Image.Image:
    """Resizes a region of an open image; arguments as in `read_picture`."""
    picture = _upright_rgb(image)
    box = region(picture.width, picture.height)
    return picture.resize((size, size), resampling, box=box)


def check_picture(content: bytes) -> None:
    """Decodes a whole image; raises BadRecord if `read_picture` would."""
    read_picture(content, lambda w, h: (0, 0, w, h), 1, Image.Resampling.NEAREST)


def _plain_jpeg_size(content: bytes) -> tuple[int, int] | None:
    """(width, height) of a YCbCr JPEG without EXIF; None for all other images."""
    if content[:3] != b"\xff\xd8\xff" or b"Exif\0" in content:
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
    except ValueError:
        return None
    plain = colours == "YCbCr" and width * height <= _MAX_PIXELS
    return (width, height) if plain else None


def _plain_jpeg(content: bytes, ratio: float) -> np.ndarray | None:
    """Pixels of a JPEG, equal to Pillow's; None if Pillow has to decode it.

    Pillow parses the header in Python, which takes longer than the pixels of a small
    image. Pillow decodes broken images, for its error messages, and images that shrink
    by so large a `ratio` that it can decode them at a fraction of their size.
    """
    if ratio >= 2 * _MIN_OVERSAMPLING:
        return None
    try:
        return simplejpeg.decode_jpeg(content, "RGB", strict=True)
    except ValueError:
        return None


def _open(content: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(content), formats=FORMATS)
    if image.width * image.height > _MAX_PIXELS:
        raise BadRecord(
            f"has {image.width} × {image.height} pixels; expected at most "
            f"{_MAX_PIXELS:,} in all"
        )
    return image


def _orientation(image: Image.Image) -> int:
    # Most JPEGs have no EXIF, and to search for it takes as long as to decode a small
    # image. In TIFF files Pillow applies the orientation itself.
    if image.format == "TIFF" or (image.format == "JPEG" and "exif" not in image.info):
        return 1
    return image.getexif().get(_ORIENTATION, 1)


def _upright_size(image: Image.Image) -> tuple[int, int]:
    turned = _orientation(image) in (5, 6, 7, 8)
    return image.size[::-1] if turned else image.size


def _reduce(image: Image.Image, ratio: float) -> int:
    """Sets a JPEG to be decoded at 1/2, 1/4 or 1/8 of its size if `ratio` allows it."""
    if image.format != "JPEG" or ratio < 2 * _MIN_OVERSAMPLING:
        return 1
    shrink = next(n for n in (8, 4, 2) if ratio >= n * _MIN_OVERSAMPLING)
    # Pillow uses the strongest reduction that leaves at least this size.
    image.draft(None, tuple(edge // shrink for edge in image.size))
    return shrink


def _upright_rgb(image: Image.Image) -> Image.Image:
    if _orientation(image) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        image.load()
        return image
    if image.mode == "F":
        raise BadRecord("holds floating-point pixels, whose range is unknown")
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
