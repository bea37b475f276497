"""Augmentations: distributions of what is drawn, closed forms of what is done."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import encoded, picture
from PIL import Image
from scipy import stats
from scipy.ndimage import gaussian_filter

from fmjax.data.images.augment.augmentation import Augmentations
from fmjax.data.images.augment.colour_jitter import ColourJitter, turn_hue
from fmjax.data.images.augment.flip import Flip
from fmjax.data.images.augment.gaussian_blur import GaussianBlur
from fmjax.data.images.augment.grayscale import Grayscale
from fmjax.data.images.augment.mixing import CutMix, Mixup
from fmjax.data.images.augment.rand_augment import OPERATIONS, RandAugment
from fmjax.data.images.augment.random_crop import PaddedCrop, RandomResizedCrop
from fmjax.data.images.augment.random_erasing import RandomErasing
from fmjax.data.images.preprocessing import Preprocessing
from fmjax.errors import UserError

PIXELS = picture(0, 16, 16)
IMAGE = Image.fromarray(PIXELS)
EVERY = (
    RandomResizedCrop(), Flip(), PaddedCrop(), ColourJitter(), Grayscale(),
    GaussianBlur(), RandAugment(), RandomErasing(),
)  # fmt: skip


def rng(seed=0):
    return np.random.default_rng(seed)


def test_regions_have_the_areas_and_ratios_that_were_asked_for():
    width, height = 5000, 5000  # a square takes in every draw
    crop = RandomResizedCrop((0.08, 0.5), (3 / 4, 4 / 3))
    generator = rng()
    boxes = np.array([crop.region(width, height, generator) for _ in range(2000)])
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert boxes.min() >= 0
    assert boxes.max() <= 5000
    areas = w * h / (width * height)
    assert stats.kstest(areas, stats.uniform(0.08, 0.42).cdf).pvalue > 1e-3
    spread = 2 * math.log(4 / 3)
    uniform = stats.uniform(-spread / 2, spread)
    assert stats.kstest(np.log(w / h), uniform.cdf).pvalue > 1e-3
    places = boxes[:, 0] / (width - w)
    assert stats.kstest(places, stats.uniform.cdf).pvalue > 1e-3


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 2**32 - 1))
def test_regions_lie_inside_of_any_image(width, height, seed):
    left, top, right, bottom = RandomResizedCrop().region(width, height, rng(seed))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


def test_a_long_image_gives_its_middle():
    assert RandomResizedCrop((1.0, 1.0)).region(1000, 10, rng()) == (493, 0, 506, 10)


@settings(deadline=None, max_examples=50)
@given(st.sampled_from(EVERY), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_what_comes_out_is_a_picture_again_and_the_generator_decides(part, size, seed):
    content = encoded(picture(seed % 7, 30, 20))
    preprocessing = Preprocessing(size)
    made = [
        Augmentations((part,)).image(content, preprocessing, lambda: rng(seed))
        for _ in range(2)
    ]
    assert made[0].shape == (size, size, 3)
    assert made[0].dtype == np.float32
    assert np.abs(made[0]).max() <= 1
    np.testing.assert_array_equal(*made)


def test_half_of_the_pictures_are_mirrored():
    generator = rng()
    made = [np.asarray(Flip().change(IMAGE, generator)) for _ in range(400)]
    mirrored = sum((m == PIXELS[:, ::-1]).all() for m in made)
    assert mirrored + sum((m == PIXELS).all() for m in made) == 400
    assert stats.binomtest(mirrored, 400).pvalue > 1e-3


def test_padded_crops_are_all_shifts():
    padded = np.pad(PIXELS, ((2, 2), (2, 2), (0, 0)))
    shifts = {
        padded[y : y + 16, x : x + 16].tobytes(): (y, x)
        for y in range(5)
        for x in range(5)
    }
    generator = rng()
    made = [PaddedCrop(2).change(IMAGE, generator) for _ in range(300)]
    assert {shifts[np.asarray(m).tobytes()] for m in made} == set(shifts.values())


GREY = PIXELS @ [0.299, 0.587, 0.114]


@pytest.mark.parametrize(
    ("name", "towards"),
    [
        ("brightness", 0),
        ("contrast", GREY.mean()),
        ("saturation", GREY[..., None]),
    ],
)
def test_one_colour_change_is_a_blend_by_a_uniform_factor(name, towards):
    off = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    jitter = ColourJitter(**(off | {name: 0.4}), probability=1.0)
    factors = []
    for seed in range(200):
        made = np.asarray(jitter.change(IMAGE, rng(seed))).astype(float)
        inside = (made > 2) & (made < 253) & (np.abs(PIXELS - towards) > 60)
        away = np.broadcast_to(PIXELS - towards, made.shape)
        found = (made - towards)[inside] / away[inside]
        factors.append(np.median(found))
        want = np.clip(towards + factors[-1] * (PIXELS - towards), 0, 255)
        assert np.abs(made - want).max() < 2.5
    assert stats.kstest(factors, stats.uniform(0.6, 0.8).cdf).pvalue > 1e-3


def test_hue_turns_colours_and_leaves_greys():
    grey = Image.fromarray(np.full((4, 4, 3), 99, np.uint8))
    np.testing.assert_array_equal(turn_hue(grey, 0.3), grey)
    red = Image.new("RGB", (1, 1), (200, 0, 0))
    for turns, want in [(1 / 3, (0, 200, 0)), (-1 / 3, (0, 0, 200))]:
        assert (
            np.abs(np.subtract(turn_hue(red, turns).getpixel((0, 0)), want)).max() < 6
        )
    assert np.abs(np.asarray(turn_hue(IMAGE, 0.0), int) - PIXELS).max() <= 6


def test_changes_come_as_often_as_they_should():
    for part in (
        ColourJitter(probability=0.8),
        Grayscale(0.2),
        GaussianBlur(probability=0.5),
    ):
        generator = rng(1)
        changed = sum(
            (np.asarray(part.change(IMAGE, generator)) != PIXELS).any()
            for _ in range(300)
        )
        assert stats.binomtest(changed, 300, part.probability).pvalue > 1e-3
    made = np.asarray(Grayscale(1.0).change(IMAGE, rng()))
    np.testing.assert_allclose(made, np.repeat(GREY[..., None], 3, -1), atol=1)


def test_a_blur_is_a_gaussians():
    large = picture(3, 64, 64)
    for sigma in (0.5, 1.0, 2.0):
        blur = GaussianBlur((sigma, sigma), 1.0)
        made = np.asarray(blur.change(Image.fromarray(large), rng())).astype(float)
        want = gaussian_filter(large.astype(float), (sigma, sigma, 0), mode="nearest")
        assert np.abs(made - want).mean() < 1


def moved(operation, sign, size=201):
    """Where a spot 5 right of the middle, and one 5 below it, are then from it."""
    found, middle = [], size // 2
    for row, column in ((middle, middle + 5), (middle + 5, middle)):
        pixels = np.zeros((size, size, 3), np.uint8)
        pixels[row - 1 : row + 2, column - 1 : column + 2] = 255
        made = OPERATIONS[operation](Image.fromarray(pixels), 1.0, sign, (0, 0, 0))
        found.append(np.argwhere(np.asarray(made)[..., 0] > 128).mean(0) - middle)
    return np.array(found)


@pytest.mark.parametrize("sign", [-1, 1])
def test_moves_of_rand_augment_go_as_far_as_autoaugments(sign):
    spots = np.array([[0, 5], [5, 0]])
    shift = sign * int(201 * 150 / 331)
    along_x, along_y = np.array([0, shift]), np.array([shift, 0])
    np.testing.assert_array_equal(moved("translate_x", sign), spots + along_x)
    np.testing.assert_array_equal(moved("translate_y", sign), spots + along_y)
    # Against the clock; rows count downwards.
    sin, cos = sign * 0.5, math.cos(math.pi / 6)
    turned = 5 * np.array([[-sin, cos], [cos, sin]])
    np.testing.assert_allclose(moved("rotate", sign), turned, atol=0.7)
    # What is y below the upper edge goes 0.3 y to the left.
    slant = -sign * 0.3 * (spots[:, 0] + 100.5) + spots[:, 1]
    np.testing.assert_allclose(moved("shear_x", sign)[:, 1], slant, atol=0.7)
    slant = -sign * 0.3 * (spots[:, 1] + 100.5) + spots[:, 0]
    np.testing.assert_allclose(moved("shear_y", sign)[:, 0], slant, atol=0.7)


def test_colours_of_rand_augment_are_their_definitions():
    def made(name, level, sign=1):
        return np.asarray(OPERATIONS[name](IMAGE, level, sign, (0, 0, 0))).astype(int)

    np.testing.assert_array_equal(made("identity", 1.0), PIXELS)
    np.testing.assert_allclose(made("brightness", 1.0, -1), PIXELS * 0.1, atol=1)
    np.testing.assert_array_equal(made("brightness", 0.0), PIXELS)
    np.testing.assert_array_equal(made("posterize", 1.0), PIXELS & 0xF0)
    np.testing.assert_array_equal(made("posterize", 0.0), PIXELS)
    np.testing.assert_array_equal(made("solarize", 1.0), 255 - PIXELS)
    np.testing.assert_array_equal(
        made("solarize", 0.5), np.where(PIXELS < 127.5, PIXELS, 255 - PIXELS)
    )
    least, most = PIXELS.min((0, 1)), PIXELS.max((0, 1))
    stretched = (PIXELS - least.astype(float)) * 255 / (most - least)
    np.testing.assert_allclose(made("auto_contrast", 1.0), stretched, atol=1)
    flat = np.sort(made("equalize", 1.0)[..., 0].ravel())
    assert np.abs(flat - np.linspace(0, 255, 256)).mean() < 6
    assert made("sharpness", 1.0).std() > PIXELS.std()


def test_rand_augment_draws_operations_evenly(monkeypatch):
    counts = dict.fromkeys(OPERATIONS, 0)

    def counting(name):
        def operation(image, level, sign, fill):
            counts[name] += 1
            assert level == 0.3
            return image

        return operation

    for name in OPERATIONS:
        monkeypatch.setitem(OPERATIONS, name, counting(name))
    generator = rng()
    for _ in range(700):
        RandAugment(2, 9).change(IMAGE, generator)
    assert sum(counts.values()) == 1400
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_erased_rectangles_have_the_areas_that_were_asked_for():
    erasing = RandomErasing(0.5, (0.1, 0.3), (0.5, 2.0))
    generator = rng()
    areas = []
    for _ in range(800):
        image = erasing.change(np.ones((200, 200, 3), np.float32), generator)
        rows, columns = np.nonzero(image[..., 0] == 0)
        if rows.size:
            assert (
                rows.size
                == np.ptp(rows) * np.ptp(columns) + np.ptp(rows) + np.ptp(columns) + 1
            )
            areas.append(rows.size / 200**2)
    assert stats.binomtest(len(areas), 800).pvalue > 1e-3
    assert stats.kstest(areas, stats.uniform(0.1, 0.2).cdf).pvalue > 1e-3
    noisy = dataclasses.replace(erasing, probability=1.0, noise=True)
    image = noisy.change(np.full((200, 200, 3), 9, np.float32), generator)
    filled = image[image != 9]
    assert stats.kstest(filled[:2000], stats.norm.cdf).pvalue > 1e-3


def test_mixup_is_a_mean_by_shares_of_beta():
    a, b = np.full((4, 4, 3), 1, np.float32), np.full((4, 4, 3), -1, np.float32)
    generator = rng()
    shares = []
    for _ in range(500):
        image, share = Mixup(0.4).mix(a, b, generator)
        np.testing.assert_allclose(image, 2 * share - 1, atol=1e-6)
        shares.append(share)
    assert stats.kstest(shares, stats.beta(0.4, 0.4).cdf).pvalue > 1e-3
    assert (a == 1).all()
    image, share = Mixup(probability=0.0).mix(a, b, generator)
    assert share == 1
    assert image is a


def test_cutmix_counts_the_share_that_is_seen():
    a, b = np.ones((40, 40, 3), np.float32), np.zeros((40, 40, 3), np.float32)
    generator = rng()
    shares = []
    for _ in range(500):
        image, share = CutMix().mix(a, b, generator)
        assert image[..., 0].mean() == pytest.approx(share, abs=1e-6)
        rows, columns = np.nonzero(image[..., 0] == 0)
        if rows.size:
            assert rows.size == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        shares.append(share)
    assert (a == 1).all()
    # By its paper's formulas, without the rounding to pixels.
    ratio = np.sqrt(1 - rng(1).uniform(size=(20000, 1)))
    middle = rng(2).uniform(size=(20000, 2))
    sides = np.minimum(middle + ratio / 2, 1) - np.maximum(middle - ratio / 2, 0)
    assert stats.ks_2samp(shares, 1 - sides.prod(1)).statistic < 0.08


def test_what_cannot_be_is_refused():
    cases = [
        (lambda: RandomResizedCrop((0.5, 0.1)), r"random_resized_crop\.scale"),
        (lambda: RandomResizedCrop(ratio=(0.0, 1.0)), r"random_resized_crop\.ratio"),
        (lambda: PaddedCrop(0), r"padded_crop\.pixels"),
        (lambda: Flip(1.5), r"flip\.probability"),
        (lambda: ColourJitter(hue=0.6), r"colour_jitter\.hue"),
        (lambda: ColourJitter(contrast=-1.0), r"colour_jitter\.contrast"),
        (lambda: GaussianBlur((0.0, 1.0)), r"gaussian_blur\.sigma"),
        (lambda: RandAugment(magnitude=31), r"rand_augment\.magnitude"),
        (lambda: RandAugment(0), r"rand_augment\.operations"),
        (lambda: RandomErasing(scale=(0.1, 2.0)), r"random_erasing\.scale"),
        (lambda: Mixup(0.0), r"mixup\.alpha"),
        (lambda: CutMix(probability=-1.0), r"cutmix\.probability"),
        (lambda: Augmentations((Mixup(), Flip())), r"\(@mixup\(\), @flip\(\)\)"),
        (lambda: Augmentations((RandomResizedCrop(),) * 2), "at most one choice"),
    ]
    for make, message in cases:
        with pytest.raises(UserError, match=message):
            make()
