"""Files of every kind to upright RGB, regions of them, resized as Pillow does."""

import contextlib
import io
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import encoded, picture
from PIL import Image, ImageOps

from fmjax.data.images import decoding as image_decoding
from fmjax.data.images.decoding import check_picture, read_picture
from fmjax.data.images.preprocessing import Preprocessing
from fmjax.data.records import BadRecord
from fmjax.errors import UserError
from fmjax.inference.image_files import read_images

PIXELS = picture(0, 24, 24)
RGB = Image.fromarray(PIXELS)


def whole(content: bytes, size: int = 24) -> np.ndarray:
    made = read_picture(
        content, lambda w, h: (0, 0, w, h), size, Image.Resampling.BICUBIC
    )
    assert made.mode == "RGB"
    return np.asarray(made).astype(int)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "GIF", "JPEG", "WEBP"])
def test_every_format_gives_the_same_picture(kind):
    lossless = kind in ("PNG", "BMP", "TIFF", "PPM")
    options = {} if lossless or kind == "GIF" else {"quality": 95}
    difference = np.abs(whole(encoded(RGB, kind, **options)) - PIXELS)
    assert difference.max() == 0 if lossless else difference.mean() < 6


@pytest.mark.parametrize("kind", ["EPS", "PCX", "TGA", "ICO"])
def test_other_formats_are_not_opened(kind, tmp_path):
    # Pillow would hand the first to Ghostscript.
    content = encoded(RGB, kind)
    with pytest.raises(BadRecord, match="cannot be decoded: it is none of"):
        check_picture(content)
    file = tmp_path / "picture.png"
    file.write_bytes(content)
    run = types.SimpleNamespace(preprocess=lambda pictures: np.stack(pictures))
    with pytest.raises(UserError, match=r"picture\.png: .*; expected .*JPEG, PNG"):
        read_images(run, [file])


def test_grey_of_one_eight_and_sixteen_bits():
    grey = RGB.convert("L")
    want = np.repeat(np.asarray(grey)[..., None], 3, -1).astype(int)
    np.testing.assert_array_equal(whole(encoded(grey)), want)
    sixteen = np.asarray(grey).astype(np.uint16) * 257  # 255 → 65535
    for kind in ("PNG", "TIFF"):
        np.testing.assert_array_equal(whole(encoded(sixteen, kind)), want)
    bits = np.asarray(grey.point(lambda v: 255 * (v > 99)))
    one = encoded(Image.fromarray(bits).convert("1"))
    np.testing.assert_array_equal(whole(one)[..., 0], bits)


def test_palettes_cmyk_and_transparency():
    palette = RGB.quantize(256)
    np.testing.assert_array_equal(
        whole(encoded(palette)), np.asarray(palette.convert("RGB"))
    )
    cmyk = encoded(RGB.convert("CMYK"), "JPEG", quality=98)
    assert np.abs(whole(cmyk) - PIXELS).mean() < 4
    alpha = np.zeros((24, 24), np.uint8)
    alpha[:12] = 255
    alpha[0] = 51  # a fifth
    clear = RGB.copy()
    clear.putalpha(Image.fromarray(alpha))
    seen = whole(encoded(clear))
    np.testing.assert_array_equal(seen[1:12], PIXELS[1:12])
    assert (seen[12:] == 255).all()
    np.testing.assert_allclose(seen[0], PIXELS[0] / 5 + 255 * 4 / 5, atol=1)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_exif_is_carried_out_before_a_region_is_chosen(orientation, kind):
    stored = Image.fromarray(picture(1, 16, 10))
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(stored, kind, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    sizes = []

    def top_left(width, height):
        sizes.append((width, height))
        return 0, 0, 8, 8

    made = read_picture(content, top_left, 8, Image.Resampling.NEAREST)
    assert sizes == [upright.size]
    np.testing.assert_array_equal(made, upright.convert("RGB").crop((0, 0, 8, 8)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is none of JPEG"),
        (b"no picture", "it is none of JPEG"),
        (encoded(RGB, "JPEG")[:-40], "truncated"),
        (encoded(RGB)[:-60], "truncated"),
        (encoded(np.zeros((4, 4), np.float32), "TIFF"), "floating-point"),
        (encoded(np.full((4, 4), 1 << 20, np.int32), "TIFF"), "16 bits"),
    ],
)
def test_what_cannot_be_read_says_why(content, message):
    with pytest.raises(BadRecord, match=message):
        check_picture(content)


@settings(deadline=None, max_examples=150)
@given(
    kind=st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"]),
    damage=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=4),
    kept=st.floats(0.1, 1),
)
def test_damaged_files_are_pictures_or_bad_records(kind, damage, kept):
    content = bytearray(encoded(RGB, kind))
    for place, value in damage:
        content[int(place * (len(content) - 1))] = value
    with contextlib.suppress(BadRecord):
        whole(bytes(content[: int(kept * len(content))]))


def test_gigantic_pictures_are_refused_before_they_are_decoded(monkeypatch):
    monkeypatch.setattr(image_decoding, "_MAX_PIXELS", 500)
    with pytest.raises(BadRecord, match="24 × 24 pixels; expected at most 500"):
        check_picture(encoded(RGB))


@settings(deadline=None, max_examples=40)
@given(
    width=st.integers(3, 60), height=st.integers(3, 60), size=st.integers(1, 30),
    extra=st.integers(0, 9), filter=st.sampled_from(["bilinear", "bicubic", "lanczos"]),
)  # fmt: skip
def test_the_middle_is_what_resizing_and_then_cropping_gives(
    width, height, size, extra, filter
):
    image = Image.fromarray(picture(2, width, height))
    short = size + extra
    made = Preprocessing(size, "crop", short, filter).read(encoded(image))
    # transformers' and torchvision's two steps.
    long = int(short * max(width, height) / min(width, height))
    wide, high = (short, long) if width <= height else (long, short)
    resized = image.resize((wide, high), Image.Resampling[filter.upper()])
    left, top = (wide - size) // 2, (high - size) // 2
    want = resized.crop((left, top, left + size, top + size))
    difference = np.abs(np.asarray(made, int) - np.asarray(want, int))
    # Pillow rounds the box to float32, and between the two directions to bytes.
    assert difference.max() <= 3
    assert difference.mean() < 1
    squashed = Preprocessing(size, "squash", None, filter).read(encoded(image))
    np.testing.assert_array_equal(
        squashed, image.resize((size, size), Image.Resampling[filter.upper()])
    )


def test_numbers_are_normalized_and_shown_again():
    settings = Preprocessing(24, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    numbers = settings(encoded(RGB))
    assert numbers.dtype == np.float32
    want = (PIXELS / 255 - [0.4, 0.5, 0.6]) / [0.2, 0.25, 0.3]
    np.testing.assert_allclose(numbers, want, atol=2e-6)
    np.testing.assert_array_equal(settings.shown(numbers), PIXELS)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("width", "height"), [(1200, 900), (1281, 901)])
def test_jpegs_decoded_at_a_fraction_look_the_same(width, height, orientation):
    # Photographs have most of their power in slow waves: a sum of octaves.
    rng = np.random.default_rng(0)
    photo = np.zeros((height, width, 3))
    for octave in range(1, 8):
        noise = rng.normal(size=(3 * 2**octave, 4 * 2**octave, 3)) * 60 / 2**octave
        for channel in range(3):
            layer = Image.fromarray(noise[..., channel].astype(np.float32))
            layer = layer.resize((width, height), Image.Resampling.BICUBIC)
            photo[..., channel] += layer
    photo = np.clip(photo + 128, 0, 255).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(photo, "JPEG", quality=92, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    boxes = [(0, 0, 900, 900), (10.5, 20, 850, 870.5), (0, 0, *upright.size)]
    for box, size in zip(boxes, (224, 100, 64), strict=True):
        made = read_picture(content, lambda w, h: box, size, Image.Resampling.BICUBIC)  # noqa: B023
        want = upright.resize((size, size), Image.Resampling.BICUBIC, box=box)
        difference = np.abs(np.asarray(made, int) - np.asarray(want, int))
        assert difference.mean() < 1


@settings(deadline=None, max_examples=100)
@given(
    width=st.integers(1, 70), height=st.integers(1, 70), size=st.integers(1, 40),
    quality=st.integers(1, 100), subsampling=st.sampled_from([0, 1, 2]),
    progressive=st.booleans(), seed=st.integers(0, 9),
    damage=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=2),
    kept=st.one_of(st.just(1.0), st.floats(0.1, 1)),
)  # fmt: skip
def test_plain_jpegs_give_the_pixels_that_pillow_gives(
    width, height, size, quality, subsampling, progressive, seed, damage, kept
):
    options = {"subsampling": subsampling, "progressive": progressive}
    pixels = picture(seed, width, height)
    content = bytearray(encoded(pixels, "JPEG", quality=quality, **options))
    if not damage and width < 3 * size and height < 3 * size:
        assert image_decoding._plain_jpeg(bytes(content), 1.0) is not None
    for place, value in damage:
        content[int(place * (len(content) - 1))] = value
    content = content[: int(kept * len(content))]
    found = []
    for plain in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            if not plain:
                patch.setattr(image_decoding, "_plain_jpeg_size", lambda content: None)
            try:
                found.append(whole_of(bytes(content), width, height, size))
            except BadRecord:
                found.append(None)
    assert (found[0] is None) == (found[1] is None)
    if found[0] is not None:
        np.testing.assert_array_equal(*found)


def whole_of(content: bytes, width: int, height: int, size: int) -> np.ndarray:
    box = (0, 0, width, height)
    made = read_picture(content, lambda w, h: box, size, Image.Resampling.BICUBIC)
    return np.asarray(made)
